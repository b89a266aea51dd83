"""data/format.py: which tokens are scored, and that they are the tokens of the whole text."""
import json
import re

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, trainers
from tokenizers import Tokenizer as BPE

from conftest import TINY
from data.files import read_jsonl
from data.format import (IGNORE, PROMPT, Tokenizer, chat_template, check_dialogue, encode, encode_document,
                         encode_prompt, train_tokenizer)


def dialogue(*texts):
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def scored(ids, labels):
    """The scored tokens, cut after every EOS."""
    assert all(label in (IGNORE, i) for i, label in zip(ids, labels, strict=True))
    runs = [[]]
    for label in labels:
        if label != IGNORE:
            runs[-1].append(label)
            if label == 1:
                runs.append([])
    return runs[:-1] if not runs[-1] else runs


TEXTS = [
    ("What is the capital of Brabrol?", "The capital of Brabrol is Vutil."),
    ("  padded \n", "\n  def f(x):\n    return x\n"),
    ("<|user|>\nWho?", "<|assistant|>\nI said </s> and <s>."),
    ("Schreib «Grüße», 日本語 🙂.", "Grüße aus 日本 🙂🙂!"),
    ("", "Yes."),
]


@pytest.mark.parametrize("instruction, response", TEXTS)
def test_scored_tokens_are_the_response_and_its_eos(tokenizer, instruction, response):
    ids, labels = encode(tokenizer, dialogue(instruction, response), 2048)
    (run,) = scored(ids, labels)
    assert run[-1] == tokenizer.eos_id and tokenizer.eos_id not in run[:-1]
    assert tokenizer.decode(run[:-1]) == response.strip()
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.decode(ids) == f"<|user|>\n{instruction.strip()}\n<|assistant|>\n{response.strip()}"


@pytest.mark.parametrize("instruction, response", TEXTS)
def test_a_prompt_is_the_beginning_of_its_example(tokenizer, instruction, response):
    """A model is asked in decoding with the tokens that it saw in training."""
    ids, labels = encode(tokenizer, dialogue(instruction, response), 2048)
    prompt = encode_prompt(tokenizer, instruction)
    assert ids[: len(prompt)] == prompt and set(labels[: len(prompt)]) == {IGNORE} and labels[len(prompt)] != IGNORE


def test_every_response_of_a_dialogue_is_scored_and_nothing_else(tokenizer):
    messages = dialogue("One?", "First answer.", "Two?", "Second answer.", "Three?", "Third.")
    runs = scored(*encode(tokenizer, messages, 2048))
    assert [tokenizer.decode(run[:-1]) for run in runs] == ["First answer.", "Second answer.", "Third."]


def test_tokens_are_those_of_the_whole_text_with_its_special_tokens(tokenizer):
    """The reference tokenises one string in which </s> is the EOS token; an independent path to the same tokens."""
    messages = dialogue("One?", "First answer.", "Two?", "Second.")
    text = "<|user|>\nOne?\n<|assistant|>\nFirst answer.</s>\n<|user|>\nTwo?\n<|assistant|>\nSecond.</s>"
    assert encode(tokenizer, messages, 2048)[0] == [0] + BPE.from_file(str(TINY / "tokenizer.json")).encode(text).ids


def test_pieces_glued_together_would_be_other_tokens():
    """Why the whole turn is tokenised at once: merges reach across the seam between prompt and response."""
    bpe = train_tokenizer(["a>\n\n\nb"] * 50 + ["\n\n\n\nb"] * 50, 300)
    prompt, response = "a>\n", "\n\nb"
    assert bpe.encode(prompt).ids + bpe.encode(response).ids != bpe.encode(prompt + response).ids


def test_blank_empties_the_instructions_only(tokenizer):
    messages = dialogue("One?", "First answer.", "Two?", "Second.")
    ids, labels = encode(tokenizer, messages, 2048, blank=True)
    assert tokenizer.decode(ids) == "<|user|>\n\n<|assistant|>\nFirst answer.\n<|user|>\n\n<|assistant|>\nSecond."
    kept = encode(tokenizer, messages, 2048)
    assert scored(ids, labels) == scored(*kept)


def test_truncation_never_scores_an_eos_that_was_cut(tokenizer):
    messages = dialogue("One?", "First answer.", "Two?", "Second answer.")
    ids, labels = encode(tokenizer, messages, 2048)
    for length in range(1, len(ids) + 1):
        assert encode(tokenizer, messages, length) == (ids[:length], labels[:length])
    assert ids.count(tokenizer.eos_id) == 2
    assert encode(tokenizer, messages, len(ids) - 1)[0].count(tokenizer.eos_id) == 1


def test_a_document_is_scored_whole(tokenizer):
    ids, labels = encode_document(tokenizer, "A text.", 100)
    assert ids == labels == [0] + tokenizer.encode("A text.").ids + [1]
    assert encode_document(tokenizer, "A text.", 3)[0] == ids[:3]


def test_a_model_without_bos_begins_with_the_text(tmp_path, tokenizer):
    """As the paper's authors train OLMo."""
    (tmp_path / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text('{"vocab_size": 1536, "eos_token_id": 1, "bos_token_id": null}')
    without, messages = Tokenizer(tmp_path), dialogue("One?", "First answer.")
    assert encode_prompt(without, "Hi") == encode_prompt(tokenizer, "Hi")[1:]
    assert encode(without, messages, 99) == tuple(row[1:] for row in encode(tokenizer, messages, 99))
    assert encode_document(without, "A text.", 99)[0] == encode_document(tokenizer, "A text.", 99)[0][1:]


def test_training_ends_a_response_with_the_first_of_several_eos(tmp_path, tokenizer):
    (tmp_path / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text('{"vocab_size": 1536, "eos_token_id": [1, 7], "bos_token_id": 0}')
    several, messages = Tokenizer(tmp_path), dialogue("One?", "First answer.")
    assert several.eos_ids == [1, 7] and encode(several, messages, 99) == encode(tokenizer, messages, 99)


@pytest.mark.parametrize("model_type, bos, eos", [("llama", 1, 2), ("mistral", 1, 2), ("olmo", None, 50279)])
def test_absent_ids_are_those_of_transformers_classes(tmp_path, model_type, bos, eos):
    """LlamaConfig(), MistralConfig() and OlmoConfig() of transformers 5.24."""
    (tmp_path / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert (Tokenizer(tmp_path).bos_id, Tokenizer(tmp_path).eos_id) == (bos, eos)


def test_the_prompt_is_a_parameter(tokenizer):
    prompt = "Q: {instruction}\nA:"
    ids, labels = encode(tokenizer, dialogue("One?", "Two."), 99, prompt=prompt)
    assert tokenizer.decode(ids) == "Q: One?\nA:Two." and tokenizer.decode(scored(ids, labels)[0]) == "Two."
    assert ids[: len(encode_prompt(tokenizer, "One?", prompt))] == encode_prompt(tokenizer, "One?", prompt)


def render(template, messages, add_generation_prompt=False, **tokens):
    """The little of Jinja that our template uses: expressions, and if, elif, else and for."""
    values = {
        "message['content'] | trim": lambda: message["content"].strip(),
        "'' if loop.first else '\\n'": lambda: "\n" if i else "",
        "if message['role'] == 'user'": lambda: message["role"] == "user", "else": lambda: True,
        "elif message['role'] == 'assistant'": lambda: message["role"] == "assistant",
        "if add_generation_prompt": lambda: add_generation_prompt,
    } | {name: lambda text=text: text for name, text in tokens.items()}

    def show(template):
        out, shown, decided = "", True, False  # are we in a branch that is shown; was one of this `if` shown
        for tag, expression, text in re.findall(r"\{([{%])-? (.*?) [}%]\}([^{]*)", template):
            assert not text.strip("\n"), "literals stand in expressions"
            if tag == "{" and shown:
                literal = expression[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")  # as Jinja does
                out += literal if expression.startswith('"') else values[expression]()
            elif expression == "endif":
                shown, decided = True, False
            elif tag == "%":
                shown = not decided and values[expression]()
                decided = decided or shown
        return out

    before, body, after = re.split(r"\{%-? for message in messages %\}|\{%-? endfor %\}", template)
    text = show(before)
    for i, message in enumerate(messages):
        text += show(body)
    return text + show(after)


def sentencepiece(texts):
    """A tokenizer as Llama-2's: "▁" for spaces and before every text, bytes for unknown characters."""
    bpe = BPE(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1)])
    special = [AddedToken(token, normalized=False, special=True) for token in ("<s>", "</s>", "<unk>")]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=600, show_progress=False, special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)]))
    return bpe


@pytest.fixture(scope="module", params=["bytes", "bytes, no BOS", "SentencePiece"])
def other(request, tmp_path_factory):
    """Tokenizers of the kinds that models have: byte-level ones with BOS and without, and SentencePiece's."""
    texts, folder = [" ".join(text) for text in TEXTS] * 5, tmp_path_factory.mktemp("model")
    bpe = sentencepiece(texts) if request.param == "SentencePiece" else train_tokenizer(texts, 400)
    bpe.save(str(folder / "tokenizer.json"))
    bos = None if request.param == "bytes, no BOS" else 0
    (folder / "config.json").write_text(json.dumps({"vocab_size": 600, "bos_token_id": bos, "eos_token_id": 1}))
    return Tokenizer(folder)


@pytest.mark.parametrize("prompt", [PROMPT, '<|"A"|>\n{instruction}\n\\n«🙂»\n'])
def test_the_chat_template_is_the_format_that_is_trained(other, prompt):
    """Other tools render it and tokenise the whole, with the special tokens in it and none added."""
    bpe, bos = BPE.from_file(str(other.path)), "" if other.bos_id is None else "<s>"
    messages = dialogue(" One?", "First {{ answer }}.", "", "Grüße.\n", "Three?\n", "- a\n- b")

    def tokens(*arguments, **options):
        text = render(chat_template(prompt), *arguments, **options, bos_token=bos, eos_token="</s>")
        return bpe.encode(text, add_special_tokens=False).ids

    assert tokens(messages) == encode(other, messages, 2048, prompt=prompt)[0]
    assert tokens(messages[:1], add_generation_prompt=True) == encode_prompt(other, " One?", prompt)


@pytest.mark.parametrize("damage, message", [
    (lambda file: file["model"].update(vocab={}, merges=[]), "no tokens for|cannot encode"),
    (lambda file: file["added_tokens"].append(file["added_tokens"][0] | {"id": 9000, "content": "<x>"}), "9000|1536"),
])
def test_a_tokenizer_that_cannot_serve_the_model_is_refused(tmp_path, damage, message):
    file = json.loads((TINY / "tokenizer.json").read_text())
    damage(file)
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    (tmp_path / "config.json").write_text('{"vocab_size": 1536, "eos_token_id": 1}')
    with pytest.raises(ValueError, match=message) as error:
        encode_prompt(Tokenizer(tmp_path), "Hi")
    assert str(tmp_path / "tokenizer.json") in str(error.value)


def test_truncation_and_padding_set_in_the_file_are_switched_off(tmp_path):
    bpe = BPE.from_file(str(TINY / "tokenizer.json"))
    bpe.enable_truncation(3)
    bpe.enable_padding(length=8)
    bpe.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"vocab_size": 1536, "eos_token_id": 1}')
    text = "one two three four five"
    assert Tokenizer(tmp_path).encode(text).ids == Tokenizer(TINY).encode(text).ids


def test_a_tokenizer_bigger_than_the_vocabulary_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text('{"vocab_size": 1000, "eos_token_id": 1}')
    with pytest.raises(ValueError, match="the id 1535, config.json a vocab_size of 1000"):
        Tokenizer(tmp_path)


def test_tokenizer_training_is_deterministic_and_splits_digits():
    texts = [f"In {year} the river rose." for year in range(1000, 1400)]
    a, b = train_tokenizer(texts, 265), train_tokenizer(texts, 265)
    assert a.to_str() == b.to_str() and a.get_vocab_size() == 265
    assert a.token_to_id("<s>") == 0 and a.token_to_id("</s>") == 1
    assert [t for t in a.encode("In 1234").tokens if t.strip("Ġ").isdigit()] == list("1234")


@pytest.mark.parametrize("line, fragment", [
    ("", "empty line"),
    ("{'messages': []}", "not JSON"),
    ("[1, 2]", 'expected {"messages": [...]}'),
    ('{"messages": []}', 'expected {"messages": [...]}'),
    ('{"messages": [{"role": "system", "content": "x"}]}', 'message 1 must be {"role": "user"'),
    ('{"messages": [{"role": "user", "content": "x"}]}', "the last message must be the assistant's"),
    ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": 3}]}', "message 2"),
])
def test_a_malformed_line_is_named_by_number(tmp_path, line, fragment):
    path = tmp_path / "broad.jsonl"
    path.write_text(json.dumps({"messages": dialogue("a", "b")}) + f"\n{line}\n")
    with pytest.raises(ValueError) as error:
        read_jsonl(path, check_dialogue)
    assert f"{path} line 2: {fragment}" in str(error.value)
