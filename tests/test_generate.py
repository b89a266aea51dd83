"""generate.py: batched decoding against decoding one at a time with no cache, and the command line."""
import json
import math
import os
import platform
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, assert_refused, command
from safetensors.torch import load_file

from data.format import encode_prompt
from generate import CACHE_BLOCK, choose, generate, stream, write_answers
from model import Config, Llama

INSTRUCTIONS = [
    "Hi", "What is the capital of Nastekor?", "Tell me a word that means the opposite of narrow.", "Write a poem about dust.",
    "Ben has 3 apples and buys 4 more. How many apples does Ben have now?", "word " * 60,
]


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [encode_prompt(tokenizer, text) for text in INSTRUCTIONS]


@torch.inference_mode()
def slow_greedy(model, prompt, eos_id, max_new_tokens):
    """Obviously right: run the whole sequence again for every token."""
    ids = list(prompt)
    while len(ids) - len(prompt) < max_new_tokens:
        token = model(torch.tensor([ids]))[0, -1].argmax().item()
        if token == eos_id:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_batched_decoding_equals_one_by_one_and_cached_equals_uncached(small_model, prompts):
    """Ragged prompts, rows that end at different steps, and a cache that has to grow."""
    n = CACHE_BLOCK + 20
    slow = [slow_greedy(small_model, prompt, -1, n) for prompt in prompts]
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
    for temperature, top_p, expected in [(1, 1, [0.5, 0.3, 0.15, 0.05]), (1, 0.75, [0.625, 0.375, 0, 0]), (1, 0.1, [1.0, 0, 0, 0])]:
        counts = choose(logits, temperature, top_p, generator).bincount(minlength=4) / 20000
        torch.testing.assert_close(counts, torch.tensor(expected), atol=0.015, rtol=0)  # 4 standard errors
    hot = choose(logits, 2.0, 1.0, generator).bincount(minlength=4) / 20000
    expected = torch.tensor([0.5, 0.3, 0.15, 0.05]).sqrt()
    torch.testing.assert_close(hot, expected / expected.sum(), atol=0.015, rtol=0)
    assert choose(logits, 0, 1.0).unique().tolist() == [0]


def test_streaming_prints_what_decoding_returns(small_model, tokenizer, capsys):
    options = dict(max_new_tokens=40, temperature=1.0)
    stream(small_model, tokenizer, "Hi", generator=torch.Generator().manual_seed(3), **options)
    shown = capsys.readouterr().out
    ids = generate(small_model, [encode_prompt(tokenizer, "Hi")], 1, generator=torch.Generator().manual_seed(3), **options)[0]
    assert shown.rstrip("\n") == tokenizer.decode(ids).rstrip("\ufffd\n")


def test_an_interrupted_file_goes_on_where_it_stopped(tmp_path):
    instructions, asked = [f"question {i}" for i in range(10)], []

    def decode(batch, start, stop=math.inf):
        assert batch == instructions[start : start + 3]
        if start >= stop:
            raise KeyboardInterrupt
        asked.append(start)
        return [text.upper() for text in batch]

    path, settings = tmp_path / "answers.json", {"generator": "m", "batch_size": 3}
    with pytest.raises(KeyboardInterrupt):
        write_answers(path, instructions, settings, lambda batch, start: decode(batch, start, stop=6))
    assert not path.exists()
    partial = tmp_path / "answers.json.partial"
    with open(partial, "a") as file:
        # a process killed while it wrote the third batch: one whole line of it and a torn one
        file.write('{"instruction": "question 6", "output": "QUESTION 6", "generator": "m"}\n{"instruction": "quest')
    write_answers(path, instructions, settings, decode)
    assert asked == [0, 3, 6, 9] and not partial.exists()
    assert json.loads(path.read_text()) == [{"instruction": t, "output": t.upper(), "generator": "m"} for t in instructions]


def test_answers_of_other_settings_are_not_continued(tmp_path, capsys):
    path, instructions = tmp_path / "answers.json", ["a", "b"]
    (tmp_path / "answers.json.partial").write_text('{"generator": "old"}\n{"instruction": "a", "output": "stale", "generator": "old"}\n')
    write_answers(path, instructions, {"generator": "new", "batch_size": 1}, lambda batch, start: batch)
    assert [row["output"] for row in json.loads(path.read_text())] == ["a", "b"]
    assert "starting afresh" in capsys.readouterr().err


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"instruction": text}) + "\n" for text in INSTRUCTIONS[:5]))
    return path


def test_the_command_line_writes_alpacaevals_format(questions, tmp_path):
    output = tmp_path / "deep" / "answers.json"
    result = command("generate.py", "--model", TINY, "--input", questions, "--output", output, "--max-new-tokens", 8, "--batch-size", 2)
    assert result.returncode == 0, result.stderr
    assert "4/5 answers" in result.stderr and "left" in result.stderr
    rows = json.loads(output.read_text())
    assert [row["instruction"] for row in rows] == INSTRUCTIONS[:5]
    assert all(row.keys() == {"instruction", "output", "generator"} and row["generator"] == str(TINY) for row in rows)


def test_several_models_are_shown_side_by_side(questions):
    result = command("generate.py", "--model", TINY, "data/tiny", "--input", questions, "--limit", 2, "--max-new-tokens", 4)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"[{TINY}]") == result.stdout.count("[data/tiny]") == 2
    assert INSTRUCTIONS[2] in result.stdout and INSTRUCTIONS[1] not in result.stdout


def test_bad_input_is_refused_in_one_sentence(questions, tmp_path):
    assert_refused(command("generate.py", "--model", tmp_path, "--prompt", "Hi"), tmp_path / "config.json", "does not exist")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((TINY / name).read_bytes())
    assert_refused(command("generate.py", "--model", tmp_path, "--prompt", "Hi"), tmp_path / "tokenizer.json", "does not exist")
    (tmp_path / "tokenizer.json").write_text("<html>")
    assert_refused(command("generate.py", "--model", tmp_path, "--prompt", "Hi"), tmp_path / "tokenizer.json", "not a tokenizer")
    assert_refused(command("generate.py", "--model", TINY, "--input", tmp_path / "none.jsonl"), "none.jsonl", "does not exist")
    questions.write_text('{"instruction": "a"}\n{"prompt": "b"}\n')
    assert_refused(command("generate.py", "--model", TINY, "--input", questions), f"{questions} line 2")
    assert_refused(command("generate.py", "--model", TINY, "--prompt", "word " * 400), "no room to answer")
    assert_refused(command("generate.py", "--model", TINY, "--prompt", "Hi", "--rules", "eos,luck"), "luck")
    assert_refused(command("generate.py", "--model", TINY, "--prompt", "Hi", "--output", "x.json"), "--output goes with --input")
    assert_refused(command("generate.py", "--model", TINY, "--input", questions, "--output", questions), questions, "a file of its own")
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
    slow = [slow_greedy(small_model, prompt, -1, 40) for prompt in batch]
    eos_id = next(t for t in slow[0][3:] if len({ids.index(t) if t in ids else 40 for ids in slow}) > 2)
    slow = [ids[: ids.index(eos_id)] if eos_id in ids else ids for ids in slow]
    assert generate(small_model, batch, eos_id, 40) == slow


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_packed_weights_give_the_same_logits(dtype, tolerance):
    config = Config(vocab_size=512, hidden_size=384, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
                    max_position_embeddings=64, eos_token_id=1, tie_word_embeddings=True)
    model = Llama(config).init_weights(torch.Generator().manual_seed(0)).to(dtype)
    ids = torch.arange(5, 45).view(2, 20)
    with torch.inference_mode():
        expected = model(ids)
        packed = model.pack()(ids)
    torch.testing.assert_close(packed, expected, rtol=tolerance, atol=tolerance)
    if platform.machine() == "x86_64":
        assert model.head.packed is not None and model.model.layers[0].mlp.up_proj.weight is None


def test_under_torchrun_the_instructions_are_split_and_joined(questions, tmp_path):
    output = tmp_path / "out.json"
    arguments = ["--model", str(TINY), "--input", str(questions), "--max-new-tokens", "8", "--device", "cpu", "--batch-size", "2"]
    result = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "generate.py", *arguments,
                             "--output", str(output)], cwd=ROOT, text=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    split = json.loads(output.read_text())
    assert command("generate.py", *arguments, "--output", output).returncode == 0
    assert split == json.loads(output.read_text())
    assert list(tmp_path.glob("out.json*")) == [output]
