"""generate.py: batched decoding against decoding one at a time with no cache, and the command line."""
import copy
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY, assert_refused, command, on_two_ranks, sentencepiece
from safetensors.torch import load_file

import generate as module
from data import device
from data.format import Tokenizer, encode_prompt
from generate import choose, generate, generate_slowly, stream
from model import KVCache, Llama

INSTRUCTIONS = [
    "Hi", "What is the capital of Brabrol?", "Tell me a word that means the opposite of narrow.",
    "Write a poem about dust.",
    "Ben has 3 apples and buys 4 more. How many apples does Ben have now?", "word " * 60,
]


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [encode_prompt(tokenizer, text) for text in INSTRUCTIONS]


def test_batched_decoding_equals_one_by_one_and_cached_equals_uncached(small_model, prompts):
    """Ragged prompts, rows that end at different steps, and a cache that has to grow."""
    n = KVCache.BLOCK + 20
    slow = [generate_slowly(small_model, prompt, -1, n) for prompt in prompts]
    eos_id = slow[1][10]  # a token that some rows come to: they leave the batch there
    slow = [ids[: ids.index(eos_id)] if eos_id in ids else ids for ids in slow]
    assert len({len(ids) for ids in slow}) > 1 and max(map(len, slow)) == n
    assert generate(small_model, prompts, eos_id, n) == slow
    assert [generate(small_model, [prompt], eos_id, n)[0] for prompt in prompts] == slow


@pytest.mark.parametrize("name", ["llama2", "smollm2"])
def test_greedy_tokens_equal_those_of_transformers(name):
    golden = load_file(ROOT / "tests" / "golden" / name / "golden.safetensors")
    model = Llama.from_pretrained(ROOT / "tests" / "golden" / name)
    assert generate(model, golden["ids"][:, :8].tolist(), -1, 24) == golden["greedy"].tolist()


def test_decoding_stops_at_any_of_several_eos():
    """transformers' greedy tokens, cut where the first of two tokens stands that some rows come to."""
    golden = load_file(ROOT / "tests" / "golden" / "llama2" / "golden.safetensors")
    greedy, model = golden["greedy"].tolist(), Llama.from_pretrained(ROOT / "tests" / "golden" / "llama2")
    ends = [greedy[0][5], greedy[1][9]]
    expected = [ids[: min([i for i, t in enumerate(ids) if t in ends], default=24)] for ids in greedy]
    prompts = golden["ids"][:, :8].tolist()
    assert generate(model, prompts, ends, 24) == expected and expected[0] and expected[1]
    assert [generate_slowly(model, prompt, ends, 24) for prompt in prompts] == expected


def test_activations_beyond_fp16_end_in_a_sentence_that_names_bfloat16(small_model, prompts):
    """fp16 ends at 65,504; bf16 and fp32 hold the same weights and activations."""
    model = copy.deepcopy(small_model)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.mul_(1e5)
    generate(model, prompts[:2], 1, 5)
    generate(model.to(torch.bfloat16), prompts[:2], 1, 5)
    for options in ({}, {"temperature": 1.0}):
        with pytest.raises(ValueError, match="not finite in torch.float16; add --dtype bfloat16"):
            generate(model.to(torch.float16), prompts[:2], 1, 5, **options)


def test_a_response_ends_with_the_context(small_model, prompts):
    room = small_model.config.context - len(prompts[-1])
    assert [len(ids) for ids in generate(small_model, prompts[-1:], -1, 10**6)] == [room]
    ragged = generate(small_model, [prompts[0], prompts[-1]], -1, 10**6)
    assert [len(ids) for ids in ragged] == [small_model.config.context - len(prompts[0]), room]
    with pytest.raises(ValueError, match="no room to answer"):
        generate(small_model, [prompts[0], [3] * 512], 1, 5)


def test_sampling_follows_the_softmax_within_the_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(20000, 1)
    generator = torch.Generator().manual_seed(0)
    for top_p, expected in [(1, [0.5, 0.3, 0.15, 0.05]), (0.75, [0.625, 0.375, 0, 0]), (0.1, [1.0, 0, 0, 0])]:
        counts = choose(logits, 1.0, top_p, generator).bincount(minlength=4) / 20000
        torch.testing.assert_close(counts, torch.tensor(expected), atol=0.015, rtol=0)  # 4 standard errors
    hot = choose(logits, 2.0, 1.0, generator).bincount(minlength=4) / 20000
    expected = torch.tensor([0.5, 0.3, 0.15, 0.05]).sqrt()
    torch.testing.assert_close(hot, expected / expected.sum(), atol=0.015, rtol=0)
    assert choose(logits, 0, 1.0).unique().tolist() == [0]
    assert choose(logits, 1, 1e-300, generator).unique().tolist() == [0]  # the likeliest is always kept


def test_streaming_prints_what_decoding_returns(small_model, tokenizer, capsys):
    options = dict(max_new_tokens=40, temperature=1.0)
    stream(small_model, tokenizer, "Hi", generator=torch.Generator().manual_seed(3), **options)
    shown = capsys.readouterr().out
    options["generator"] = torch.Generator().manual_seed(3)
    ids = generate(small_model, [encode_prompt(tokenizer, "Hi")], 1, **options)[0]
    assert shown == tokenizer.decode(ids) + "\n"


@pytest.mark.parametrize("pieces, shown", [  # Unicode: a byte that belongs to no character is shown as U+FFFD
    ("a <0xC3> <0xA9> a <0xC3>", ["a", "é", "a", "\ufffd"]),
    ("a <0xF0> <0x9F> <0x99> <0x82>", ["a", "🙂"]), ("a </s> a", ["a", "a"]),
    ("a Ã © a Ã", ["a", "é", "a", "\ufffd"]),  # byte-level: Ã and © stand for the bytes C3 and A9
])
def test_bytes_are_shown_when_they_are_characters(small_model, tokenizer, tmp_path, monkeypatch, pieces, shown):
    """In the end all is printed that decoding without streaming returns."""
    if "Ã" not in pieces:
        sentencepiece(["a"]).save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "config.json").write_text('{"vocab_size": 600, "bos_token_id": 0, "eos_token_id": 1}')
        tokenizer = Tokenizer(tmp_path)
    parts = []
    ids = [tokenizer.bpe.token_to_id(piece) for piece in pieces.split()]
    monkeypatch.setattr(module, "generate", lambda *_, on_token: [on_token(0, i) for i in ids])
    monkeypatch.setattr("builtins.print", lambda text, **_: parts.append(text))
    stream(small_model, tokenizer, "Hi")
    assert [part for part in parts if part] == shown and "".join(shown) == tokenizer.decode(ids)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"instruction": text}) + "\n" for text in INSTRUCTIONS[:5]))
    return path


def test_the_command_line_writes_alpacaevals_format(questions, tmp_path):
    output = tmp_path / "deep" / "answers.json"
    result = command("generate.py", "--model", TINY, "--input", questions, "--output", output,
                     "--max-new-tokens", 8, "--batch-size", 2)
    assert result.returncode == 0, result.stderr
    assert "2/3 batches" in result.stderr and "left" in result.stderr
    rows = json.loads(output.read_text())
    assert [row["instruction"] for row in rows] == INSTRUCTIONS[:5]
    assert all(row.keys() == {"instruction", "output", "generator"} and row["generator"] == str(TINY) for row in rows)


def test_answers_are_decoded_again_where_anything_that_made_them_has_changed(questions, tmp_path):
    output, model = tmp_path / "answers.json", tmp_path / "model"
    shutil.copytree(TINY, model)

    def decodes(*more):
        before = output.stat().st_mtime_ns if output.exists() else 0
        result = command("generate.py", "--model", model, "--input", questions, "--output", output,
                         "--max-new-tokens", 3, *more)
        assert result.returncode == 0, result.stderr
        assert ("is finished" in result.stdout) == (output.stat().st_mtime_ns == before)
        return output.stat().st_mtime_ns != before

    assert decodes() and not decodes()
    assert decodes("--rules", "repeats") and decodes("--rules", "repeats", "--penalise-prompt")
    assert decodes("--rules", "eos") and decodes("--seed", 2) and not decodes("--seed", 2)
    questions.write_text(questions.read_text().replace("Hi", "Ho"))
    assert decodes("--seed", 2)
    config = json.loads((model / "config.json").read_text()) | {"rope_theta": 500.0}
    (model / "config.json").write_text(json.dumps(config))
    assert decodes("--seed", 2) and not decodes("--seed", 2)
    (tmp_path / "answers.json.settings.json").write_text("<html>")
    assert decodes("--seed", 2)


def test_answers_are_those_of_the_code_that_made_them(tmp_path, monkeypatch):
    """A reader changes a number of adapter.py: what was kept before must not be shown for what it gives now."""
    for name in ("generate.py", "adapter.py", "model.py", "data/format.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "generate.py"))
    options = ("penalise_prompt", "batch_size", "max_new_tokens", "temperature", "top_p", "seed")
    args = SimpleNamespace(rules=("tokens",), **dict.fromkeys(options, 0))
    before = module.settings_of(args, TINY, torch.float32, ["Hi"])
    adapter = (tmp_path / "adapter.py").read_text()
    (tmp_path / "adapter.py").write_text(adapter.replace('"What": -5', '"What": 0'))
    changed = module.settings_of(args, TINY, torch.float32, ["Hi"])
    assert [key for key in before if before[key] != changed[key]] == ["code_sha256"]


def test_an_instruction_that_is_too_long_is_named_before_the_first_is_answered(questions, tmp_path):
    with open(questions, "a") as file:
        file.write(json.dumps({"instruction": "again " * 400}) + "\n")
    result = command("generate.py", "--model", TINY, "--input", questions, "--output", tmp_path / "a.json",
                     "--batch-size", 1)
    assert_refused(result, f"{questions} line 6", "no room to answer", "256")
    assert not list(tmp_path.glob("a.json*"))


def test_no_answer_of_one_seed_is_another_seeds(tmp_path):
    """A seed and a place that were added would give 9 answers to the same question but 5 different ones."""
    (tmp_path / "questions.jsonl").write_text('{"instruction": "Write a poem about dust."}\n' * 3)
    answers = []
    for seed in (1, 2, 3):
        output = tmp_path / f"{seed}.json"
        result = command("generate.py", "--model", TINY, "--input", tmp_path / "questions.jsonl", "--output", output,
                         "--batch-size", 1, "--max-new-tokens", 24, "--temperature", 1, "--seed", seed)
        assert result.returncode == 0, result.stderr
        answers += [row["output"] for row in json.loads(output.read_text())]
    assert len(set(answers)) == 9
    for seed in (-1, 99999999999999999999999, "x"):
        assert_refused(command("generate.py", "--model", TINY, "--prompt", "Hi", f"--seed={seed}"), "--seed")


def test_several_models_are_shown_side_by_side(questions):
    result = command("generate.py", "--model", TINY, "data/tiny", "--input", questions, "--limit", 2,
                     "--max-new-tokens", 4)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"[{TINY}]") == result.stdout.count("[data/tiny]") == 2
    assert INSTRUCTIONS[2] in result.stdout and INSTRUCTIONS[1] not in result.stdout


def test_bad_input_is_refused_in_one_sentence(questions, tmp_path):
    asking = ("generate.py", "--model", tmp_path, "--prompt", "Hi")
    assert_refused(command(*asking), tmp_path / "config.json", "does not exist")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((TINY / name).read_bytes())
    assert_refused(command(*asking), tmp_path / "tokenizer.json", "does not exist")
    (tmp_path / "tokenizer.json").write_text("<html>")
    assert_refused(command(*asking), tmp_path / "tokenizer.json", "not a tokenizer")
    result = command("generate.py", "--model", TINY, "--input", tmp_path / "none.jsonl")
    assert_refused(result, "none.jsonl", "does not exist")
    questions.write_text('{"instruction": "a"}\n{"prompt": "b"}\n')
    assert_refused(command("generate.py", "--model", TINY, "--input", questions), f"{questions} line 2")
    assert_refused(command("generate.py", "--model", TINY, "--prompt", "word " * 400), "no room to answer")
    assert_refused(command("generate.py", "--model", TINY, "--prompt", "Hi", "--rules", "eos,luck"), "luck", "repeats")
    result = command("generate.py", "--model", TINY, "--prompt", "Hi", "--rules", "eos", "--penalise-prompt")
    assert_refused(result, "--penalise-prompt", "repeats")
    assert_refused(command("generate.py", "--model", TINY, "--prompt", "caf\udce9"), "--prompt", "UTF-8")
    result = command("generate.py", "--model", TINY, "--prompt", "Hi", "--output", "x.json")
    assert_refused(result, "--output goes with --input")
    result = command("generate.py", "--model", TINY, "--input", questions, "--output", questions)
    assert_refused(result, questions, "a file of its own")
    result = command("generate.py", "--model", TINY, "--input", questions, "--output", "/dev/null")
    assert_refused(result, "/dev/null", "a file of its own")
    assert_refused(command("generate.py", "--model", TINY, "--prompt", "Hi", "--device", "abacus"), "abacus")


def test_logits_are_made_of_the_last_position_only(small_model, prompts, monkeypatch):
    """However long the prompt, the vocabulary matrix sees one hidden state a row."""
    shapes, plain = set(), small_model.logits
    monkeypatch.setattr(small_model, "logits", lambda h: shapes.add(tuple(h.shape)) or plain(h))
    for prompt in (prompts[0], prompts[0] * 20):
        generate(small_model, [prompt] * 4, -1, 3)
    assert shapes == {(4, small_model.config.hidden_size)}


def test_rows_that_stay_after_their_end_change_nothing(small_model, prompts):
    """Rows leave by the quarter of a batch: of eight, the first to finish stays until there are two."""
    batch = [prompts[i % len(prompts)] + [5 + i] for i in range(8)]
    slow = [generate_slowly(small_model, prompt, -1, 40) for prompt in batch]
    eos_id = next(t for t in slow[0][3:] if len({ids.index(t) if t in ids else 40 for ids in slow}) > 2)
    slow = [ids[: ids.index(eos_id)] if eos_id in ids else ids for ids in slow]
    assert generate(small_model, batch, eos_id, 40) == slow


def test_under_torchrun_the_instructions_are_split_and_joined(questions, tmp_path):
    arguments = ["generate.py", "--model", TINY, "--input", questions, "--max-new-tokens", 8, "--device", "cpu",
                 "--batch-size", 2]
    (result,) = on_two_ranks([*arguments, "--output", tmp_path / "split.json"])
    assert result.returncode == 0, result.stderr
    assert command(*arguments, "--output", tmp_path / "whole.json").returncode == 0
    assert json.loads((tmp_path / "split.json").read_text()) == json.loads((tmp_path / "whole.json").read_text())
    assert sorted(path.name for path in tmp_path.glob("split*")) == ["split.json", "split.json.settings.json"]


def test_where_no_graph_can_be_recorded_decoding_goes_on_without(small_model, prompts, capsys, monkeypatch):
    expected, tries = generate(small_model, prompts, -1, 10), []

    def refuse(*_):
        tries.append(1)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(device.RecordedStep, "record", refuse)
    step, _ = device.decoding_step(small_model)
    monkeypatch.setattr(module, "decoding_step", lambda model: (device.RecordedStep(step), 0.5))
    assert generate(small_model, prompts, -1, 10) == expected
    error = capsys.readouterr().err
    assert len(tries) == 1 and error.count("\n") == 1 and "recording a CUDA graph failed" in error


def test_memory_that_runs_out_is_said_with_what_takes_less(questions, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("model.KVCache.reserve", fail)
    result = command("generate.py", "--model", TINY, "--input", questions, "--output", tmp_path / "a.json")
    assert_refused(result, "memory ran out", "--batch-size")


def test_help_names_every_default():
    text = re.sub(r"\s+", " ", command("generate.py", "--help").stdout)
    assert "side by side (default: 64)" in text and "from 0.01 to 100 (default: 0.0)" in text
    assert "default: None" not in text and "default: False" not in text
