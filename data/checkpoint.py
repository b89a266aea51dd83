"""A model folder in the layout that model hubs serve: config.json, safetensors files, and what other tools read.

    config = read_config(folder / "config.json", Config)
    tensors = load_tensors(weight_files(folder), model.state_dict(), torch.float32, "cpu")

Files come from anywhere, so they are checked before they are used: errors name the file and the key or tensor. Last
comes the folder of a run under way, which holds a checkpoint instead.
"""
import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data.common import INDEX, hold, parse_json, read_json, replacing, shorten, write_json, write_text
from data.distributed import gathered, is_main, placed_like
from data.format import IDS, PROMPT, Tokenizer, chat_template, listed

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "olmo": "OlmoForCausalLM"}
COMMON = {  # keys of config.json, and what an absent one means
    "model_type": None, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048,
    "rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None, "original_max_position_embeddings": None,
    "tie_word_embeddings": False, "hidden_act": "silu", "attention_dropout": 0.0, "quantization_config": None,
    "dtype": None, "torch_dtype": None}  # the latter before transformers 5
KEYS = {  # for each model_type those that transformers' class reads, with its defaults; it ignores others, and so do we
    "llama": COMMON | IDS["llama"] | {"rms_norm_eps": 1e-6, "attention_bias": False, "mlp_bias": False},
    "mistral": COMMON | IDS["mistral"] | {"rms_norm_eps": 1e-6, "intermediate_size": 14336, "num_key_value_heads": 8,
                                          "max_position_embeddings": 131072, "sliding_window": 4096},
    "olmo": COMMON | IDS["olmo"] | {"clip_qkv": None, "attention_bias": False}}
ONLY_DEFAULT = ("hidden_act", "attention_bias", "mlp_bias", "attention_dropout", "quantization_config")  # in model.py
ROPE_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")  # of Llama 3.1
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CHECKPOINT, RECORD = "checkpoint.safetensors", "run.json"  # of a run under way; of a finished one
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, of a parameter's gradient and of its square
A_MODEL_IS = "a model is a folder with config.json, model.safetensors and tokenizer.json"
AFRESH = "--overwrite (make: OVERWRITE=1) starts afresh"


# ------------------------------------------------------------------------------------------------- reading config.json
def read_config(path, kind):
    """A config.json as a `kind`, a dataclass whose fields are the keys that model.py knows.

    Raises FileNotFoundError, or ValueError for a model_type that model.py does not have, or a key that is of a wrong
    type, out of bounds, or set to what model.py does not do.
    """
    found = read_json(path, A_MODEL_IS)
    try:
        # the architecture first: with another one, no key means what it means here
        if not isinstance(found, dict):
            raise ValueError(f"not a JSON object; {A_MODEL_IS}")
        model_type = found.get("model_type")
        if model_type not in list(KEYS):
            raise ValueError(f"model_type = {shown(model_type)} is not supported, only {', '.join(KEYS)} are")

        # its keys, and of those the ones that model.py knows with one value only
        known = {key: found.get(key, default) for key, default in KEYS[model_type].items()}
        for key in ONLY_DEFAULT:
            default = KEYS[model_type].get(key)
            if known.get(key) != default:
                raise ValueError(f"{key} = {shown(known[key])} is not supported, only {shown(default)} is")
        known |= rope(known)
        known["dtype"] = known["dtype"] or known["torch_dtype"] or "float32"

        # the rest are the fields of `kind`
        types = {field.name: field.type for field in fields(kind) if field.name in known}
        for key in types:
            check(key, known[key], types[key])
        config = kind(**{key: known[key] for key in types})
        check_fit(config)
        return config
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def rope(known: dict) -> dict:
    """rope_theta and rope_scaling, which transformers 5 nests in rope_parameters, as model.py has them.

    Raises ValueError for a scaling that model.py does not do. If there are both, transformers reads rope_scaling.
    """
    key = "rope_scaling" if known["rope_scaling"] else "rope_parameters"
    found = known[key] or {}
    check(key, found, dict)
    theta = found.get("rope_theta", known["rope_theta"])

    # no scaling, under any of its names
    scaling = found.get("rope_type", found.get("type", "default"))
    if scaling == "default" or scaling == "linear" and found.get("factor") == 1:
        return {"rope_theta": theta, "rope_scaling": None}
    if scaling != "llama3":
        raise ValueError(f'{key} of type {shown(scaling)} is not supported, only Llama 3.1\'s "llama3" is')

    # Llama 3.1's; the context before scaling stands in one of two places, or is the context itself
    original = "original_max_position_embeddings"
    found = found | {original: known[original] or found.get(original, known["max_position_embeddings"])}
    for name in ROPE_SCALING:
        check(f"{key}: {name}", found.get(name), float)
    return {"rope_theta": theta, "rope_scaling": {"rope_type": scaling} | {name: found[name] for name in ROPE_SCALING}}


def check(key: str, value, kind):
    """Raise ValueError if `value` is not of type `kind`, or is a number that no model has."""
    if isinstance(0.5, kind):
        kind |= int  # JSON may have 10000 for 10000.0
    if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
        raise ValueError(f"{key} = {shown(value)} is not of type {getattr(kind, '__name__', kind)}")
    lowest = -1 if key.endswith("_token_id") else 0
    if type(value) in (int, float) and not lowest < value <= 10**12:
        raise ValueError(f"{key} = {shown(value)} is not above {lowest} and at most 10^12")


def check_fit(config):
    """Raise ValueError if two keys do not fit together, or the weights' type is unknown."""
    if config.dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype = {shown(config.dtype)} is not float32, bfloat16 or float16")
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(f"num_attention_heads = {config.num_attention_heads} is not a multiple of "
                         f"num_key_value_heads = {config.num_key_value_heads}")
    if config.head_dim % 2 or not config.head_dim:
        raise ValueError(f"head_dim = {config.head_dim} (hidden_size / num_attention_heads) is not 2, 4, 6, ...")

    # the tokens that end a response, and the one that begins a sequence
    if config.eos_token_id == []:
        raise ValueError("eos_token_id = [] names no token; give the one that ends a response")
    for i in listed(config.eos_token_id):
        check("eos_token_id", i, int)
    if max(*listed(config.eos_token_id), config.bos_token_id or 0) >= config.vocab_size:
        raise ValueError(f"eos_token_id = {config.eos_token_id} or bos_token_id = {config.bos_token_id} is not below "
                         f"vocab_size = {config.vocab_size}")


def shown(value) -> str:
    """A JSON value, cut where it is long."""
    return json.dumps(value)[:60]


# ------------------------------------------------------------------------------------------------- reading the weights
def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: model.safetensors, or those that its index names.

    Raises FileNotFoundError for an absent one, ValueError for an index that is not one.
    """
    # one file, or those of the index
    names, index = ["model.safetensors"], folder / INDEX
    if index.exists() and not (folder / names[0]).exists():
        found = read_json(index, A_MODEL_IS)
        weight_map = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f'{index}: expected {{"weight_map": {{tensor: file beside it}}}}; fetch it again')
        names = sorted({str(name) for name in weight_map.values()})

    # all of them must be there
    for name in names:
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder / name} does not exist; {A_MODEL_IS}")
    return [folder / name for name in names]


@contextmanager
def reading(path: Path, device="cpu"):
    """An open safetensors file. Its library's errors become ValueErrors that name the file."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); fetch or write it again") from None


def load_tensors(paths: list[Path], expected: dict, dtype, device) -> dict:
    """The tensors of safetensors files together, by name, in `dtype` on `device`.

    expected: tensors or parameters by name, with the shapes that must be found. If one is sharded over ranks, this
    rank's part is kept. Raises ValueError, naming the file and the tensor, for one that is missing, unexpected, not of
    the expected shape, not a float, or not finite, and for an lm_head.weight that is not the embedding, if the model
    says that they are one.
    """
    tensors = {}
    for stored, (path, name) in find_tensors(paths, expected).items():
        with reading(path, device) as file:  # anew for each, so that what was read does not stay mapped beside its copy
            tensor = file.get_tensor(stored).to(dtype)

        # no NaN, and no infinity, but for ids that no text has
        if name in (EMBEDDING, HEAD) and not is_finite(tensor):
            tensor = fill_unused_rows(tensor)
        if not is_finite(tensor):
            hint = "add --dtype bfloat16, or " if dtype == torch.float16 else ""
            raise ValueError(f"{path}: {stored} holds NaN or infinity in {dtype}; {hint}fetch or train it again")

        # a tied matrix may be there twice, if both are the same
        tensor = placed_like(expected[name], tensor)
        if name in tensors and not tensors[name].equal(tensor):
            raise ValueError(f"{path}: {HEAD} is not {EMBEDDING}, and config.json says that they are one; "
                             "set its tie_word_embeddings to false")
        tensors[name] = tensor
    return tensors


def find_tensors(paths: list[Path], expected: dict) -> dict:
    """Where the expected tensors are, by the files' headers: {name in the file: (path, name in `expected`)}."""
    found = {}
    for path in paths:
        with reading(path) as file:
            for stored in sorted(file.keys()):
                if "rotary_emb." in stored:  # of Llama 1; model.py derives it
                    continue
                name = EMBEDDING if stored == HEAD and HEAD not in expected else stored  # tied: one under two names
                if name not in expected:
                    raise ValueError(f"{path}: unexpected {stored}")
                part = file.get_slice(stored)
                if part.get_shape() != list(expected[name].shape):
                    raise ValueError(f"{path}: {stored} is {tuple(part.get_shape())}, "
                                     f"config.json asks for {tuple(expected[name].shape)}")
                if part.get_dtype() not in ("F64", "F32", "BF16", "F16"):
                    raise ValueError(f"{path}: {stored} is of type {part.get_dtype()}, not F32, BF16 or F16")
                found[stored] = path, name

    names = {name for _, name in found.values()}
    if missing := sorted(expected.keys() - names):
        raise ValueError(f"{shorten([str(path) for path in paths], 1)}: missing {shorten(missing)}")
    return found


def is_finite(tensor) -> bool:
    return all(bound.isfinite() for bound in tensor.aminmax())


def fill_unused_rows(matrix):
    """(V, C): rows without a finite number, as some models have for ids that no text has, become the others' mean.

    A row without a finite number is taken for unused, whichever id it is of. Its logit is the mean of the
    others' logits, so it is never the largest (Hewitt, 2021).
    """
    unused = ~matrix.isfinite().any(1, keepdim=True)  # (V, 1)
    mean = matrix[~unused[:, 0]].mean(0, dtype=torch.float32)  # (C,)
    return torch.where(unused, mean.to(matrix.dtype), matrix)


# --------------------------------------------------------------------------------------------- writing a model's folder
def config_text(config) -> str:
    """The text of a config.json that transformers and other readers of the layout understand."""
    described = {"architectures": [ARCHITECTURES[config.model_type]], "hidden_act": "silu"}
    described |= {key: value for key, value in asdict(config).items() if key in KEYS[config.model_type]}
    described["torch_dtype"] = described.pop("dtype")
    return json.dumps(described, indent=2) + "\n"


def save_tensors(path, tensors: dict, metadata: dict[str, str], dtype=None):
    """Write a safetensors file, whole or not at all, in `dtype` (None: each tensor's own). Raises OSError."""
    whole = {name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(whole, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"could not write {path} ({error}); what was there before is untouched") from None
        temporary.chmod(0o644)  # the library lets only its owner read it


def write_companions(folder: Path, base: Path, tuned: bool, prompt: str = PROMPT):
    """Write the files that other tools read beside config.json and the weights, each whole or not at all.

    They are the tokenizer (that of `base`, with EOS to pad), generation_config.json and, for a model that is tuned on
    dialogues, the chat template that belongs to `prompt`.

    Nothing is taken over from the base's tokenizer_config.json: with the class that it names, LlamaTokenizer for
    one, transformers 5 splits by that class's own rules, and a model is asked in other tokens than it was trained on.
    """
    # the tokenizer, and SentencePiece's own file of it, without which llama.cpp makes up its scores
    tokenizer = Tokenizer(base)
    write_text(folder / "tokenizer.json", tokenizer.bpe.to_str(pretty=True))
    (folder / "tokenizer.model").unlink(missing_ok=True)
    if (base / "tokenizer.model").exists():
        with replacing(folder / "tokenizer.model") as temporary:
            shutil.copyfile(base / "tokenizer.model", temporary)

    # the chat template: transformers and vLLM read the file, llama.cpp and Ollama the same text in the settings
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                "bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.eos,
                "add_bos_token": tokenizer.bpe.encode("a").ids[:1] == [tokenizer.bos_id]}
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if tuned:
        settings["chat_template"] = chat_template(prompt)
        write_text(folder / "chat_template.jinja", settings["chat_template"])
    write_json(folder / "tokenizer_config.json", settings)

    # greedy, as generate.py is: without do_sample transformers' pipeline samples at a temperature of 0.7
    eos = tokenizer.eos_ids if len(tokenizer.eos_ids) > 1 else tokenizer.eos_id
    bos = {} if tokenizer.bos_id is None else {"bos_token_id": tokenizer.bos_id}
    write_json(folder / "generation_config.json", bos | {"eos_token_id": eos, "do_sample": False})


# ------------------------------------------------------------------------------------------------ the folder of a run
@contextmanager
def claimed(out: Path, model: Path):
    """Keep the folder `out` for this run: made if it is not there, and removed again if nothing was written.

    Raises OSError if another run has it, ValueError if it holds something else than a run.
    """
    if out.resolve() == model.resolve():
        raise ValueError(f"--out {out} is the folder of --model, whose weights it would replace; choose another")
    if out.is_file():
        raise ValueError(f"--out {out} is a file; choose another")
    if not is_main():  # rank 0 holds the folder for all
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    held = hold(out)
    try:
        for leftover in out.glob(".*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink()
        if any(out.iterdir()) and not (out / CHECKPOINT).exists() and not (out / RECORD).exists():
            raise ValueError(f"--out {out} holds files that are no run of train.py's; choose another (make: OUT=...)")
        yield
    finally:
        os.close(held)
        if not any(out.iterdir()):
            out.rmdir()


def state(out: Path, settings: dict, resume: bool, overwrite: bool) -> str:
    """How much of a run with these settings --out holds: "nothing", "half" (go on from the checkpoint) or "all".

    Raises ValueError if it holds a run that is not to be continued, or one with other settings.
    """
    record, checkpoint = out / RECORD, out / CHECKPOINT
    if overwrite or not record.exists() and not checkpoint.exists():
        return "nothing"
    if not resume:
        raise ValueError(f"{out} holds another run; add --resume to continue it, --overwrite to discard it, "
                         "or choose another --out")
    if record.exists():
        check_settings(record, read_json(record, AFRESH), settings)
        return "all"
    check_settings(checkpoint, checkpoint_metadata(checkpoint)["settings"], settings)
    return "half"


def discard(out: Path):
    """Remove the run that a folder holds."""
    for name in (CHECKPOINT, RECORD, "model.safetensors"):
        (out / name).unlink(missing_ok=True)


def check_settings(path: Path, found, settings: dict):
    """Raise ValueError, naming the first difference, if the run that `path` is of is not one with these settings."""
    if not isinstance(found, dict) or not settings.keys() <= found.keys():
        raise ValueError(f"{path} is damaged; {AFRESH}")
    for key, value in settings.items():
        if found[key] != value:
            difference = f"{key} = {found[key]}, not {value}"
            if key.endswith("_sha256"):  # of files, whatever their path
                difference = f"other files in --{key.removesuffix('_sha256')}"
            raise ValueError(f"{path} is of a run with {difference}; choose another --out (make: OUT=...), or {AFRESH}")


def save_checkpoint(path: Path, model, optimizer, settings: dict, epochs_done: int, curves: dict):
    """Write weights, AdamW's moments and the curves of the loss in one file, so that they cannot come apart.

    curves: lists of numbers. Every rank must call this. Raises OSError.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter
        for moment in MOMENTS:
            tensors[f"{name}.{moment}"] = optimizer.state[parameter][moment]
    tensors = gathered(tensors)
    if is_main():
        steps = int(optimizer.state[next(model.parameters())]["step"])
        values = {"settings": settings, "epochs": epochs_done, "curves": curves, "steps": steps}
        save_tensors(path, tensors, {key: json.dumps(value) for key, value in values.items()})


def checkpoint_metadata(path: Path) -> dict:
    """The values that save_checkpoint wrote beside the tensors. Raises ValueError if `path` is not a checkpoint."""
    try:
        with reading(path) as file:
            texts = file.metadata() or {}
        return {key: parse_json(texts[key]) for key in ("settings", "epochs", "curves", "steps")}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); {AFRESH}") from None


def load_checkpoint(path: Path, model, optimizer) -> tuple[int, dict]:
    """Restore what save_checkpoint wrote, in place. Returns (epochs_done, curves). Raises ValueError."""
    expected = {}
    for name, parameter in model.named_parameters():
        expected[name] = parameter
        for moment in MOMENTS:
            expected[f"{name}.{moment}"] = parameter
    metadata = checkpoint_metadata(path)
    tensors = load_tensors([path], expected, torch.float32, model.device)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[name])
        optimizer.state[parameter] = {moment: tensors[f"{name}.{moment}"] for moment in MOMENTS}
        optimizer.state[parameter]["step"] = torch.tensor(float(metadata["steps"]), device=model.device)
    return metadata["epochs"], metadata["curves"]
