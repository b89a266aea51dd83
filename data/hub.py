"""A model folder in the layout that model hubs serve: config.json, safetensors files, and what other tools read.

    config = read_config(folder / "config.json", Config)
    tensors = load_tensors(weight_files(folder), model.state_dict(), torch.float32, "cpu")

Files come from anywhere, so they are checked before they are used: errors name the file and the key or tensor.
"""
import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data.files import read_json, replacing, shorten, write_json, write_text
from data.format import PROMPT, Tokenizer, chat_template

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "olmo": "OlmoForCausalLM"}
SUPPORTED = {  # keys of config.json that change the result, with the only value that model.py implements
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_interleaved": False,
    "attention_dropout": 0.0, "pretraining_tp": 1, "quantization_config": None,
}
IGNORED = {  # keys that leave it as it is
    "_name_or_path", "initializer_range", "is_llama_config", "pad_token_id", "transformers_version",
    "transformers.js_config", "use_cache",
}
ROPE_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")  # of Llama 3.1
INDEX = "model.safetensors.index.json"  # of a checkpoint in several files
A_MODEL_IS = "a model is a folder with config.json, model.safetensors and tokenizer.json"


def read_config(path, kind):
    """A config.json as a `kind`, a dataclass whose fields are the keys that model.py knows.

    Raises FileNotFoundError, or ValueError for a key that is missing, unknown, of a wrong type, out of bounds, or
    set to what model.py does not do.
    """
    raw = read_json(path, A_MODEL_IS)
    try:
        if not isinstance(raw, dict):
            raise ValueError(f"not a JSON object; {A_MODEL_IS}")
        if "torch_dtype" in raw:  # the name before transformers 5
            raw["dtype"] = raw.pop("torch_dtype")
        if rope := raw.pop("rope_parameters", None):  # transformers 5 nests what was at the top
            check("rope_parameters", rope, dict)
            if "rope_theta" in rope:
                raw["rope_theta"] = rope.pop("rope_theta")
            if rope != {"rope_type": "default"}:
                raw["rope_scaling"] = rope
        for field in fields(kind):
            if field.name in raw:
                check(field.name, raw[field.name], field.type)
            elif field.default is MISSING:
                raise ValueError(f"missing {field.name}")
        config = kind(**{field.name: raw[field.name] for field in fields(kind) if field.name in raw})
        check_support(config, raw)
        return config
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check(key: str, value, kind):
    """Raise ValueError where `value` is not of type `kind`, or is a number that no model has."""
    if isinstance(0.5, kind):
        kind |= int  # JSON may have 10000 for 10000.0
    if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
        raise ValueError(f"{key} = {shown(value)} is not of type {getattr(kind, '__name__', kind)}")
    lowest = -1 if key.endswith("_token_id") else 0
    highest = 1000 if key.startswith("num_") else 2**24  # layers and heads; all else
    if type(value) in (int, float) and not lowest < value <= highest:
        raise ValueError(f"{key} = {shown(value)} is not above {lowest} and at most {highest}")


def check_support(config, raw: dict):
    """Raise ValueError where model.py does not do what the keys ask for, or two of them do not fit together."""
    if config.model_type not in ARCHITECTURES:
        raise ValueError(f"model_type = {shown(config.model_type)} is not one of {', '.join(ARCHITECTURES)}")
    supported = SUPPORTED | {"architectures": [ARCHITECTURES[config.model_type]]}
    for key, value in raw.items():
        if key in supported and value != supported[key]:
            raise ValueError(f"{key} = {shown(value)} is not supported, only {shown(supported[key])} is")
        if key not in vars(config).keys() | supported.keys() | IGNORED:
            raise ValueError(f"unknown key {key!r}; if it does not change the result, add it to IGNORED in data/hub.py")
    if rope := config.rope_scaling:
        if rope.get("rope_type", rope.get("type")) != "llama3" or rope.keys() - {"rope_type", "type", *ROPE_SCALING}:
            raise ValueError(f'rope_scaling = {shown(rope)} is not supported, only Llama 3.1\'s type "llama3" is')
        for key in ROPE_SCALING:
            check(f"rope_scaling: {key}", rope.get(key), float)
    if config.dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype = {shown(config.dtype)} is not float32, bfloat16 or float16")
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(f"num_attention_heads = {config.num_attention_heads} is not a multiple of "
                         f"num_key_value_heads = {config.num_key_value_heads}")
    if config.head_dim % 2 or not config.head_dim:
        raise ValueError(f"head_dim = {config.head_dim} (hidden_size / num_attention_heads) is not 2, 4, 6, ...")
    if max(config.eos_token_id, config.bos_token_id or 0) >= config.vocab_size:
        raise ValueError(f"eos_token_id = {config.eos_token_id} or bos_token_id = {config.bos_token_id} is beyond "
                         f"vocab_size = {config.vocab_size}")


def shown(value) -> str:
    """A JSON value, cut where it is long."""
    return json.dumps(value)[:60]


def config_text(config) -> str:
    """The text of a config.json that transformers and other readers of the layout understand."""
    described = {"architectures": [ARCHITECTURES[config.model_type]], "hidden_act": "silu"} | asdict(config)
    described["torch_dtype"] = described.pop("dtype")
    for key in ("sliding_window", "clip_qkv", "rope_scaling"):  # of some architectures only
        if described[key] is None:
            del described[key]
    return json.dumps(described, indent=2) + "\n"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: model.safetensors, or those that its index names."""
    single, index = folder / "model.safetensors", folder / INDEX
    if single.exists():
        return [single]
    if not index.exists():
        raise FileNotFoundError(f"{single} does not exist; {A_MODEL_IS}")
    try:
        names = sorted(set(read_json(index, "fetch it again")["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f'{index}: expected {{"weight_map": {{tensor: file beside it}}}}; fetch it again') from None
    if absent := [name for name in names if not (folder / name).exists()]:
        raise FileNotFoundError(f"{index} names {shorten(absent)}, not found beside it; fetch the model again")
    return [folder / name for name in names]


@contextmanager
def reading(path: Path, device="cpu"):
    """An open safetensors file. Its library's errors become ValueErrors that name the file."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); fetch or write it again") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that save_tensors wrote beside the tensors; {} for a file without any."""
    with reading(path) as file:
        return file.metadata() or {}


def load_tensors(paths: Path | list[Path], expected: dict, dtype, device) -> dict:
    """The tensors of one safetensors file, or of several together, in `dtype` on `device`.

    Where a tensor of `expected` is sharded over ranks, this rank's part is kept. Raises ValueError, naming the file
    and the tensor, for one that is missing, unexpected, not of the shape in `expected`, no float, or not finite.
    """
    paths, found = paths if isinstance(paths, list) else [paths], {}
    for path in paths:
        with reading(path) as file:
            for name in sorted(file.keys()):
                if name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight" and name not in expected:
                    continue  # of Llama-1 and of some tied checkpoints; model.py derives both
                if name not in expected:
                    raise ValueError(f"{path}: unexpected {name}")
                part, wanted = file.get_slice(name), tuple(expected[name].shape)
                if (shape := tuple(part.get_shape())) != wanted:
                    raise ValueError(f"{path}: {name} is {shape}, config.json asks for {wanted}")
                if part.get_dtype() not in ("F64", "F32", "BF16", "F16"):
                    raise ValueError(f"{path}: {name} is of type {part.get_dtype()}, not F32, BF16 or F16")
                found[name] = path
    if missing := sorted(expected.keys() - found.keys()):
        raise ValueError(f"{shorten([str(path) for path in paths], 1)}: missing {shorten(missing)}")
    tensors = {}
    for name, path in found.items():
        with reading(path, device) as file:  # anew for each, so that what was read does not stay mapped beside its copy
            tensor = file.get_tensor(name).to(dtype)
        if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):
            raise ValueError(f"{path}: {name} holds NaN or infinity in {dtype}; fetch or train it again")
        tensors[name] = placed_like(expected[name], tensor)
    return tensors


def placed_like(parameter, tensor):
    """This rank's part of `tensor` if `parameter` is sharded over ranks, else all of it."""
    if not hasattr(parameter, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # a second of importing, which only sharding needs

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def save_tensors(path, tensors: dict, metadata: dict[str, str], dtype=None):
    """Write a safetensors file, whole or not at all, in `dtype` (None: each tensor's own). Raises OSError."""
    whole = {name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(whole, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"could not write {path} ({error}); what was there before is untouched") from None
        temporary.chmod(0o644)  # the library makes it for its owner alone


def write_companions(folder: Path, base: Path, record: dict, prompt: str = PROMPT):
    """Write the files that other tools read beside config.json and the weights, each whole or not at all.

    They are the tokenizer (that of `base`, with EOS to pad), generation_config.json, a model card and, unless
    record["method"] is "pretrain", the chat template that belongs to `prompt`. transformers and vLLM read
    chat_template.jinja, llama.cpp and Ollama the same text in tokenizer_config.json. record: the contents of run.json.

    Nothing is taken over from the base's tokenizer_config.json: with the class that it names, LlamaTokenizer for
    one, transformers 5 splits by that class's own rules, and a model is asked in other tokens than it was trained on.
    """
    tokenizer, tuned = Tokenizer(base), record["method"] != "pretrain"
    adds_bos = tokenizer.bpe.encode("a").ids[:1] == [tokenizer.bos_id]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                "bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.eos,
                "add_bos_token": adds_bos}
    write_text(folder / "tokenizer.json", tokenizer.bpe.to_str(pretty=True))
    (folder / "tokenizer.model").unlink(missing_ok=True)
    if (base / "tokenizer.model").exists():  # SentencePiece's own file, without which llama.cpp makes up its scores
        with replacing(folder / "tokenizer.model") as temporary:
            shutil.copyfile(base / "tokenizer.model", temporary)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if tuned:
        settings["chat_template"] = chat_template(prompt)
        write_text(folder / "chat_template.jinja", settings["chat_template"])
    write_json(folder / "tokenizer_config.json", settings)
    # greedy, as generate.py is: without do_sample transformers' pipeline samples at a temperature of 0.7
    generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "do_sample": False}
    write_json(folder / "generation_config.json", {key: i for key, i in generation.items() if i is not None})
    write_text(folder / "README.md", model_card(folder, base, record))


def model_card(folder: Path, base: Path, record: dict) -> str:
    """README.md as hubs show it: the base, how to ask, and run.json as a table."""
    tuned, card = record["method"] != "pretrain", base / "README.md"
    head = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["nanofollow", record["method"]]}
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    found = re.search(r"^license: *(\S+)$", text.split("\n---")[0], re.MULTILINE)  # in the YAML at its head
    head |= {"license": found[1]} if found else {"license": "other", "license_name": "that-of-base-model-and-data"}
    if tuned:
        head["base_model"] = record["model"].removeprefix("models/")  # where data/download.py puts ORG/NAME
    asked = '[{"role": "user", "content": "Write a poem about rain."}]' if tuned else '"The capital of"'
    rows = [f"| {key} | {value} |" for key, value in record.items()]
    return "\n".join([
        "---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", "", f"# {folder.name}", "",
        f"{record['model']}, after {record['method']} tuning." if tuned else "A base model: it continues text.", "",
        "```python", "from transformers import pipeline", f'model = pipeline("text-generation", model="{folder}")',
        f"print(model({asked}, max_new_tokens=100)[0][\"generated_text\"])", "```", "",
        "| training | |", "|---|---|", *rows, ""])
