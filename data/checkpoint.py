"""A model folder in the layout that model hubs serve: config.json, safetensors files, and what other tools read.

    config = read_config(folder / "config.json", Config)
    tensors = load_tensors(weight_files(folder), model.state_dict(), torch.float32, "cpu")
"""
import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data.common import INDEX, hold, read_json, replacing, write_json, write_text
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


def read_config(path, kind):
    """A config.json as a `kind`, a dataclass whose fields are the keys that model.py knows. Raises FileNotFoundError,
    or ValueError for a key that is set to what model.py does not do."""
    found = read_json(path, A_MODEL_IS)
    try:
        # the architecture first: with another one, no key means what it means here
        model_type = found.get("model_type") if isinstance(found, dict) else None
        if model_type not in list(KEYS):
            raise ValueError(f"model_type = {json.dumps(model_type)} is not supported, only {', '.join(KEYS)} are")
        defaults = KEYS[model_type]
        known = {key: found.get(key, default) for key, default in defaults.items()}
        for key in ONLY_DEFAULT:
            if known.get(key) != defaults.get(key):
                raise ValueError(f"{key} = {json.dumps(known[key])} is not supported, only {json.dumps(defaults[key])}")
        known |= rope(known)
        known["dtype"] = known["dtype"] or known["torch_dtype"] or "float32"

        types = kind.__annotations__
        values = {key: value for key, value in known.items() if key in types}
        check(values, types)
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def rope(known: dict) -> dict:
    """rope_theta and rope_scaling, which transformers 5 nests in rope_parameters. It reads rope_scaling if both are
    there. Raises ValueError for another scaling than Llama 3.1's."""
    key = "rope_scaling" if known["rope_scaling"] else "rope_parameters"
    found = known[key] or {}
    if not isinstance(found, dict):
        raise ValueError(f"{key} = {json.dumps(found)} is not an object")
    theta = found.get("rope_theta", known["rope_theta"])
    scaling = found.get("rope_type", found.get("type", "default"))
    if scaling == "default" or scaling == "linear" and found.get("factor") == 1:
        return {"rope_theta": theta, "rope_scaling": None}
    if scaling != "llama3":
        raise ValueError(f'{key} of type {json.dumps(scaling)} is not supported, only Llama 3.1\'s "llama3" is')

    # Llama 3.1's; the context before scaling stands in one of two places, or is the context itself
    original = "original_max_position_embeddings"
    found = found | {original: known[original] or found.get(original, known["max_position_embeddings"])}
    for name in ROPE_SCALING:
        if type(found.get(name)) not in (int, float) or found[name] <= 0:
            raise ValueError(f"{key}: {name} = {json.dumps(found.get(name))} is not a number above 0")
    return {"rope_theta": theta, "rope_scaling": {"rope_type": scaling} | {name: found[name] for name in ROPE_SCALING}}


def check(values: dict, types: dict):
    """Raise ValueError, naming the key, for a value that is not of its type or that no model has."""
    for key, value in values.items():
        kind = types[key] | int if isinstance(0.5, types[key]) else types[key]  # JSON may have 10000 for 10000.0
        positive = type(value) not in (int, float) or key.endswith("_token_id") or 0 < value <= 10**12
        if not isinstance(value, kind) or not positive:
            raise ValueError(f"{key} = {json.dumps(value)} is of a wrong type, or not above 0")
    if values["num_attention_heads"] % (values["num_key_value_heads"] or 1):
        raise ValueError("num_attention_heads is not a multiple of num_key_value_heads")
    ids = [*listed(values["eos_token_id"]), values["bos_token_id"] or 0]
    if len(ids) == 1 or not all(i in range(values["vocab_size"]) for i in ids):
        raise ValueError("eos_token_id or bos_token_id is not an id below vocab_size")
    if values["dtype"] not in ("float32", "bfloat16", "float16"):
        raise ValueError("dtype is not float32, bfloat16 or float16")


def weight_files(folder: Path) -> list[Path]:
    """A folder's model.safetensors, or the files that its index names. Raises FileNotFoundError or ValueError."""
    names, index = ["model.safetensors"], folder / INDEX
    if index.exists() and not (folder / names[0]).exists():
        found = read_json(index, A_MODEL_IS)
        if not isinstance(found, dict) or not found.get("weight_map"):
            raise ValueError(f'{index}: expected {{"weight_map": {{tensor: file beside it}}}}; fetch it again')
        names = sorted(set(found["weight_map"].values()))
    for name in names:
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder / name} does not exist; {A_MODEL_IS}")
    return [folder / name for name in names]


def stored_tensors(paths: list[Path], device):
    """Yield (path, name, tensor) for all that safetensors files hold. Raises ValueError for a file that is damaged."""
    for path in paths:
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for name in sorted(file.keys()):
                    if "rotary_emb." not in name:  # of Llama 1; model.py derives it
                        yield path, name, file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); fetch or write it again") from None


def load_tensors(paths: list[Path], expected: dict, dtype, device) -> dict:
    """The tensors of safetensors files together, by name, in `dtype` on `device`. expected: tensors or parameters by
    name; if one is sharded over ranks, this rank's part is kept. Raises ValueError, naming the file and the tensor, for
    one that is missing, unexpected, of another shape, or not finite."""
    tensors = {}
    for path, stored, tensor in stored_tensors(paths, device):
        name = EMBEDDING if stored == HEAD and HEAD not in expected else stored  # a tied matrix may have both names
        if name not in expected:
            raise ValueError(f"{path}: unexpected {stored}")
        if tensor.shape != expected[name].shape:
            raise ValueError(f"{path}: {stored} is {tuple(tensor.shape)}, "
                             f"config.json asks for {tuple(expected[name].shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: {stored} is of type {tensor.dtype}, not float32, bfloat16 or float16")

        # No NaN, and no infinity. But some models have rows of them for ids that no text has: these become the mean of
        # the others, so that their logit is the mean of the others' and never the largest (Hewitt, 2021).
        tensor = tensor.to(dtype)
        if not all(bound.isfinite() for bound in tensor.aminmax()):
            used = tensor.isfinite().any(-1)  # (V,) of a vocabulary
            mean = tensor[used].mean(0, dtype=torch.float32).to(dtype)  # (C,)
            if name not in (EMBEDDING, HEAD) or not mean.isfinite().all():
                hint = "add --dtype bfloat16, or " if dtype == torch.float16 else ""
                raise ValueError(f"{path}: {stored} holds NaN or infinity in {dtype}; {hint}fetch or train it again")
            tensor = torch.where(used[:, None], tensor, mean)
        tensor = placed_like(expected[name], tensor)
        if name in tensors and not tensors[name].equal(tensor):
            raise ValueError(f"{path}: {HEAD} is another matrix than {EMBEDDING}; set its tie_word_embeddings to false")
        tensors[name] = tensor
    if missing := sorted(expected.keys() - tensors.keys()):
        rest = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"{paths[0]}: missing {', '.join(missing[:3])}{rest}")
    return tensors


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
            raise OSError(str(error)) from None  # a full disk; `replacing` adds the file's name
        temporary.chmod(0o644)  # the library lets only its owner read it


def write_companions(folder: Path, base: Path, tuned: bool, prompt: str = PROMPT):
    """Write what other tools read beside config.json and the weights: the tokenizer of `base`, generation_config.json
    and, if the model is `tuned` on dialogues, the chat template of `prompt`. Nothing comes from the base's
    tokenizer_config.json: transformers 5 splits texts by the rules of the class that it names, such as LlamaTokenizer,
    and the model was trained on other tokens."""
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


@contextmanager
def claimed(out: Path, model: Path):
    """Keep the folder `out` for this run: made if it is not there, and then removed if nothing was written. Raises
    OSError if another run has it, ValueError if it holds something else than a run."""
    if out.is_file() or out.resolve() == model.resolve():
        raise ValueError(f"--out {out} is a file, or is the folder of --model; choose another")
    if not is_main():  # rank 0 holds the folder for all
        yield
        return
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    held = hold(out)
    try:
        for leftover in out.glob(".*.[0-9]*.tmp"):  # of a run that was killed while it wrote, see `replacing`
            leftover.unlink()
        if any(out.iterdir()) and not (out / CHECKPOINT).exists() and not (out / RECORD).exists():
            raise ValueError(f"--out {out} holds files that are no run of train.py's; choose another (make: OUT=...)")
        yield
    finally:
        os.close(held)
        if made and not any(out.iterdir()):
            out.rmdir()


def state(out: Path, settings: dict, resume: bool, overwrite: bool) -> str:
    """How much of a run with these settings --out holds: "nothing", "half" (go on from the checkpoint) or "all". Raises
    ValueError if it holds a run that is not to be continued, or one with other settings."""
    path = out / RECORD if (out / RECORD).exists() else out / CHECKPOINT
    if overwrite or not path.exists():
        return "nothing"
    if not resume:
        raise ValueError(f"{out} holds another run; --resume continues it, --overwrite discards it (or another --out)")
    found = read_json(path, AFRESH) if path.name == RECORD else checkpoint_metadata(path)["settings"]
    for key, value in settings.items():
        other = found.get(key) if isinstance(found, dict) else None
        if other != value:
            difference = f"{key} = {other}, not {value}"
            if key.endswith("_sha256"):  # of files, whatever their path
                difference = f"other files of its {key.removesuffix('_sha256')}"
            raise ValueError(f"{path} is of a run with {difference}; choose another --out (make: OUT=...), or {AFRESH}")
    return "all" if path.name == RECORD else "half"


def discard(out: Path):
    """Remove the run that a folder holds."""
    for name in (CHECKPOINT, RECORD, "model.safetensors"):
        (out / name).unlink(missing_ok=True)


def save_checkpoint(path: Path, model, optimizer, settings: dict, epochs_done: int, curves: dict):
    """Write weights, AdamW's moments and the curves (the loss of every step, and more) in one file, so that they cannot
    come apart. Every rank must call this. Raises OSError."""
    tensors = dict(model.named_parameters())
    for name, parameter in model.named_parameters():
        tensors |= {f"{name}.{moment}": optimizer.state[parameter][moment] for moment in MOMENTS}
    tensors = gathered(tensors)
    if is_main():
        run = {"settings": settings, "epochs": epochs_done, "curves": curves}
        save_tensors(path, tensors, {"run": json.dumps(run)})


def checkpoint_metadata(path: Path) -> dict:
    """What save_checkpoint wrote beside the tensors. Raises ValueError if `path` is not a checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["run"])
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); {AFRESH}") from None


def load_checkpoint(path: Path, model, optimizer) -> tuple[int, dict]:
    """Restore what save_checkpoint wrote, in place. Returns (epochs_done, curves). Raises ValueError."""
    expected = dict(model.named_parameters())
    for name, parameter in model.named_parameters():
        expected |= {f"{name}.{moment}": parameter for moment in MOMENTS}
    run, tensors = checkpoint_metadata(path), load_tensors([path], expected, torch.float32, model.device)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[name])
        optimizer.state[parameter] = {moment: tensors[f"{name}.{moment}"] for moment in MOMENTS}
        optimizer.state[parameter]["step"] = torch.tensor(float(len(run["curves"]["loss"])), device=model.device)
    return run["epochs"], run["curves"]
