"""model.py against transformers (tests/golden) and against itself: the cache, padding, saving, reordered weights."""
import json
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import load_file

from data.checkpoint import ARCHITECTURES, INDEX
from data.device import fast_bf16, reorder_weights_for_cpu
from data.format import IGNORE
from model import Config, KVCache, Llama, attend, attend_slowly, visible
from train import collate

GOLDEN = sorted(path.name for path in (ROOT / "tests" / "golden").iterdir() if path.is_dir())


@pytest.fixture(params=GOLDEN)
def golden(request):
    return ROOT / "tests" / "golden" / request.param


def test_golden_checkpoints_cover_what_differs_between_models():
    configs = [Config.from_json(ROOT / "tests" / "golden" / name / "config.json") for name in GOLDEN]
    assert {c.tie_word_embeddings for c in configs} == {True, False}
    assert any(c.num_key_value_heads < c.num_attention_heads for c in configs)
    assert {c.model_type for c in configs} == set(ARCHITECTURES)
    assert {c.dtype for c in configs} == {"float32", "float16"}
    assert all(any(getattr(c, key) for c in configs) for key in ("rope_scaling", "clip_qkv", "sliding_window"))
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
    assert again.config == replace(model.config, dtype="float32")
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
    cache = KVCache(model, 3, 48)
    prompt = model(ids[:, :11], cache)
    cache.advance(lengths)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(prompt[row, :n], whole[row, :n], atol=1e-5, rtol=1e-5)
    for step in (1, 1, 5, 1):
        columns = lengths[:, None] + torch.arange(step)  # (3, step)
        rows = torch.arange(3)[:, None]
        logits = model(ids[rows, columns], cache)
        torch.testing.assert_close(logits, whole[rows, columns], atol=1e-5, rtol=1e-5)
        cache.advance(step)
        lengths = lengths + step


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_shared_beginnings_give_the_outputs_and_gradients_of_the_whole_batch(golden, gradient_checkpointing):
    """Rows that begin alike, equal rows, one that is another's beginning, and one where nothing is scored."""
    model = Llama.from_pretrained(golden)
    model.gradient_checkpointing = gradient_checkpointing
    ids = torch.randint(3, 128, (7, 30), generator=torch.Generator().manual_seed(0))
    ids[1, :14], ids[2, :20], ids[3] = ids[0, :14], ids[1, :20], ids[0]
    scored = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    scored[1, 9:], scored[2, :15], scored[4], scored[:, 0] = False, False, False, False
    labels = ids.where(scored, IGNORE)
    batch = collate(list(zip(ids.tolist(), labels.tolist())), model.device)
    assert batch.targets.tolist() == ids[scored].tolist()
    whole = model.hidden(ids)[:, :-1][scored[:, 1:]]
    part = model.hidden(batch.tokens, shared=(batch.index, batch.places), wanted=batch.scored)
    torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-5)
    weights = list(model.parameters())
    direction = torch.randn(whole.shape, generator=torch.Generator().manual_seed(2))
    for ours, theirs in zip(*(torch.autograd.grad(h, weights, direction, allow_unused=True) for h in (part, whole))):
        if theirs is not None:  # a vocabulary matrix of its own
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_each_beginning_that_is_needed_is_computed_once():
    ids = torch.randint(3, (6, 8), generator=torch.Generator().manual_seed(0)).tolist()  # a few words: many begin alike
    ends = [7, 3, 0, 5, 7, 1]  # the last scored token of each row
    labels = [[IGNORE] * end + row[end : end + 1] + [IGNORE] * (7 - end) for row, end in zip(ids, ends)]
    batch = collate(list(zip(ids, labels)), torch.device("cpu"))
    needed = {tuple(row[: t + 1]) for row, end in zip(ids, ends) for t in range(max(end, 1))}
    width, n = batch.index.shape[1], len(needed)
    computed = [tuple(ids[place // width][: place % width + 1]) for place in batch.places[0].tolist()]
    assert len(set(computed[:n])) == n and set(computed) == needed and len(computed) == 64
    for row, end, index in zip(ids, ends, batch.index.tolist()):
        assert [computed[number] for number in index[:end]] == [tuple(row[: t + 1]) for t in range(end)]


@pytest.mark.parametrize("window", [None, 3])
def test_attention_is_the_softmax_that_it_is_defined_to_be(window):
    """PyTorch's kernels against `attend_slowly`: all keys new, and behind 4 earlier ones."""
    q, k, v = (torch.randn(2, heads, 6, 8, generator=torch.Generator().manual_seed(heads)) for heads in (6, 2, 3))
    v = v[:, :2]
    for n_new in (6, 2):
        mask = visible(torch.arange(6 - n_new, 6)[None], 6, window)
        ours = attend(q[:, :, -n_new:], k, v, None if n_new == 6 and window is None else mask)
        torch.testing.assert_close(ours, attend_slowly(q[:, :, -n_new:], k, v, mask), atol=1e-6, rtol=1e-5)


def test_a_token_sees_no_further_than_the_sliding_window():
    """Through one layer; the golden checkpoint has two, whose logits are transformers'."""
    config = Config.from_json(ROOT / "tests" / "golden" / "mistral" / "config.json")
    model = Llama(replace(config, num_hidden_layers=1)).init_weights(torch.Generator().manual_seed(0))
    ids = torch.arange(40)[None]
    changed = ids.clone()
    changed[0, 5] = 99
    moved = (model(ids) - model(changed)).abs().amax(-1)[0] > 0  # (T,)
    assert moved.nonzero()[:, 0].tolist() == list(range(5, 5 + config.sliding_window))


def test_attention_does_not_count_on_a_layout_of_its_kernels_result(golden, monkeypatch):
    """On a GPU, the kernel for masks gives the result the strides of (B, T, H, D)."""
    def kernel(*arguments, **options):
        return attention(*arguments, **options).transpose(1, 2).contiguous().transpose(1, 2)

    model, ids = Llama.from_pretrained(golden), load_file(golden / "golden.safetensors")["ids"]

    def logits():
        cache = KVCache(model, 3, 40)
        prompt = model(ids[:, :20], cache)
        cache.advance(torch.tensor([20, 7, 13]))
        return prompt, model(ids[:, 20:23], cache)

    expected, attention = logits(), F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    for got, wanted in zip(logits(), expected):
        torch.testing.assert_close(got, wanted)


def test_gathered_tensors_are_saved_in_place_of_the_models_own(tmp_path):
    """Of a model that is sharded over ranks, state_dict() holds this rank's parts alone."""
    model = Llama.from_pretrained(ROOT / "tests" / "golden" / "olmo")
    gathered = {name: torch.full_like(weight, 0.5) for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path, torch.bfloat16, tensors=gathered)
    for weight in Llama.from_pretrained(tmp_path).state_dict().values():
        assert torch.equal(weight, torch.full_like(weight, 0.5))


def wide(tied: bool, dtype):
    """A random model whose matrices are large enough to be worth reordering."""
    config = Config(vocab_size=512, hidden_size=384, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
                    max_position_embeddings=64, eos_token_id=1, tie_word_embeddings=tied)
    return Llama(config).init_weights(torch.Generator().manual_seed(0)).to(dtype)


IDS = torch.arange(5, 45).view(2, 20)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
def test_reordered_weights_give_the_same_logits(dtype, tolerance, tied):
    """On a processor that cannot reorder bf16 the weights stay as they are, and so do the logits."""
    model = wide(tied, dtype)
    with torch.inference_mode():
        expected = model(IDS)
        actual = reorder_weights_for_cpu(model, 2)(IDS)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 CPUs read reordered weights")
def test_reordered_weights_are_kept_once():
    model = reorder_weights_for_cpu(wide(False, torch.float32), 2)
    assert model.model.layers[0].mlp.up_proj.weight is None and model.lm_head.weight is None
    assert model.model.embed_tokens.weight is not None


def test_where_the_processor_refuses_plain_weights_stay(monkeypatch):
    def refuse(*_):
        raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx_ne_convert")

    model = wide(False, torch.float32)
    expected = model(IDS)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    assert torch.equal(reorder_weights_for_cpu(model, 2)(IDS), expected)
    assert model.lm_head.weight is not None and model.model.layers[0].mlp.up_proj.weight is not None


def test_a_build_without_onednn_is_not_asked_for_its_bf16(monkeypatch):
    """As on Apple silicon, where the operator that knows does not exist."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.delattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", raising=False)
    assert fast_bf16("cpu") is False
    model = wide(True, torch.float32)
    assert "logits" not in vars(reorder_weights_for_cpu(model, 2))


def test_loading_does_not_import_the_compiler():
    """It takes a second, which every process here would pay."""
    code = "import sys, model; model.Llama.from_pretrained('data/tiny'); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
