"""Llama (Touvron et al., 2023), and with it Mistral and OLMo, in one file.

    model = Llama.from_pretrained("data/tiny")
    logits = model(ids)                  # (B, T) int64 -> (B, T, V)
    model.save_pretrained("out/copy")    # config.json and model.safetensors

Modules have the names that model hubs use, so a checkpoint's tensors load by name.
"""
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from data.checkpoint import config_text, load_tensors, read_config, save_tensors, weight_files
from data.common import write_text


@dataclass
class Config:
    """The architecture, under the hub's own key names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    eos_token_id: int | list  # several: each ends a response, and training writes the first
    bos_token_id: int | None = None  # None: the model has no BOS
    num_key_value_heads: int | None = None  # None: as many as query heads
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # Llama 3.1's, see rotary_angles
    sliding_window: int | None = None  # Mistral's: how many tokens a token sees, itself among them
    clip_qkv: float | None = None  # OLMo's: queries, keys and values are clamped to +-clip_qkv
    tie_word_embeddings: bool = False  # the embedding is the vocabulary matrix too
    model_type: str = "llama"
    dtype: str = "float32"  # of the weights on disk

    def __post_init__(self):
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def context(self) -> int:
        """The most tokens that a sequence may have."""
        return self.max_position_embeddings

    @classmethod
    def from_json(cls, path) -> "Config":
        """Read a config.json. Raises FileNotFoundError, or ValueError naming a missing, wrong or unsupported key."""
        return read_config(path, cls)

    def to_json(self) -> str:
        """The text of a config.json that transformers and other readers of the hub's layout understand."""
        return config_text(self)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich, 2019).

    The mean is over the last dimension, taken in fp32 whatever the type of x. weight: (C,), ones at first.
    The result has the shape and type of x.
    """

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):  # (B, T, C) -> (B, T, C)
        return F.rms_norm(x, self.weight.shape, self.weight.type_as(x), self.eps)


class LayerNorm(nn.Module):
    """(x - mean) / standard deviation, with no weight or bias, in fp32: OLMo's (Groeneveld et al., 2024)."""

    def forward(self, x):  # (B, T, C) -> (B, T, C)
        return F.layer_norm(x.float(), x.shape[-1:], eps=1e-5).type_as(x)


def norm(config: Config) -> nn.Module:
    return LayerNorm() if config.model_type == "olmo" else RMSNorm(config.hidden_size, config.rms_norm_eps)


def rotary_angles(positions, config: Config):
    """cos and sin of the angles position * f_i, f_i = rope_theta^(-2i / D) for i < D/2, D = head_dim (Su et al., 2021).

    positions: (T,) or (B, T) integers. Returns two fp32 tensors, (1, T, 1, D/2) or (B, T, 1, D/2): the third
    dimension broadcasts over heads.

    With config.rope_scaling (Llama 3.1), f_i becomes (1 - k) * f_i / factor + k * f_i. There k rises linearly from
    0 to 1 as the frequency's number of turns in the original context, original_max_position_embeddings * f_i / (2 pi),
    goes from low_freq_factor to high_freq_factor; below it is 0, above it is 1.
    """
    exponents = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents  # (D/2,)
    if scaling := config.rope_scaling:
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)  # (D/2,)
        frequencies = (1 - kept) * frequencies / scaling["factor"] + kept * frequencies
    angles = positions[..., None].float() * frequencies  # (T, D/2) or (B, T, D/2)
    angles = angles.reshape(-1, positions.shape[-1], 1, config.head_dim // 2)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn each pair (a, b) = (x[i], x[i + D/2]) of a head by its position's i-th angle.

    It becomes (a cos - b sin, b cos + a sin), in fp32, since bf16 loses the angles' low bits. Pairing a head's first
    half with its second is the hub's layout; Su et al. (2021) pair neighbours. x: (B, T, H, D). cos, sin: from
    rotary_angles. Returns the shape and type of x.
    """
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


def attend(q, k, v, mask=None):
    """softmax(q k^T / sqrt(D)) v, the softmax over the keys that a query may see (Vaswani et al., 2017).

    q: (B, H, T, D). k, v: (B, n_kv_heads, S, D), where H is a multiple of n_kv_heads and query head h uses key head
    h // (H / n_kv_heads). mask: (B or 1, 1, H / n_kv_heads * T, S) bool, True where a query may see a key; its third
    dimension runs over the query heads that share keys, and within each over T. None: S = T, and query t sees
    keys 0 to t. Returns (B, H, T, D), in the type of q.
    """
    if mask is not None:  # query heads that share keys become rows of one, so that a long cache is read once for all
        rows = q.reshape(*k.shape[:2], mask.shape[2], -1)  # (B, n_kv_heads, H / n_kv_heads * T, D)
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask).reshape(q.shape)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # CPUs are faster at it in fp32
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] < q.shape[1])


class Attention(nn.Module):
    """Causal self-attention with grouped queries (Ainslie et al., 2023): n_kv_heads <= n_heads."""

    def __init__(self, config: Config):
        super().__init__()
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.clip = config.head_dim, config.clip_qkv
        self.q_proj = nn.Linear(config.hidden_size, self.n_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.n_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.n_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.n_heads * self.head_dim, config.hidden_size, bias=False)

    def project(self, x):
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def forward(self, x, cos, sin, cache, at, mask, needed):
        """x: (B, T, C). cos, sin: (1 or B, T, 1, D/2). cache: None or two (B, n_kv_heads, S, D). at: None or the rows
        and columns of the cache where the new keys go, which broadcast to (B, T). mask: None for causal, or as `attend`
        has it. Returns (B, T, C). needed: None, or what `needed_tokens` returns; then x is (N, C), and so is what is
        returned."""
        q, k, v = self.project(x)
        if needed is not None:
            where, number = needed
            q, k, v = (t.index_select(0, number.flatten()).view(*number.shape, -1) for t in (q, k, v))  # (B, T, ...)
        B, T, _ = q.shape
        if self.clip:
            q, k, v = (t.clamp(-self.clip, self.clip) for t in (q, k, v))
        q = rotate(q.view(B, T, self.n_heads, self.head_dim), cos, sin)
        k = rotate(k.view(B, T, self.n_kv_heads, self.head_dim), cos, sin)
        v = v.view(B, T, self.n_kv_heads, self.head_dim)
        if cache is not None:
            keys, values = (t.transpose(1, 2) for t in cache)  # (B, S, n_kv_heads, D) each
            keys[at], values[at] = k, v  # each row at its own length, over what padding left there
            if mask is not None:
                k, v = keys[:, : mask.shape[3]], values[:, : mask.shape[3]]
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, -1)
        if needed is not None:
            y = y.flatten(0, 1).index_select(0, where)  # (N, n_heads * D)
        return self.o_proj(y)  # (B, T, C) or (N, C)


class MLP(nn.Module):
    """SwiGLU: down((silu(gate x)) * (up x)), silu(z) = z / (1 + e^-z) (Shazeer, 2020).

    gate and up are matrices from C to intermediate_size, down is one from there back to C; none has a bias.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

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

    def forward(self, x, cos, sin, cache, at, mask, needed):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, at, mask, needed)
        return x + self.mlp(self.post_attention_layernorm(x))


def needed_tokens(ids, wanted):
    """The tokens to compute where only some outputs are wanted: none behind a row's last wanted one, and the tokens
    with which several rows begin once, since a token's output depends on it and those before it alone.

    ids: (B, T) int64. wanted: (B, T) bool. Returns where, (N,) int64, the places of these tokens in ids.flatten(), and
    number, (B, T) int64: which of the N stands for a token (any, for one that is not needed). N is at least 1.
    """
    rows = torch.arange(len(ids), device=ids.device, dtype=torch.int32)[:, None]  # (B, 1)
    n_wanted = wanted.cumsum(1)
    used = wanted | (n_wanted < n_wanted[:, -1:])  # (B, T), True up to a row's last wanted token
    used[0, 0] = True
    alike = (ids[:, None] != ids).cumsum(2) == 0  # (B, B, T), True where two rows are equal up to a token
    # (B, T), the first row like this one that uses the token: the rows count down, so one number is the largest
    first = ((alike & used) * (len(ids) - rows)).argmax(1)
    computed = used & (first == rows)
    number = (computed.flatten().cumsum(0) - 1).view(ids.shape).gather(0, first)  # (B, T)
    return computed.flatten().nonzero()[:, 0], number


class Llama(nn.Module):
    """A causal language model. `hidden` and `logits` are its two halves: project only what is scored."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # Zeros until a checkpoint or `init_weights` comes: nn.Embedding's own random values would, on the meta device
        # of `from_pretrained`, make PyTorch import its compiler, which takes a second.
        embedding = torch.zeros(config.vocab_size, config.hidden_size)
        self.model = nn.ModuleDict(dict(
            embed_tokens=nn.Embedding.from_pretrained(embedding, freeze=False),
            layers=nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers)),
            norm=norm(config),
        ))
        self.gradient_checkpointing = False  # keep each layer's input alone for backward, and compute the rest again
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head(self) -> nn.Module:
        """The module whose weight is the vocabulary matrix, (V, C)."""
        return self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def hidden(self, ids, cache=None, start=None, wanted=None):
        """The normed output of the last layer. ids: (B, T) int64. Returns (B, T, C).

        Rows are padded on the right: with causal attention a token cannot see those after it, so padding needs
        no mask. cache: from `new_cache`, written in place. start: (B,) int64, how many tokens of each row the
        cache already holds; None for the first call on a cache.
        wanted: (B, T) bool, without a cache: return the outputs there alone, (N wanted, C), and compute no token that
        they do not need.
        """
        T, window, mask, needed = ids.shape[1], self.config.sliding_window, None, None
        positions = torch.arange(T, device=ids.device)  # (T,)
        if start is not None:
            positions = start[:, None] + positions  # (B, T)
        at = torch.arange(len(ids), device=ids.device)[:, None], positions  # (B, 1), (B or 1, T)
        if start is not None or (window and T > window):
            S = T if start is None else cache[0][0].shape[2]
            if start is not None and ids.device.type == "cpu":  # not on a GPU, whose recorded steps need one shape
                S = positions.max().item() + 1  # behind the longest row the cache is empty
            slots = torch.arange(S, device=ids.device)  # (S,)
            groups = self.config.num_attention_heads // self.config.num_key_value_heads
            last = positions.repeat(1, groups)[..., None]  # (B or 1, groups * T, 1)
            mask = (slots <= last)[:, None]  # (B or 1, 1, groups * T, S)
            if window:
                mask &= (slots > last - window)[:, None]
        cos, sin = rotary_angles(positions, self.config)
        if wanted is not None:
            needed = where, number = needed_tokens(ids, wanted)
            ids, wanted = ids.flatten()[where], number[wanted]  # (N,), (N wanted,)
        x = self.model.embed_tokens(ids)  # (B, T, C) or (N, C)
        for i, layer in enumerate(self.model.layers):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, None, None, mask, needed, use_reentrant=False)
            else:
                x = layer(x, cos, sin, cache and cache[i], at, mask, needed)
        return self.model.norm(x if wanted is None else x.index_select(0, wanted))

    def logits(self, h):
        """Next-token logits of hidden states. (..., C) -> (..., V)."""
        return F.linear(h, self.head.weight)

    def forward(self, ids, cache=None, start=None):
        return self.logits(self.hidden(ids, cache, start))  # (B, T, V)

    def new_cache(self, batch_size: int, length: int):
        """An empty key/value cache: for each layer two tensors, (batch_size, n_kv_heads, length, head_dim)."""
        weight = self.model.embed_tokens.weight
        shape = (batch_size, self.config.num_key_value_heads, length, self.config.head_dim)
        return [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.model.layers]

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
        """Load a folder in the hub's layout, tensor by tensor, into `dtype` on `device`.

        shard: called with the model while it has no data yet; of the parameters that it splits over ranks, only
        this rank's parts are kept. Raises FileNotFoundError for an absent file, ValueError for a config or tensors
        that are not as they must be (see data/checkpoint.py).
        """
        config = Config.from_json(Path(path) / "config.json")
        with torch.device("meta"):
            model = cls(config)
        if shard:
            shard(model)
        model.load_state_dict(load_tensors(weight_files(Path(path)), model.state_dict(), dtype, device), assign=True)
        return model

    def save_pretrained(self, path, dtype=None, tensors=None):
        """Write config.json and model.safetensors, each whole or not at all, in `dtype` (None: the weights' own).

        tensors: the whole state_dict of a model that is sharded over ranks. Raises OSError when the disk is full.
        """
        dtype = dtype or self.model.embed_tokens.weight.dtype
        save_tensors(Path(path) / "model.safetensors", tensors or self.state_dict(), {"format": "pt"}, dtype)
        config = replace(self.config, dtype=str(dtype).removeprefix("torch."))
        write_text(Path(path) / "config.json", config.to_json())
