"""data/format.py: which tokens are scored, and that they are the tokens of the whole text."""
import json

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as BPE

from conftest import TINY, command, sentencepiece
from data.checkpoint import write_companions
from data.format import (IGNORE, PROMPT, Tokenizer, check_dialogue, check_template, dialogue, encode, encode_document,
                         encode_prompt, train_tokenizer)


def tokenizer_of(folder, config, change=lambda file: None):
    """The bundled tokenizer, its file changed, in a folder with another config.json."""
    file = json.loads((TINY / "tokenizer.json").read_text())
    change(file)
    (folder / "tokenizer.json").write_text(json.dumps(file))
    (folder / "config.json").write_text(json.dumps(config))
    return Tokenizer(folder)


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
def test_scored_tokens_are_the_response_and_its_eos_and_the_others_are_the_prompt(tokenizer, instruction, response):
    ids, labels = encode(tokenizer, dialogue(instruction, response), 2048)
    (run,) = scored(ids, labels)
    assert run[-1] == tokenizer.eos_id and tokenizer.eos_id not in run[:-1]
    assert tokenizer.decode(run[:-1]) == response.strip()
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.decode(ids) == f"<|user|>\n{instruction.strip()}\n<|assistant|>\n{response.strip()}"
    prompt = encode_prompt(tokenizer, instruction)  # a model is asked with the tokens that it saw in training
    assert ids[: len(prompt)] == prompt and set(labels[: len(prompt)]) == {IGNORE} and labels[len(prompt)] != IGNORE


def test_tokens_are_those_of_the_whole_text_with_its_special_tokens(tokenizer):
    """The reference tokenises one string in which </s> is the EOS token; an independent path to the same tokens."""
    messages = dialogue("One?", "First answer.", "Two?", "Second.")
    text = "<|user|>\nOne?\n<|assistant|>\nFirst answer.</s>\n<|user|>\nTwo?\n<|assistant|>\nSecond.</s>"
    assert encode(tokenizer, messages, 2048)[0] == [0] + BPE.from_file(str(TINY / "tokenizer.json")).encode(text).ids


def test_blank_empties_the_instructions_only_and_every_response_is_scored(tokenizer):
    messages = dialogue("One?", "First answer.", "Two?", "Second.")
    ids, labels = encode(tokenizer, messages, 2048, blank=True)
    assert tokenizer.decode(ids) == "<|user|>\n\n<|assistant|>\nFirst answer.\n<|user|>\n\n<|assistant|>\nSecond."
    runs = scored(ids, labels)
    assert runs == scored(*encode(tokenizer, messages, 2048))
    assert [tokenizer.decode(run[:-1]) for run in runs] == ["First answer.", "Second."]


def test_truncation_never_scores_an_eos_that_was_cut(tokenizer):
    messages = dialogue("One?", "First answer.", "Two?", "Second answer.")
    ids, labels = encode(tokenizer, messages, 2048)
    for length in range(1, len(ids) + 1):
        assert encode(tokenizer, messages, length) == (ids[:length], labels[:length])


def test_the_printer_shows_what_is_scored_in_brackets():
    """UTF-8 has three bytes for each of the two characters, and so has the bundled tokenizer three tokens."""
    shown = command("data/format.py", "Grüße?", "日本.").stdout.replace("·", "")
    for asked in ("Grüße?", ""):
        tokens = f"<s><|user|>\\n\n{asked}\\n\n<|assistant|>\\n\n[][][日][][][本][.][</s>]\n"
        assert f"the loss falls on 8.\n\n{tokens}" in shown


def test_the_printer_shows_what_is_scored_in_brackets():
    """UTF-8 has three bytes for each of the two characters, and so has the bundled tokenizer three tokens."""
    shown = command("data/format.py", "Grüße?", "日本.").stdout.replace("·", "")
    for asked in ("Grüße?", ""):
        tokens = f"<s><|user|>\\n\n{asked}\\n\n<|assistant|>\\n\n[][][日][][][本][.][</s>]\n"
        assert f"the loss falls on 8.\n\n{tokens}" in shown


def test_a_document_is_scored_whole(tokenizer):
    ids, labels = encode_document(tokenizer, "A text.", 100)
    assert ids == labels == [0] + tokenizer.encode("A text.").ids + [1]
    assert encode_document(tokenizer, "A text.", 3) == (ids[:3], ids[:3])


def test_a_model_without_bos_begins_with_the_text_and_one_of_several_eos_ends_with_the_first(tmp_path, tokenizer):
    """Without BOS, as the paper's authors train OLMo."""
    other = tokenizer_of(tmp_path, {"vocab_size": 1536, "eos_token_id": [1, 7], "bos_token_id": None})
    messages = dialogue("One?", "First answer.")
    assert other.eos_ids == [1, 7] and encode_prompt(other, "Hi") == encode_prompt(tokenizer, "Hi")[1:]
    assert encode(other, messages, 99) == tuple(row[1:] for row in encode(tokenizer, messages, 99))
    assert encode_document(other, "A text.", 99)[0] == encode_document(tokenizer, "A text.", 99)[0][1:]


@pytest.mark.parametrize("model_type, bos, eos", [("llama", 1, 2), ("mistral", 1, 2), ("olmo", None, 50279)])
def test_absent_ids_are_those_of_transformers_classes(tmp_path, model_type, bos, eos):
    """LlamaConfig(), MistralConfig() and OlmoConfig() of transformers 5.24."""
    tokenizer = tokenizer_of(tmp_path, {"model_type": model_type})
    assert (tokenizer.bos_id, tokenizer.eos_id) == (bos, eos)


def set_first(file):
    """As in Mistral-7B-v0.3: no normaliser, and "▁" before the beginning of a text only."""
    file["normalizer"] = None
    file["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


def set_flags(file, **flags):
    for token in file["added_tokens"]:
        token |= flags


def add_tags(file, first=600):
    for i, tag in enumerate(("<|user|>", "<|assistant|>"), first):
        file["added_tokens"].append(file["added_tokens"][0] | {"id": i, "content": tag})


KINDS = {  # of tokenizers: byte-level ones with BOS and without, SentencePiece's, and what makes each special
    "bytes": None, "bytes, no BOS": None, "bytes, tags": add_tags,
    "SentencePiece": None, "SentencePiece, tags": add_tags,
    "SentencePiece, normalized": lambda file: set_flags(file, normalized=True),  # as huggyllama/llama-7b's
    "SentencePiece, strip": lambda file: set_flags(file, lstrip=True, rstrip=True, single_word=True),
    "SentencePiece, first": set_first, "SentencePiece, first, no BOS": set_first,
}


@pytest.fixture(scope="module", params=KINDS)
def other(request, tmp_path_factory):
    texts, folder = [" ".join(text) for text in TEXTS] * 5, tmp_path_factory.mktemp("model")
    bpe = sentencepiece(texts) if "SentencePiece" in request.param else train_tokenizer(texts, 400)
    file = json.loads(bpe.to_str())
    (KINDS[request.param] or (lambda file: None))(file)
    (folder / "tokenizer.json").write_text(json.dumps(file))
    bos = None if "no BOS" in request.param else 0
    (folder / "config.json").write_text(json.dumps({"vocab_size": 602, "bos_token_id": bos, "eos_token_id": 1}))
    return Tokenizer(folder)


class WrittenFolder:
    """What a tool such as transformers does with the folder that training writes: the right values.

    It renders the template with jinja2 (which torch requires), set as transformers sets it, and tokenises the whole
    with the tokenizers library, BOS and EOS in it as special tokens, and none added.
    """

    def __init__(self, base, folder, prompt=PROMPT):
        write_companions(folder, base, True, prompt)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        self.texts = {key: settings[key] for key in ("bos_token", "eos_token") if settings[key]}
        self.bpe = BPE.from_file(str(folder / "tokenizer.json"))
        jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self.template = jinja.from_string((folder / "chat_template.jinja").read_text())

    def tokens(self, messages, **options):
        text = self.template.render(messages=messages, **self.texts, **options)
        return self.bpe.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("prompt", [PROMPT, '<|"A"|>\n{instruction}\n\\n«🙂»\n'])
def test_the_chat_template_is_the_format_that_is_trained(other, tmp_path, prompt):
    written, messages = WrittenFolder(other.path.parent, tmp_path, prompt), dialogue(
        " One?", "First {{ answer }}.", "", "Grüße\n", "Three?\n", "- a\n- b", "<|user|>▁x", "")
    assert written.tokens(messages) == encode(other, messages, 2048, prompt=prompt)[0]
    assert written.tokens(messages[:1], add_generation_prompt=True) == encode_prompt(other, " One?", prompt)
    check_template(other)


def test_a_list_of_parts_is_rendered_as_its_text(tokenizer, tmp_path):
    parts = [{"type": "text", "text": " What is "}, {"type": "text", "text": "this?\n"}]
    tokens = WrittenFolder(TINY, tmp_path).tokens([{"role": "user", "content": parts}], add_generation_prompt=True)
    assert tokens == encode_prompt(tokenizer, "What is this?")


def test_tags_that_are_special_tokens_are_tokens_of_the_format(tmp_path):
    """The ids are those of transformers 5.24: AutoTokenizer.from_pretrained(folder).apply_chat_template(...)."""
    def add_special_tags(file):
        add_tags(file, 1536)
        set_flags(file, normalized=True, rstrip=True)

    tokenizer = tokenizer_of(tmp_path, {"vocab_size": 1600, "bos_token_id": 0, "eos_token_id": 1}, add_special_tags)
    assert encode_prompt(tokenizer, "Hi") == [0, 1536, 200, 41, 74, 200, 1537, 200]


@pytest.mark.parametrize("change, vocab_size, message", [
    (lambda file: None, 1000, "the id 1535, config.json a vocab_size of 1000"),
])
def test_a_tokenizer_that_cannot_serve_the_model_is_refused(tmp_path, change, vocab_size, message):
    with pytest.raises(ValueError, match=message) as error:
        encode_prompt(tokenizer_of(tmp_path, {"vocab_size": vocab_size, "eos_token_id": 1}, change), "Hi")
    assert str(tmp_path / "tokenizer.json") in str(error.value)


def test_truncation_and_padding_set_in_the_file_are_switched_off(tmp_path, tokenizer):
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "<s>"}
    other = tokenizer_of(tmp_path, {"vocab_size": 1536, "eos_token_id": 1},
                         lambda file: file.update(truncation=truncation, padding=padding))
    assert other.encode("one two three four").ids == tokenizer.encode("one two three four").ids


def test_tokenizer_training_is_deterministic_and_gives_the_size_asked_for():
    texts = [f"In {year} the river rose." for year in range(1000, 1400)]
    a, b = train_tokenizer(texts, 265), train_tokenizer(texts, 265)
    assert a.to_str() == b.to_str() and a.get_vocab_size() == 265
    assert a.token_to_id("<s>") == 0 and a.token_to_id("</s>") == 1


@pytest.mark.parametrize("row, problem", [
    ([1, 2], 'expected {"messages": [...]}, found [1, 2]'), ({"messages": []}, 'expected {"messages": [...]}'),
    ({"messages": [{"role": "system", "content": "x"}]}, 'message 1 must be {"role": "user"'),
    ({"messages": dialogue("x", 3)}, "message 2 must be"), ({"messages": ["x"]}, "message 1 must be"),
    ({"messages": dialogue("x")}, "the last message must be the assistant's"),
])
def test_what_is_no_dialogue_is_said(row, problem):
    assert check_dialogue(row).startswith(problem)
    assert check_dialogue({"messages": dialogue("a", "b")}) is None
