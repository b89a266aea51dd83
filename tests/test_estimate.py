"""tests/estimate.py: the activations against autograd, and the other parts against what AdamW is known to take."""
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_refused, command

from estimate import memory
from model import Config, Llama


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_activations_are_what_backward_keeps(kv_heads, monkeypatch):
    """Against the bytes that autograd holds; the CPU's norm keeps two fp32 tensors more than the GPU's."""
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
    assert found == pytest.approx(memory(config, 4 * 256)["activations"], rel=0.1)


def test_the_table_of_llama_2_7b(tmp_path):
    """AdamW in fp32 takes 16 bytes a parameter, of 6.74 billion; a run on one H200 took 135.1 GB in all."""
    config = {"model_type": "llama", "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    lines = command("tests/estimate.py", tmp_path, "--token-budget", 2048).stdout.splitlines()
    assert lines[2].startswith("| 1 | no | 27.0 | 27.0 | 53.9 | 13.5 |") and lines[2].endswith(" 135.1 |")
    assert lines[9].startswith("| 8 | yes | 3.4 | 3.4 | 6.7 |") and len(lines) == 10
    assert_refused(command("tests/estimate.py", "nowhere"), "nowhere does not exist")
