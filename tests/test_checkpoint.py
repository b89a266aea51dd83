"""data/checkpoint.py: folders that are damaged, hostile or of another architecture are refused in one sentence."""
import json
import os
import shutil

import pytest
import torch
from conftest import ROOT, TINY
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as BPE
from tokenizers import processors

from data.checkpoint import (INDEX, config_text, load_checkpoint, load_tensors, read_config, save_checkpoint,
                             save_tensors, weight_files, write_companions)
from data.format import chat_template
from model import Config, Llama

GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def copy(tmp_path):
    """A checkpoint that a test may damage."""
    return shutil.copytree(GOLDEN / "llama2", tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint in four files that a test may damage."""
    return shutil.copytree(GOLDEN / "mistral", tmp_path / "model")


def edit(path, **changes):
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


def assert_golden(folder):
    """The logits are those that transformers computed for this checkpoint (tests/golden/make.py)."""
    expected = load_file(folder / "golden.safetensors")
    torch.testing.assert_close(Llama.from_pretrained(folder)(expected["ids"]), expected["logits"], atol=1e-4, rtol=0)


LLAMA31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 16}
REFUSED = {  # values that a key of a Llama's config.json must not have
    "rope_scaling": [{"type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0},
                     LLAMA31 | {"low_freq_factor": 0}],
    "rope_parameters": ["default", {"rope_theta": 1e4, "rope_type": "yarn"}, {"rope_type": "llama3"},
                        LLAMA31 | {"factor": "8"}],
    "rms_norm_eps": [torch.inf],
    "model_type": ["gpt2", "olmo2", [], None],
    "hidden_act": ["gelu"], "attention_bias": [True], "mlp_bias": [True], "quantization_config": [{"bits": 4}],
    "tie_word_embeddings": ["no"],
    "num_attention_heads": [0], "num_key_value_heads": [3], "head_dim": [7], "hidden_size": [-32, 32.0],
    "vocab_size": [None, "128", [128], True, 10**30],
    "eos_token_id": [128, [2, 128], [2, -1], [2, "3"], [], None], "bos_token_id": [128, -1],
    "dtype": ["auto"],
}


@pytest.mark.parametrize("changes", [
    *({key: value} for key, values in REFUSED.items() for value in values),
    {"model_type": "mistral", "sliding_window": True}, {"model_type": "mistral", "sliding_window": 0},
    {"hidden_size": 3, "head_dim": None}, {"hidden_size": None, "eos_token_id": [], "model_type": "gpt2"},
    {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_parameters": None, "rope_theta": "1e4"}, {"rope_parameters": {"rope_theta": torch.nan}, "rope_theta": 1e4},
], ids=str)
def test_config_that_is_not_supported_is_refused_by_file_and_key(copy, changes):
    """The key to name is the last one."""
    edit(copy, **changes)
    with pytest.raises(ValueError) as error:
        read_config(copy / "config.json", Config)
    assert str(error.value).startswith(f"{copy / 'config.json'}: ") and list(changes)[-1] in str(error.value)


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


@pytest.mark.parametrize("name, changes", [
    ("llama2", {"sliding_window": 4, "clip_qkv": 0.1, "partial_rotary_factor": 0.5, "pretraining_tp": 2}),
    ("llama2", {"architectures": ["LLaMAForCausalLM"], "_attn_implementation_autoset": True, "dtype": None}),
    ("llama2", {"rope_scaling": {"type": "linear", "factor": 1.0}}),
    ("llama2", {"rope_scaling": {"rope_type": "default"}}),
    ("mistral", {"clip_qkv": 0.1, "attention_bias": True, "layer_types": ["full_attention"] * 2}),
    ("olmo", {"sliding_window": 4, "rms_norm_eps": 1.0, "mlp_bias": True}),
])
def test_keys_that_transformers_does_not_read_change_nothing(name, changes, tmp_path):
    """transformers 5.24 gives these checkpoints the same logits with such keys as without them."""
    folder = shutil.copytree(GOLDEN / name, tmp_path / "model")
    edit(folder, **changes)
    assert_golden(folder)


def test_what_is_written_has_the_keys_of_its_model_type(sharded, tmp_path):
    """A null must stay: a Mistral without sliding_window has one of 4,096 tokens for transformers."""
    edit(sharded, sliding_window=None, eos_token_id=[2, 3])
    written = json.loads(config_text(Config.from_json(sharded / "config.json")))
    assert written["sliding_window"] is None and written["eos_token_id"] == [2, 3] and "clip_qkv" not in written
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert Config.from_json(tmp_path / "config.json") == Config.from_json(sharded / "config.json")


@pytest.mark.parametrize("names, other", [(["lm_head"], 0), (["lm_head", "model.embed_tokens"], 0),
                                          (["lm_head", "model.embed_tokens"], 1)])
def test_a_tied_matrix_may_be_stored_under_either_name_or_both(tmp_path, names, other):
    """As transformers reads it: the logits are those of the checkpoint with the embedding's name."""
    folder = shutil.copytree(GOLDEN / "smollm2", tmp_path / "tied")
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors.pop("model.embed_tokens.weight")
    tensors |= {f"{name}.weight": embedding.clone() for name in names}
    tensors["lm_head.weight"] += other
    save_file(tensors, folder / "model.safetensors")
    if not other:
        return assert_golden(folder)
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


@pytest.mark.parametrize("text", [b"<html>Not found</html>", b"", b"[1, 2]", b"[" * 100_000 + b"]" * 100_000, b"{}",
                                  b'{"dtype": "caf\xe9"}', b'{"vocab_size": 1' + b"0" * 5000 + b"}"])
def test_a_config_file_that_is_none_is_refused(copy, text):
    (copy / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=f"{copy}/config.json(: not a JSON object| is not JSON|: model_type = null)"):
        read_config(copy / "config.json", Config)


@pytest.mark.parametrize("golden, name", [("llama2", "config.json"), ("llama2", "model.safetensors"),
                                          ("mistral", "model-00002-of-00004.safetensors")])
def test_an_absent_file_is_named_and_so_is_half_of_one(tmp_path, golden, name):
    folder = shutil.copytree(GOLDEN / golden, tmp_path / "model")
    path = folder / name
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=f"{path} is not "):
        Llama.from_pretrained(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} does not exist"):
        Llama.from_pretrained(folder)


@pytest.mark.parametrize("changes, fragment", [
    ({"up_proj": None}, "missing model.layers.0.mlp.up_proj.weight"),
    ({"side_proj": torch.zeros(32)}, "unexpected model.layers.0.mlp.side_proj.weight"),
    ({"up_proj": torch.zeros(80, 32)}, "up_proj.weight is (80, 32), config.json asks for (72, 32)"),
    ({"up_proj": torch.zeros(72, 32, dtype=torch.int8)}, "up_proj.weight is of type I8"),
    ({"up_proj": torch.zeros(72, 32, dtype=torch.bool)}, "up_proj.weight is of type BOOL"),
    ({"up_proj": torch.zeros(72, 32).to(torch.float8_e4m3fn)}, "up_proj.weight is of type F8_E4M3"),
    ({"up_proj": torch.zeros(72, 32).index_fill_(0, torch.tensor(3), torch.nan)}, "up_proj.weight holds NaN"),
    ({"up_proj": torch.zeros(72, 32).index_fill_(0, torch.tensor(3), -torch.inf)}, "holds NaN or infinity"),
])
def test_a_tensor_that_is_not_as_it_must_be_is_refused_by_name(copy, changes, fragment):
    change_mlp(copy, **changes)
    with pytest.raises(ValueError) as error:
        Llama.from_pretrained(copy)
    assert str(error.value).startswith(f"{copy / 'model.safetensors'}: ") and fragment in str(error.value)


def change_mlp(folder, **changes):
    """Replace tensors of the first layer's MLP, or drop those that are None."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        tensors[f"model.layers.0.mlp.{name}.weight"] = tensor
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")


def test_weights_that_overflow_in_the_type_asked_for_are_refused(copy):
    change_mlp(copy, up_proj=torch.full((72, 32), 1e30))
    Llama.from_pretrained(copy, torch.bfloat16)
    with pytest.raises(ValueError, match="up_proj.weight holds NaN or infinity in torch.float16; .*--dtype bfloat16"):
        Llama.from_pretrained(copy, torch.float16)


@pytest.mark.parametrize("index", [
    "<html>", "[]", "{}", '{"weight_map": null}', '{"weight_map": {}}', "[" * 100_000 + "]" * 100_000,
])
def test_an_index_that_is_none_is_refused(sharded, index):
    (sharded / INDEX).write_text(index)
    with pytest.raises(ValueError, match=f"{sharded / INDEX}( is not JSON|: expected)"):
        weight_files(sharded)


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
    assert companions(tmp_path / "out", base) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "bos_token": "<s>",
        "eos_token": "</s>", "pad_token": "</s>", "add_bos_token": False, "chat_template": chat_template()}
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == chat_template()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()
    settings = companions(tmp_path / "out", base, tuned=False)  # nothing of a tuned one stays
    assert "chat_template" not in settings and not (tmp_path / "out" / "chat_template.jinja").exists()


@pytest.mark.parametrize("changes, bos, expected", [
    ({}, "<s>", {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False}),
    ({"bos_token_id": None}, None, {"eos_token_id": 1, "do_sample": False}),
    ({"eos_token_id": [1, 7]}, "<s>", {"bos_token_id": 0, "eos_token_id": [1, 7], "do_sample": False}),
])
def test_other_tools_get_bos_and_all_eos(base, tmp_path, changes, bos, expected):
    edit(base, **changes)
    settings = companions(tmp_path / "out", base)
    assert (settings["bos_token"], settings["eos_token"]) == (bos, "</s>")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == expected


def test_a_tokenizer_that_puts_bos_itself_keeps_doing_so(base, tmp_path):
    bpe = BPE.from_file(str(base / "tokenizer.json"))
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    bpe.save(str(base / "tokenizer.json"))
    assert companions(tmp_path / "out", base)["add_bos_token"] is True


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


def test_sentencepieces_own_file_is_copied_or_taken_away(base, tmp_path):
    (base / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\xff")
    companions(tmp_path / "out", base)
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"\n\x0e\n\x05<unk>\xff"
    (base / "tokenizer.model").unlink()
    companions(tmp_path / "out", base)
    assert not (tmp_path / "out" / "tokenizer.model").exists()
