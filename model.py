"""Llama (Touvron et al., 2023), and with it Mistral and OLMo, in one file, in the layout that model hubs serve.

    model = Llama.from_pretrained("data/tiny")
    logits = model(ids)                  # (B, T) int64 -> (B, T, V)
    model.save_pretrained("out/copy")    # config.json and model.safetensors

Modules carry the hub's names, so a checkpoint's tensors load by name with no table between.
"""
import json
import math
import os
import platform
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.checkpoint import checkpoint

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "olmo": "OlmoForCausalLM"}  # by model_type
# Keys of config.json that change the result, with the only value that this file implements.
SUPPORTED = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_interleaved": False, "attention_dropout": 0.0,
    "pretraining_tp": 1, "quantization_config": None,
}
# Keys that leave it as it is.
IGNORED = {
    "_name_or_path", "initializer_range", "is_llama_config", "pad_token_id", "transformers_version",
    "transformers.js_config", "use_cache",
}

INDEX = "model.safetensors.index.json"  # of a checkpoint in several files
A_MODEL_IS = "a model is a folder with config.json, model.safetensors and tokenizer.json"


@dataclass
class Config:
    """The architecture, under the hub's own key names.

    `dtype` is the type of the weights on disk; bos_token_id is None for models that have no BOS.
    rope_scaling is None, or Llama 3.1's stretching of the slow rotary frequencies. sliding_window is
    Mistral's; a sequence within it is attended to as a whole, and a longer one is refused. OLMo's norm
    has no weight, and its queries, keys and values are clamped to +-clip_qkv.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    eos_token_id: int
    bos_token_id: int | None = None
    num_key_value_heads: int | None = None  # None: as many as query heads
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    rms_norm_eps: int | float = 1e-6
    rope_theta: int | float = 10000.0
    tie_word_embeddings: bool = False
    dtype: str = "float32"
    model_type: str = "llama"
    rope_scaling: dict | None = None
    sliding_window: int | None = None
    clip_qkv: int | float | None = None

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, field.type):
                raise ValueError(f"{field.name} = {value!r} is not of type {getattr(field.type, '__name__', field.type)}")
            if type(value) in (int, float) and not value > (-1 if field.name.endswith("_token_id") else 0):
                raise ValueError(f"{field.name} = {value} is too small")
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"num_attention_heads = {self.num_attention_heads} is not a multiple of "
                             f"num_key_value_heads = {self.num_key_value_heads}")
        if max(self.eos_token_id, self.bos_token_id or 0) >= self.vocab_size:
            raise ValueError(f"eos_token_id = {self.eos_token_id} or bos_token_id = {self.bos_token_id} is beyond "
                             f"vocab_size = {self.vocab_size}")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype = {self.dtype!r} is not float32, bfloat16 or float16")
        if self.model_type not in ARCHITECTURES:
            raise ValueError(f"model_type = {self.model_type!r} is not supported, only {', '.join(ARCHITECTURES)} are")
        if self.rope_scaling:
            kind = self.rope_scaling.get("rope_type", self.rope_scaling.get("type"))
            if kind != "llama3":
                raise ValueError(f"rope_scaling of type {kind!r} is not supported, only 'llama3' is")
            for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
                if not isinstance(self.rope_scaling.get(key), int | float) or self.rope_scaling[key] <= 0:
                    raise ValueError(f"rope_scaling: {key} = {self.rope_scaling.get(key)!r} is not a number above 0")

    @property
    def context(self) -> int:
        """The most tokens that a sequence may have."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    @classmethod
    def from_json(cls, path) -> "Config":
        """Read config.json. Raises ValueError for a key that is missing, unknown, or set to what Llama here does not do."""
        path = Path(path)
        try:
            raw = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} does not exist; {A_MODEL_IS}") from None
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); fetch or write it again") from None
        if not isinstance(raw, dict):
            raise ValueError(f"{path}: expected a JSON object, found a {type(raw).__name__}")
        if "torch_dtype" in raw:  # the name before transformers 5
            raw["dtype"] = raw.pop("torch_dtype")
        rope = raw.pop("rope_parameters", None) or {}  # transformers 5 nests what was at the top
        if not isinstance(rope, dict):
            raise ValueError(f"{path}: rope_parameters = {json.dumps(rope)} is not an object")
        if "rope_theta" in rope:
            raw["rope_theta"] = rope.pop("rope_theta")
        if rope.get("rope_type", "default") != "default":
            raw["rope_scaling"] = rope
        supported = SUPPORTED | {"architectures": [ARCHITECTURES.get(raw.setdefault("model_type", "llama"))]}
        known = {field.name for field in fields(cls)}
        for key, value in raw.items():
            if key in supported and value != supported[key] and raw["model_type"] in ARCHITECTURES:
                raise ValueError(f"{path}: {key} = {json.dumps(value)} is not supported, only {json.dumps(supported[key])} is")
            if key not in known | supported.keys() | IGNORED:
                raise ValueError(f"{path}: unknown key {key!r}; if it does not change the result, add it to IGNORED in model.py")
        missing = [field.name for field in fields(cls) if field.default is field.default_factory and field.name not in raw]
        if missing:
            raise ValueError(f"{path}: missing {', '.join(missing)}")
        try:
            return cls(**{key: raw[key] for key in known & raw.keys()})
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None

    def to_json(self) -> str:
        """The text of a config.json that transformers and other readers of the hub's layout understand."""
        described = {"architectures": [ARCHITECTURES[self.model_type]], "hidden_act": "silu"} | asdict(self)
        described["torch_dtype"] = described.pop("dtype")
        for key in ("sliding_window", "clip_qkv", "rope_scaling"):  # of some architectures only
            if described[key] is None:
                del described[key]
        return json.dumps(described, indent=2) + "\n"


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last dimension (Zhang & Sennrich, 2019)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):  # (B, T, C) -> (B, T, C)
        return F.rms_norm(x, self.weight.shape, self.weight.type_as(x), self.eps)


def rotary_angles(positions, config: Config):
    """cos and sin of position * theta^(-2i / head_dim) for i < head_dim / 2 (Su et al., 2021).

    Llama 3.1 divides by `factor` the frequencies that turn less than low_freq_factor times in the
    original context, leaves those that turn more than high_freq_factor times, and blends between.
    positions: (T,) or (B, T). Returns two float32 tensors, (1 or B, T, 1, head_dim / 2): the
    third dimension broadcasts over heads.
    """
    exponents = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents  # (D/2,)
    if scaling := config.rope_scaling:
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)  # (D/2,)
        frequencies = (1 - kept) * frequencies / scaling["factor"] + kept * frequencies
    angles = positions[..., None].float() * frequencies  # (B, T, D/2)
    angles = angles.reshape(-1, positions.shape[-1], 1, config.head_dim // 2)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn each pair (x[i], x[i + D/2]) by its angle: the hub's half-split layout. (B, T, H, D) -> same."""
    a, b = x.float().chunk(2, dim=-1)  # angles lose their low bits in bf16, so turn in fp32
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class LayerNorm(nn.Module):
    """(x - mean) / standard deviation, with no weight or bias, in fp32: OLMo's (Groeneveld et al., 2024)."""

    def forward(self, x):  # (B, T, C) -> (B, T, C)
        return F.layer_norm(x.float(), x.shape[-1:], eps=1e-5).type_as(x)


def norm(config: Config) -> nn.Module:
    return LayerNorm() if config.model_type == "olmo" else RMSNorm(config.hidden_size, config.rms_norm_eps)


class Linear(nn.Linear):
    """x W^T. (..., in) -> (..., out)."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x):
        return project(x, self)


def project(x, module):
    """x W^T with the weight of `module`, or with what `Llama.pack` made of it. (..., C) -> (..., C')."""
    packed = getattr(module, "packed", None)
    if packed is None:
        return F.linear(x, module.weight)
    return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


class Attention(nn.Module):
    """Causal self-attention with grouped queries (Ainslie et al., 2023): n_kv_heads <= n_heads."""

    def __init__(self, config: Config):
        super().__init__()
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.clip = config.head_dim, config.clip_qkv
        self.q_proj = Linear(config.hidden_size, self.n_heads * self.head_dim)
        self.k_proj = Linear(config.hidden_size, self.n_kv_heads * self.head_dim)
        self.v_proj = Linear(config.hidden_size, self.n_kv_heads * self.head_dim)
        self.o_proj = Linear(self.n_heads * self.head_dim, config.hidden_size)

    def forward(self, x, cos, sin, cache, start, mask):
        """x: (B, T, C). cos, sin: (1 or B, T, 1, D/2). cache: None or two (B, n_kv_heads, S, D). start: None or (B,).
        mask: None for causal, or as `attend` has it. Returns (B, T, C)."""
        B, T, _ = x.shape
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.clip:
            q, k, v = (t.clamp(-self.clip, self.clip) for t in (q, k, v))
        q = rotate(q.view(B, T, self.n_heads, self.head_dim), cos, sin)
        k = rotate(k.view(B, T, self.n_kv_heads, self.head_dim), cos, sin)
        v = v.view(B, T, self.n_kv_heads, self.head_dim)
        if cache is not None:
            keys, values = (t.transpose(1, 2) for t in cache)  # (B, S, n_kv_heads, D) each
            if start is None:
                keys[:, :T], values[:, :T] = k, v
            else:  # each row writes at its own length, over what padding left there
                rows = torch.arange(B, device=x.device)[:, None]  # (B, 1)
                columns = start[:, None] + torch.arange(T, device=x.device)  # (B, T)
                keys[rows, columns], values[rows, columns] = k, v
                k, v = keys, values
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


def attend(q, k, v, mask=None):
    """softmax(q k^T / sqrt(D)) v, causal where mask is None. q: (B, H, T, D); k, v: (B, n_kv_heads, S, D).

    mask: (B, 1, H / n_kv_heads * T, S) bool, what each query may see. Returns (B, H, T, D).
    """
    if mask is not None:  # query heads that share keys become rows of one, so that a long cache is read once for all
        rows = q.reshape(*k.shape[:2], mask.shape[2], -1)  # (B, n_kv_heads, H / n_kv_heads * T, D)
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask).view_as(q)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # slower than fp32 on CPUs
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] < q.shape[1])


class MLP(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):  # (B, T, C) -> (B, T, C)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and MLP, each on a normed copy of the residual stream and added to it. Arguments as for Attention."""

    def __init__(self, config: Config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = norm(config)
        self.post_attention_layernorm = norm(config)

    def forward(self, x, cos, sin, cache, start, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, start, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A causal language model. `hidden` and `logits` are its two halves: project only what is scored."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict(dict(
            embed_tokens=nn.Embedding(config.vocab_size, config.hidden_size),
            layers=nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers)),
            norm=norm(config),
        ))
        self.gradient_checkpointing = False  # keep each layer's input alone for backward, and compute the rest again
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    @property
    def head(self) -> nn.Module:
        """The module whose weight is the vocabulary matrix, (V, C)."""
        return self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def hidden(self, ids, cache=None, start=None):
        """The normed output of the last layer. ids: (B, T) int64. Returns (B, T, C).

        Rows are padded on the right: with causal attention what comes later cannot reach back, so
        padding needs no mask. cache: what `new_cache` returns, written in place. start: (B,) int64,
        how many tokens of each row the cache already holds; None for the first call on a cache.
        """
        T = ids.shape[1]
        if self.config.sliding_window and T > self.config.sliding_window:
            raise ValueError(f"a sequence of {T} tokens is longer than the sliding window of {self.config.sliding_window}, "
                             "past which attention is not implemented; shorten it")
        positions = torch.arange(T, device=ids.device)  # (T,)
        mask = None
        if start is not None:
            positions = start[:, None] + positions  # (B, T)
            slots = torch.arange(cache[0][0].shape[2], device=ids.device)  # (S,)
            groups = self.config.num_attention_heads // self.config.num_key_value_heads
            mask = (slots <= positions.repeat(1, groups)[..., None])[:, None]  # (B, 1, groups * T, S)
        cos, sin = rotary_angles(positions, self.config)
        x = self.model.embed_tokens(ids)  # (B, T, C)
        for i, layer in enumerate(self.model.layers):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, None, None, None, use_reentrant=False)
            else:
                x = layer(x, cos, sin, cache and cache[i], start, mask)
        return self.model.norm(x)

    def logits(self, h):
        """Next-token logits of hidden states. (..., C) -> (..., V)."""
        return project(h, self.head)

    def forward(self, ids, cache=None, start=None):
        return self.logits(self.hidden(ids, cache, start))  # (B, T, V)

    def new_cache(self, batch_size: int, length: int):
        """An empty key/value cache: for each layer two tensors, (batch_size, n_kv_heads, length, head_dim)."""
        weight = self.model.embed_tokens.weight
        shape = (batch_size, self.config.num_key_value_heads, length, self.config.head_dim)
        return [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.model.layers]

    def pack(self):
        """Reorder large weights for decoding on an x86 CPU; elsewhere do nothing. The model can't be trained or saved after.

        A step of decoding only reads the weights, and reads them about twice as fast in the order in which
        the CPU's matrix kernel takes them (what torch.compile's freezing does, without the compiling). Small
        ones lie in the processor's cache anyway.
        """
        if self.device.type == "cpu" and torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64"):
            for module in {self.head, *(m for m in self.modules() if isinstance(m, Linear))}:
                if module.weight.numel() >= 100_000:
                    module.packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), 1)
                    if isinstance(module, Linear):  # the embedding's weight is still looked up
                        module.weight = None
        return self

    def init_weights(self, generator=None):
        """Random weights for pretraining: normal, 0.02, less where a layer adds to the residual (GPT-2)."""
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / (2 * self.config.num_hidden_layers) ** 0.5 if residual else 0.02
                nn.init.normal_(weight, std=std, generator=generator)
            else:
                nn.init.ones_(weight)
        return self

    @classmethod
    def from_pretrained(cls, path, dtype=torch.float32, device="cpu", shard=None) -> "Llama":
        """Load a folder in hub layout, tensor by tensor, into `dtype` on `device`.

        shard: called with the model while it has no data yet; of the parameters that it splits over
        ranks, only this rank's parts are kept.

        Raises FileNotFoundError for an absent file, ValueError for a config that is not supported, a
        file that is not whole, and tensors that are missing, unexpected or of the wrong shape.
        """
        config = Config.from_json(Path(path) / "config.json")
        with torch.device("meta"):
            model = cls(config)
        if shard:
            shard(model)
        files, expected, tensors = weight_files(Path(path)), model.state_dict(), {}
        if missing := sorted(expected.keys() - {name for names in files.values() for name in names or expected}):
            raise ValueError(f"{Path(path) / INDEX}: missing {shorten(missing)}")
        for file, names in files.items():
            here = expected if names is None else {name: expected[name] for name in names if name in expected}
            tensors |= load_tensors(file, here, dtype, device)
        model.load_state_dict(tensors, assign=True)
        return model

    def save_pretrained(self, path, dtype=None):
        """Write config.json and model.safetensors, each whole or not at all, in `dtype` (None: the weights' own).

        Of a sharded model rank 0 writes, but every rank must call this. Raises OSError when the disk is full.
        """
        path, dtype = Path(path), dtype or self.model.embed_tokens.weight.dtype
        save_tensors(path / "model.safetensors", self.state_dict(), {"format": "pt"}, dtype)
        if not is_main():
            return
        self.config.dtype = str(dtype).removeprefix("torch.")
        with replacing(path / "config.json") as temporary:
            temporary.write_text(self.config.to_json(), encoding="utf-8")


def weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """The safetensors files of a model folder, with the tensors that its index says are in each (None: no index, so all)."""
    single, index = folder / "model.safetensors", folder / INDEX
    if single.exists():
        return {single: None}
    if not index.exists():
        raise FileNotFoundError(f"{single} does not exist; {A_MODEL_IS}")
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        files = {}
        for name, file in weight_map.items():
            if Path(file).name != file:
                raise ValueError
            files.setdefault(folder / file, []).append(name)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f'{index}: expected {{"weight_map": {{tensor: file beside it}}}}; fetch it again') from None
    if absent := sorted(file.name for file in files if not file.exists()):
        raise FileNotFoundError(f"{index} names {shorten(absent)}, not found beside it; fetch the model again")
    return files


def load_tensors(path: Path, expected: dict, dtype, device) -> dict:
    """The tensors of a safetensors file, whose names and shapes must be those of `expected`.

    The file is opened anew for each, so that what has been read of it does not stay mapped beside the copies.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # Llama-1 checkpoints carry their rotary table, tied ones sometimes a second embedding: both are derived here.
            derived = {n for n in file.keys() if n.endswith("rotary_emb.inv_freq") or n == "lm_head.weight" and n not in expected}
            names = set(file.keys()) - derived
            if missing := sorted(expected.keys() - names):
                raise ValueError(f"{path}: missing {shorten(missing)}")
            if unexpected := sorted(names - expected.keys()):
                raise ValueError(f"{path}: unexpected {shorten(unexpected)}")
            shapes = {n: (tuple(file.get_slice(n).get_shape()), tuple(expected[n].shape)) for n in sorted(names)}
            wrong = [f"{n} is {found}, config.json asks for {wanted}" for n, (found, wanted) in shapes.items() if found != wanted]
            if wrong:
                raise ValueError(f"{path}: {shorten(wrong)}")
        tensors = {}
        for name in names:
            with safe_open(path, framework="pt", device=str(device)) as file:
                tensors[name] = placed_like(expected[name], file.get_tensor(name).to(dtype))
        return tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); fetch or write it again") from None


def placed_like(parameter, tensor):
    """This rank's part of `tensor` if `parameter` is sharded over ranks, else all of it."""
    if not hasattr(parameter, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # a second of importing, which only sharding needs

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def is_main() -> bool:
    """Whether this process is the one that prints and writes: the only one, or torchrun's rank 0."""
    return not dist.is_initialized() or dist.get_rank() == 0


def save_tensors(path: Path, tensors: dict, metadata: dict, dtype=None):
    """Write a safetensors file under a temporary name, then rename it over `path`.

    Tensors that are sharded over ranks are gathered one by one, which every rank must take part in; rank 0 writes.
    """
    whole = {}
    for name, tensor in tensors.items():
        tensor = (tensor.full_tensor() if hasattr(tensor, "placements") else tensor).detach()
        if is_main():
            whole[name] = tensor.to("cpu", dtype or tensor.dtype).contiguous()
    if not is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        try:
            save_file(whole, temporary, metadata)
            temporary.chmod(0o644)  # the library makes it for its owner alone
        except SafetensorError as error:
            raise OSError(f"could not write {path} ({error}); what was there before is untouched") from None


@contextmanager
def replacing(path):
    """A temporary name beside `path`, renamed over it if the block succeeds and removed if it fails."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def shorten(items: list, most: int = 3) -> str:
    """The first few of a list that may be long, for an error."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def device_name(text: str) -> str:
    """`text` if it names a processor that this machine has, for argparse. Raises ValueError otherwise."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError from None
    return text


def default_device() -> str:
    """The fastest kind of processor that this machine has."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
