"""tests/bench.py: the memory estimate against autograd, work that fits the context, refusals. No speed is tested."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, assert_refused, command

import bench
from data.common import write_jsonl
from model import Config, Llama


def arguments(**changes):
    return SimpleNamespace(**{"model": TINY, "data": None, "examples": 5, "tokens": 128} | changes)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_the_memory_estimate_is_what_backward_keeps(kv_heads, monkeypatch):
    """`memory` against the bytes that autograd holds; the CPU's norm keeps two fp32 tensors more than the GPU's."""
    monkeypatch.setattr("model.attend", lambda q, k, v, mask: F.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True))
    config = Config(vocab_size=64, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
                    num_key_value_heads=kv_heads, max_position_embeddings=512, eos_token_id=1)
    model, kept = Llama(config).init_weights(), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model.hidden(torch.randint(64, (4, 256)))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copies = 2 * sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    found = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights) - copies
    found -= 2 * config.num_hidden_layers * 4 * config.hidden_size * 4 * 256
    assert found == pytest.approx(bench.memory(config, 4 * 256)["activations"], rel=0.1)


def test_sharding_divides_what_training_keeps():
    config = Config.from_json(TINY / "config.json")
    one, eight = bench.memory(config, 2048), bench.memory(config, 2048, n_ranks=8)
    n = sum(p.numel() for p in Llama(config).parameters())
    assert one["weights"] + one["gradients"] + one["moments"] == 16 * n
    assert eight["moments"] == n and eight["activations"] == one["activations"]


def test_the_memory_table_has_a_row_for_every_number_of_gpus():
    """For 6.7B parameters, Llama-2's: AdamW in fp32 takes 16 bytes a parameter, 108 GB."""
    config = Config(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                    num_attention_heads=32, max_position_embeddings=4096, eos_token_id=2)
    lines = bench.memory_table(config, 2048).splitlines()
    assert lines[2].startswith("| 1 | no | 27.0 | 27.0 | 53.9 | 13.5 |") and lines[2].endswith(" 135.1 |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 1", "| 1", "| 2", "| 2", "| 4", "| 4", "| 8", "| 8"]


def test_memory_reads_a_config_or_the_folder_that_holds_it():
    outputs = {command("tests/bench.py", "--memory", path).stdout for path in (TINY, TINY / "config.json")}
    assert len(outputs) == 1 and "| 8 | yes |" in outputs.pop()


def test_decoding_ends_where_the_context_ends(capsys):
    args = arguments(tokens=500)
    bench.fit_context(args)
    prompt = bench.encode_prompt(bench.Tokenizer(TINY), bench.PROMPT)
    assert args.tokens == 256 - len(prompt) and f"--tokens 500 becomes {args.tokens}" in capsys.readouterr().err
    bench.fit_context(args)
    assert capsys.readouterr().err == ""


def test_training_counts_no_token_beyond_the_context(tmp_path, capsys, tokenizer):
    """Of three dialogues one is cut, and one has no room for a response."""
    def dialogue(n_words, m_words):
        return {"messages": [{"role": "user", "content": "river " * n_words},
                             {"role": "assistant", "content": "river " * m_words}]}

    write_jsonl(tmp_path / "long.jsonl", [dialogue(1, 1), dialogue(1, 5000), dialogue(5000, 1)])
    args = arguments(data=tmp_path / "long.jsonl")
    bench.fit_context(args)
    assert "1 of 2 training examples fill 256 tokens" in capsys.readouterr().err
    assert max(len(ids) for ids, _ in bench.training_examples(args, tokenizer)) == 256
    write_jsonl(tmp_path / "long.jsonl", [dialogue(5000, 1)])
    assert_refused(command("tests/bench.py", "--data", tmp_path / "long.jsonl"), "no response begins within 256 tokens")


@pytest.mark.parametrize("options, reason", [
    (["--rounds", "0"], "--rounds: must be above 0"), (["--examples", "0"], "--examples: must be above 0"),
    (["--tokens", "-1"], "--tokens: must be above 0"), (["--token-budget", "0"], "--token-budget: must be above 0"),
    (["--dtype", "int8"], "--dtype: invalid choice: 'int8'"), (["--device", "abacus"], "invalid device value"),
    (["--memory", "nowhere"], "nowhere does not exist"), (["--model", "nowhere"], "there is no folder nowhere"),
])
def test_bad_options_are_refused(options, reason):
    assert_refused(command("tests/bench.py", *options), reason)
