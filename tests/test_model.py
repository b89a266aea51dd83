"""model.py against transformers (tests/golden) and against itself: the cache, padding, files, refusals."""
import json
import os
import shutil

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model import ARCHITECTURES, INDEX, Config, Llama, replacing

GOLDEN = sorted(path.name for path in (ROOT / "tests" / "golden").iterdir() if path.is_dir())


@pytest.fixture(params=GOLDEN)
def golden(request):
    return ROOT / "tests" / "golden" / request.param


@pytest.fixture
def copy(tmp_path):
    """A checkpoint that a test may damage."""
    return shutil.copytree(ROOT / "tests" / "golden" / "llama2", tmp_path / "model")


def edit(path, **changes):
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


def test_golden_checkpoints_cover_what_differs_between_models():
    configs = [Config.from_json(ROOT / "tests" / "golden" / name / "config.json") for name in GOLDEN]
    assert {c.tie_word_embeddings for c in configs} == {True, False}
    assert any(c.num_key_value_heads < c.num_attention_heads for c in configs)
    assert {c.model_type for c in configs} == set(ARCHITECTURES)
    assert {c.dtype for c in configs} == {"float32", "float16"}
    assert any(c.rope_scaling for c in configs) and any(c.clip_qkv for c in configs) and any(c.sliding_window for c in configs)
    assert any((ROOT / "tests" / "golden" / name / INDEX).exists() for name in GOLDEN)


def test_logits_equal_those_of_transformers(golden):
    expected = load_file(golden / "golden.safetensors")
    logits = Llama.from_pretrained(golden)(expected["ids"])
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)


def test_bf16_is_near_fp32(golden):
    expected = load_file(golden / "golden.safetensors")
    logits = Llama.from_pretrained(golden, dtype=torch.bfloat16)(expected["ids"])
    assert logits.dtype == torch.bfloat16
    error = (logits.float() - expected["logits"]).norm() / expected["logits"].norm()
    assert error < 0.02  # 8 bits of mantissa, two layers


def test_saved_model_is_the_same_model(golden, tmp_path):
    model = Llama.from_pretrained(golden)
    model.save_pretrained(tmp_path)
    again = Llama.from_pretrained(tmp_path)
    assert again.config == model.config
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert ("lm_head.weight" in file.keys()) == (not model.config.tie_word_embeddings)


def test_saved_dtype_is_the_weights_own(golden, tmp_path):
    Llama.from_pretrained(golden, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert all(t.dtype == torch.bfloat16 for t in load_file(tmp_path / "model.safetensors").values())


def test_what_comes_later_cannot_reach_back(golden):
    """So padding on the right needs no mask."""
    model = Llama.from_pretrained(golden)
    ids = torch.randint(3, 128, (2, 20), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, 12:] = 3
    assert torch.equal(model(ids)[:, :12], model(changed)[:, :12])
    assert not torch.equal(model(ids)[:, 12:], model(changed)[:, 12:])


def test_cache_gives_the_logits_of_the_whole_sequence(golden):
    """Ragged prompts in one batch, then one token and several tokens at a time, each row at its own length."""
    model = Llama.from_pretrained(golden)
    ids = load_file(golden / "golden.safetensors")["ids"]  # (3, 40)
    whole = model(ids)
    lengths = torch.tensor([3, 11, 7])
    cache = model.new_cache(3, 48)
    prompt = model(ids[:, :11], cache)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(prompt[row, :n], whole[row, :n], atol=1e-5, rtol=1e-5)
    for step in (1, 1, 5, 1):
        columns = lengths[:, None] + torch.arange(step)  # (3, step)
        rows = torch.arange(3)[:, None]
        logits = model(ids[rows, columns], cache, lengths)
        torch.testing.assert_close(logits, whole[rows, columns], atol=1e-5, rtol=1e-5)
        lengths = lengths + step


@pytest.mark.parametrize("changes, fragment", [
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}}, "rope_scaling of type 'yarn'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "rope_scaling: high_freq_factor"),
    ({"model_type": "gpt2"}, "model_type = 'gpt2'"),
    ({"model_type": "olmo"}, "architectures"),
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"attention_bias": True}, "attention_bias"),
    ({"architectures": ["MixtralForCausalLM"]}, "architectures"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"vocab_size": None}, "vocab_size"),
    ({"eos_token_id": [2, 3]}, "eos_token_id"),
    ({"eos_token_id": 128}, "eos_token_id"),
    ({"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta"),
    ({"dtype": "auto"}, "dtype"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"rope_parameters": "default"}, "rope_parameters"),
])
def test_config_that_is_not_supported_is_refused_by_key(copy, changes, fragment):
    edit(copy, **changes)
    with pytest.raises(ValueError, match=fragment) as error:
        Llama.from_pretrained(copy)
    assert str(copy / "config.json") in str(error.value)


def test_config_without_a_key_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    del config["hidden_size"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="missing hidden_size"):
        Llama.from_pretrained(copy)


def test_missing_tensor_is_named(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ValueError, match="missing model.layers.1.mlp.up_proj.weight"):
        Llama.from_pretrained(copy)


def test_unexpected_tensor_is_named(copy):
    tensors = load_file(copy / "model.safetensors") | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ValueError, match="unexpected model.layers.0.self_attn.q_proj.bias"):
        Llama.from_pretrained(copy)


def test_wrong_shape_is_named_with_both_shapes(copy):
    edit(copy, intermediate_size=80)
    with pytest.raises(ValueError, match=r"down_proj.weight is \(32, 72\), config.json asks for \(32, 80\)"):
        Llama.from_pretrained(copy)


def test_truncated_file_is_refused(copy):
    path = copy / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Llama.from_pretrained(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_absent_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Llama.from_pretrained(copy)


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint in four files that a test may damage."""
    return shutil.copytree(ROOT / "tests" / "golden" / "mistral", tmp_path / "model")


def test_a_shard_that_is_absent_truncated_or_of_a_wrong_shape_is_named(sharded):
    shard = sharded / "model-00002-of-00004.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="model-00002-of-00004.safetensors is not a whole safetensors file"):
        Llama.from_pretrained(sharded)
    shard.write_bytes(whole)
    edit(sharded, intermediate_size=80)
    with pytest.raises(ValueError, match=r"model-0000.-of-00004.safetensors: .* config.json asks for"):
        Llama.from_pretrained(sharded)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="names model-00002-of-00004.safetensors, not found beside it"):
        Llama.from_pretrained(sharded)


@pytest.mark.parametrize("index, message", [
    ("<html>", "fetch it again"), ("[]", "fetch it again"), ('{"weight_map": {"a": "../../b.safetensors"}}', "fetch it again"),
    ('{"weight_map": {"lm_head.weight": "model-00001-of-00004.safetensors"}}', "missing model"),
])
def test_an_index_that_is_none_or_not_whole_is_refused(sharded, index, message):
    (sharded / INDEX).write_text(index)
    with pytest.raises(ValueError, match=message) as error:
        Llama.from_pretrained(sharded)
    assert INDEX in str(error.value)


def test_a_sequence_past_the_sliding_window_is_refused():
    model = Llama.from_pretrained(ROOT / "tests" / "golden" / "mistral")
    assert model.config.context == 48 < model.config.max_position_embeddings
    model(torch.zeros(1, 48, dtype=torch.int64))
    with pytest.raises(ValueError, match="sliding window of 48"):
        model(torch.zeros(1, 49, dtype=torch.int64))


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
