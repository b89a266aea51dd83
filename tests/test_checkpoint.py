"""data/checkpoint.py: folders that are damaged, hostile or of another architecture are refused in one sentence."""
import json
import os
import re
import shutil

import pytest
import torch
from conftest import ROOT, TINY
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as BPE
from tokenizers import processors

from data.checkpoint import (INDEX, config_text, load_checkpoint, load_tensors, save_checkpoint, save_tensors,
                             write_companions)
from data.format import chat_template
from model import Config, Llama

GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def copy(tmp_path):
    """A checkpoint that a test may damage."""
    return shutil.copytree(GOLDEN / "llama2", tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    return shutil.copytree(GOLDEN / "mistral", tmp_path / "model")  # in four files


def edit(path, **changes):
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


REFUSED = {  # values that a key of a Llama's config.json must not have
    "rope_scaling": [{"type": "linear", "factor": 2.0}, {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0, "high_freq_factor": 4.0}],
    "rope_parameters": ["default", {"rope_theta": 1e4, "rope_type": "yarn"}, {"rope_type": "llama3"}],
    "model_type": ["gpt2", [], None], "rms_norm_eps": [torch.inf], "tie_word_embeddings": ["no"], "dtype": ["auto"],
    "hidden_act": ["gelu"], "attention_bias": [True], "mlp_bias": [True], "quantization_config": [{"bits": 4}],
    "num_attention_heads": [0], "num_key_value_heads": [3], "hidden_size": [-32, 32.0],
    "vocab_size": [None, "128", True, 10**30], "bos_token_id": [128, -1],
    "eos_token_id": [128, [2, 128], [2, -1], [2, "3"], [], None],
}


@pytest.mark.parametrize("changes", [
    *({key: value} for key, values in REFUSED.items() for value in values),
    {"model_type": "mistral", "sliding_window": 0}, {"hidden_size": None, "model_type": "gpt2"},
    {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_parameters": None, "rope_theta": "1e4"}, {"rope_parameters": {"rope_theta": torch.nan}, "rope_theta": 1e4},
], ids=str)
def test_config_that_is_not_supported_is_refused_by_file_and_key(copy, changes):
    """The key to name is the last one."""
    edit(copy, **changes)
    with pytest.raises(ValueError, match=f"^{copy / 'config.json'}: .*{list(changes)[-1]}"):
        Config.from_json(copy / "config.json")


CONFIGS = json.loads((GOLDEN / "configs.json").read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_says_what_it_says_to_transformers(tmp_path, name):
    """The right values are those of its configuration classes (tests/golden/make.py); those of absent keys included."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]["config"]))
    config, expected = Config.from_json(tmp_path / "config.json"), dict(CONFIGS[name]["read"])
    rope = dict(expected.pop("rope_parameters"))
    assert {key: getattr(config, key) for key in expected} == expected
    assert config.rope_theta == rope.pop("rope_theta")
    assert config.rope_scaling == (rope if rope["rope_type"] == "llama3" else None)
    written = config_text(config)  # with the keys of its model_type: a null stays, and a Mistral has no clip_qkv
    (tmp_path / "config.json").write_text(written)
    assert Config.from_json(tmp_path / "config.json") == config and ("clip_qkv" in written) == ("olmo" in written)


@pytest.mark.parametrize("name, changes", [
    ("llama2", {"rope_scaling": {"rope_type": "default"}, "partial_rotary_factor": 0.5, "pretraining_tp": 2}),
    ("mistral", {"clip_qkv": 0.1, "attention_bias": True, "layer_types": ["full_attention"] * 2}),
    ("olmo", {"sliding_window": 4, "rms_norm_eps": 1.0, "mlp_bias": True}),
])
def test_keys_that_transformers_does_not_read_change_nothing(name, changes, tmp_path):
    """transformers 5.24 gives these checkpoints the same logits with such keys as without them."""
    shutil.copy(GOLDEN / name / "config.json", tmp_path)
    edit(tmp_path, **changes)
    assert Config.from_json(tmp_path / "config.json") == Config.from_json(GOLDEN / name / "config.json")


def test_a_tied_matrix_may_be_stored_under_either_name_or_both(tmp_path):
    """As transformers reads it: the model is that of the checkpoint with the embedding's name."""
    folder = shutil.copytree(GOLDEN / "smollm2", tmp_path / "tied")
    right, tensors = Llama.from_pretrained(folder).state_dict(), load_file(folder / "model.safetensors")
    embedding = tensors.pop("model.embed_tokens.weight")
    for more in ({}, {"model.embed_tokens.weight": embedding.clone()}):
        save_file(tensors | {"lm_head.weight": embedding} | more, folder / "model.safetensors")
        loaded = Llama.from_pretrained(folder).state_dict()
        assert all(loaded[name].equal(tensor) for name, tensor in right.items())
    save_file(tensors | {"lm_head.weight": embedding + 1} | more, folder / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors: .*lm_head.weight.* set its tie_word_embeddings to false"):
        Llama.from_pretrained(folder)


def test_rows_of_ids_that_no_text_has_may_be_anything(copy):
    """The golden ids are 3 and above. All logits but those of the two rows are transformers', and theirs are never the
    largest, so that no such id is decoded."""
    tensors = load_file(copy / "model.safetensors")
    for name, value in (("model.embed_tokens.weight", torch.nan), ("lm_head.weight", -torch.inf)):
        tensors[name][:2] = value
    save_file(tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.full((4,), torch.nan)},
              copy / "model.safetensors")
    expected = load_file(copy / "golden.safetensors")
    logits = Llama.from_pretrained(copy)(expected["ids"])
    torch.testing.assert_close(logits[..., 2:], expected["logits"][..., 2:], atol=1e-4, rtol=0)
    assert (logits[..., :2] < logits[..., 2:].amax(-1, keepdim=True)).all()
    tensors["lm_head.weight"][5, 3] = torch.nan
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ValueError, match="lm_head.weight holds NaN"):
        Llama.from_pretrained(copy)


@pytest.mark.parametrize("name, text, message", [
    ("config.json", b"<html>", " is not JSON"), ("config.json", b"[1, 2]", ": model_type = null"),
    ("config.json", b"{}", ": model_type = null is not supported"), (INDEX, b"caf\xe9", " is not JSON"),
    (INDEX, b"[]", ": expected"), (INDEX, b'{"weight_map": {}}', ": expected"),
])
def test_a_config_or_index_that_is_none_is_refused(sharded, name, text, message):
    (sharded / name).write_bytes(text)
    with pytest.raises(ValueError, match=f"^{sharded / name}{message}"):
        Llama.from_pretrained(sharded)


@pytest.mark.parametrize("golden, name", [("llama2", "config.json"), ("mistral", "model-00002-of-00004.safetensors")])
def test_an_absent_file_is_named_and_so_is_half_of_one(tmp_path, golden, name):
    folder = shutil.copytree(GOLDEN / golden, tmp_path / "model")
    path = folder / name
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=f"{path} is not "):
        Llama.from_pretrained(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} does not exist"):
        Llama.from_pretrained(folder)


@pytest.mark.parametrize("name, tensor, fragment", [
    ("up_proj", None, "missing model.layers.0.mlp.up_proj.weight"),
    ("side_proj", torch.zeros(32), "unexpected model.layers.0.mlp.side_proj.weight"),
    ("up_proj", torch.zeros(80, 32), "up_proj.weight is (80, 32), config.json asks for (72, 32)"),
    ("up_proj", torch.zeros(72, 32, dtype=torch.int8), "up_proj.weight is of type torch.int8"),
    ("up_proj", torch.zeros(72, 32).index_fill_(0, torch.tensor(3), torch.nan), "up_proj.weight holds NaN"),
    ("up_proj", torch.zeros(72, 32).index_fill_(0, torch.tensor(3), -torch.inf), "holds NaN or infinity"),
    ("up_proj", torch.full((72, 32), 1e30), "holds NaN or infinity in torch.float16; add --dtype bfloat16, or"),
])
def test_a_tensor_that_is_not_as_it_must_be_is_refused_by_name(copy, name, tensor, fragment):
    path = copy / "model.safetensors"
    tensors = load_file(path) | {f"model.layers.0.mlp.{name}.weight": tensor}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: ')}.*{re.escape(fragment)}"):
        Llama.from_pretrained(copy, torch.float16)


def test_an_error_names_the_shard(sharded):
    edit(sharded, intermediate_size=80)
    with pytest.raises(ValueError, match="model-0000.-of-00004.safetensors: .* config.json asks for"):
        Llama.from_pretrained(sharded)
    (sharded / INDEX).write_text('{"weight_map": {"lm_head.weight": "model-00001-of-00004.safetensors"}}')
    with pytest.raises(ValueError, match="model-00001-of-00004.safetensors: missing lm_head.weight, .* and 14 more"):
        Llama.from_pretrained(sharded)


def test_saved_tensors_come_back_with_their_metadata(tmp_path):
    path, tensors = tmp_path / "new" / "x.safetensors", {"a": torch.arange(6.0).view(2, 3).T, "b": torch.ones(1)}
    save_tensors(path, tensors, {"format": "pt"}, torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    loaded = load_tensors([path], tensors, torch.float32, "cpu")
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert path.stat().st_mode & 0o777 == 0o644 and list(path.parent.iterdir()) == [path]


def test_a_run_goes_on_with_the_weights_moments_and_curves_of_its_checkpoint(tmp_path):
    """What AdamW does next depends on its moments and on its count of steps: the next step must be the same."""
    def step(model, optimizer):
        for parameter in model.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step()

    one, other = Llama.from_pretrained(GOLDEN / "llama2"), Llama.from_pretrained(GOLDEN / "llama2")
    adam, other_adam = torch.optim.AdamW(one.parameters(), lr=0.01), torch.optim.AdamW(other.parameters(), lr=0.01)
    step(one, adam)
    step(one, adam)
    curves = {"loss": [2.0, 1.5], "held_out_loss": [1.75]}
    save_checkpoint(tmp_path / "x", one, adam, {"seed": 1}, 3, curves)
    assert load_checkpoint(tmp_path / "x", other, other_adam) == (3, curves)
    step(one, adam)
    step(other, other_adam)
    assert all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.fixture
def base(tmp_path):
    """A base model's folder with a tokenizer, and a chat template that our format must replace."""
    folder = shutil.copytree(TINY, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    settings = {"tokenizer_class": "GPT2Tokenizer", "chat_template": "<|im_start|>", "bos_token": "<other>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text("<|im_start|>")
    return folder


def companions(folder, base, tuned=True):
    write_companions(folder, base, tuned)
    return json.loads((folder / "tokenizer_config.json").read_text())


def test_a_tuned_model_has_the_template_that_it_was_trained_with_wherever_tools_look(base, tmp_path):
    """And SentencePiece's own file of the tokenizer, if there is one."""
    (base / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\xff")
    out = tmp_path / "out"
    assert companions(out, base) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "bos_token": "<s>",
        "eos_token": "</s>", "pad_token": "</s>", "add_bos_token": False, "chat_template": chat_template()}
    assert (out / "chat_template.jinja").read_text() == chat_template()
    assert (out / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()
    assert (out / "tokenizer.model").read_bytes() == b"\n\x0e\n\x05<unk>\xff"
    (base / "tokenizer.model").unlink()
    assert "chat_template" not in companions(out, base, tuned=False)  # nothing of a tuned one stays
    assert not {"tokenizer.model", "chat_template.jinja"} & {path.name for path in out.iterdir()}
    bpe = BPE.from_file(str(base / "tokenizer.json"))
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    bpe.save(str(base / "tokenizer.json"))
    assert companions(out, base)["add_bos_token"] is True  # as the tokenizer does already


@pytest.mark.parametrize("changes, bos, expected", [
    ({}, "<s>", {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False}),
    ({"bos_token_id": None, "eos_token_id": [1, 7]}, None, {"eos_token_id": [1, 7], "do_sample": False}),
])
def test_other_tools_get_bos_and_all_eos(base, tmp_path, changes, bos, expected):
    edit(base, **changes)
    settings = companions(tmp_path / "out", base)
    assert (settings["bos_token"], settings["eos_token"]) == (bos, "</s>")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == expected


def test_special_tokens_that_are_normalized_keep_their_names(base, tmp_path):
    """As huggyllama/llama-7b's, where the library's id_to_token returns "▁<s>"; transformers has "<s>" as token 1."""
    file = json.loads((base / "tokenizer.json").read_text())
    file["normalizer"] = {"type": "Prepend", "prepend": "▁"}
    for token in file["added_tokens"]:
        token["normalized"] = True
    (base / "tokenizer.json").write_text(json.dumps(file))
    assert BPE.from_file(str(base / "tokenizer.json")).id_to_token(0) == "▁<s>"
    settings = companions(tmp_path / "out", base)
    assert [settings[key] for key in ("bos_token", "eos_token", "pad_token")] == ["<s>", "</s>", "</s>"]
    assert BPE.from_file(str(tmp_path / "out" / "tokenizer.json")).encode("a</s>b").ids.count(1) == 1
