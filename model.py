"""Llama (Touvron et al., 2023), and with it Mistral and OLMo, in one file: the base models of the paper (section 3).

    model = Llama.from_pretrained("data/tiny")
    logits = model(ids)                  # (B, T) int64 -> (B, T, V)
    model.save_pretrained("out/copy")    # config.json and model.safetensors

Modules have the names that model hubs use, so a checkpoint's tensors load by name. Letters in comments on shapes:

    B rows of a batch    T tokens of a row    S keys that a row's tokens may see    N tokens of a batch, each once
    C hidden_size    H query heads    D head_dim    V vocab_size
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
        """How many tokens a sequence may have."""
        return self.max_position_embeddings

    @classmethod
    def from_json(cls, path) -> "Config":
        """Read a config.json. Raises FileNotFoundError, or ValueError naming a missing, wrong or unsupported key."""
        return read_config(path, cls)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich, 2019).

    The mean is over the last dimension, in fp32 whatever the type of x; the result has the type of x. weight: (C,).
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

    positions: (T,) or (B, T) integers. Returns two fp32 tensors, (1 or B, T, 1, D/2), which broadcast over heads.
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
    half with its second is the hub's layout; Su et al. (2021) pair neighbours. x: (B, T, H, D). The result is like x.
    """
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


def visible(positions, n_keys: int, window: int | None = None):
    """Which keys a query may see: up to its own position, and with a window only the last `window` of these.

    positions: (B or 1, T), of the queries; the keys have 0 to n_keys - 1. Returns (B or 1, T, n_keys) bool.
    """
    distance = positions[..., None] - torch.arange(n_keys, device=positions.device)  # (B or 1, T, S), in tokens back
    if window is None:
        return distance >= 0
    return (distance >= 0) & (distance < window)


def attend_slowly(q, k, v, mask):
    """softmax(q k^T / sqrt(D)) v, the softmax over the keys that a query may see (Vaswani et al., 2017).

    q: (B, H, T, D). k, v: (B, n_kv_heads, S, D), where H is a multiple of n_kv_heads and query head h uses key head
    h // (H / n_kv_heads). mask: (B or 1, T, S) bool, from `visible`. Returns (B, H, T, D). `attend` must equal this.
    """
    n_sharing = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(n_sharing, dim=1)  # (B, H, S, D)
    v = v.repeat_interleave(n_sharing, dim=1)  # (B, H, S, D)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])  # (B, H, T, S)
    scores = scores.masked_fill(~mask[:, None], -math.inf)
    return scores.softmax(dim=3) @ v


def attend(q, k, v, mask=None):
    """`attend_slowly` by PyTorch's kernels: FlashAttention (Dao, 2023) on a GPU. mask: None for the causal case, where
    S = T and query t sees keys 0 to t. The result has the type of q."""
    B, H, T, D = q.shape
    n_kv_heads = k.shape[1]

    # With a mask, the query heads that share a key head become more rows of it: a long cache is read once for all.
    if mask is not None:
        n_sharing = H // n_kv_heads
        rows = q.reshape(B, n_kv_heads, n_sharing * T, D)
        if T > 1:  # else one row of the mask serves all
            mask = mask.repeat(1, n_sharing, 1)
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask[:, None]).reshape(q.shape)

    # CPUs are faster at the causal kernel in fp32.
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=n_kv_heads < H)


class Attention(nn.Module):
    """Causal self-attention with grouped queries (Ainslie et al., 2023): n_kv_heads <= n_heads. layer: from 0."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer, self.clip, self.head_dim = layer, config.clip_qkv, config.head_dim
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(config.hidden_size, self.n_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.n_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.n_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.n_heads * self.head_dim, config.hidden_size, bias=False)

    def project(self, x):  # data/device.py may put a faster product in its place
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def forward(self, x, cos, sin, mask=None, cache=None, shared=None):
        """x: (B, T, C). cos, sin: (B or 1, T, 1, D/2), from `rotary_angles`. mask: (B or 1, T, S) bool, from `visible`;
        None: causal. cache: a KVCache, or None. shared: None, or (index, places) as `Llama.hidden` has them; then x is
        (1, N, C). Returns the shape of x."""
        # Each token's queries, keys and values. If rows share their beginnings, each row gets its tokens back here.
        q, k, v = self.project(x)
        if shared is not None:
            index, places = shared
            q, k, v = take(q, index), take(k, index), take(v, index)  # (1, N, ...) -> (B, T, ...)
        if self.clip:
            q, k, v = (t.clamp(-self.clip, self.clip) for t in (q, k, v))

        # Queries and keys are turned by their positions.
        B, T, _ = q.shape
        q = rotate(q.view(B, T, self.n_heads, self.head_dim), cos, sin)
        k = rotate(k.view(B, T, self.n_kv_heads, self.head_dim), cos, sin)
        v = v.view(B, T, self.n_kv_heads, self.head_dim)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or n_kv_heads, T, D)

        # With a cache, the keys and values of the earlier tokens come before these.
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, n_kv_heads, S, D)

        # Each query reads the values of the keys that it may see.
        y = attend(q, k, v, mask)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, self.n_heads * self.head_dim)
        if shared is not None:
            y = take(y, places)  # (B, T, H * D) -> (1, N, H * D)
        return self.o_proj(y)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate x) * (up x)), silu(z) = z / (1 + e^-z); three matrices, no bias (Shazeer, 2020)."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):  # (B, T, C) -> (B, T, C)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and MLP, each on a normed copy of the residual stream and added to it. Arguments as for Attention."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = norm(config)
        self.post_attention_layernorm = norm(config)

    def forward(self, x, cos, sin, mask=None, cache=None, shared=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache, shared)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A causal language model. `hidden` and `logits` are its two halves: project only what is scored."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # Zeros until weights come: on the meta device of `from_pretrained`, nn.Embedding's own random values would make
        # PyTorch import its compiler, which takes a second.
        embedding = torch.zeros(config.vocab_size, config.hidden_size)
        self.model = nn.ModuleDict(dict(
            embed_tokens=nn.Embedding.from_pretrained(embedding, freeze=False),
            layers=nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers)),
            norm=norm(config),
        ))
        self.gradient_checkpointing = False  # True: keep only each layer's input for backward, compute the rest again
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head(self) -> nn.Module:
        """The module whose weight is the vocabulary matrix, (V, C)."""
        return self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def hidden(self, ids, cache=None, shared=None, wanted=None):
        """The normed output of the last layer. ids: (B, T) int64. Returns (B, T, C).

        Rows are padded on the right: with causal attention a token cannot see those after it, so padding needs no mask.
        cache: a KVCache. The tokens come behind those that it holds; afterwards the caller advances it.
        shared: (index, places), if rows begin alike and each beginning is computed once: then all but attention runs on
        N tokens, ids is (1, N), and so is the result, (1, N, C). index, (B, T), says which of the N is at each place of
        a row; places, (1, N), at which place of index.flatten() each of the N is. train.py's `collate` has an example.
        wanted: (n,) int64, places in ids.flatten(): only their outputs are normed and returned, (n, C).
        """
        # 1. Each token's position in its row, and how many keys the row has.
        T = ids.shape[1] if shared is None else shared[0].shape[1]
        positions = torch.arange(T, device=ids.device)[None]  # (1, T)
        n_keys = T
        if cache is not None:
            positions, n_keys = cache.reserve(T)  # (B, T)

        # 2. Which keys it sees. If all keys are new and no window hides any, attention is causal and needs no mask.
        window, mask = self.config.sliding_window, None
        if n_keys > T or (window and T > window):
            mask = visible(positions, n_keys, window)  # (B or 1, T, S)

        # 3. The layers, each of which adds to the residual stream x.
        cos, sin = rotary_angles(positions, self.config)
        x = self.model.embed_tokens(ids)  # (B, T, C) or (1, N, C)
        for layer in self.model.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, mask, cache, shared, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask, cache, shared)
        if wanted is not None:
            x = take(x, wanted)  # (n, C)
        return self.model.norm(x)

    def logits(self, h):
        """Next-token logits of hidden states. (..., C) -> (..., V)."""
        return F.linear(h, self.head.weight)

    def forward(self, ids, cache=None):
        return self.logits(self.hidden(ids, cache))  # (B, T, V)

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

        shard(model) may split the parameters over ranks while they have no data yet. Raises FileNotFoundError for an
        absent file, ValueError for a config or tensors that are not as they must be (see data/checkpoint.py).
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
        tensors: the whole state_dict of a model that is sharded over ranks. Raises OSError."""
        dtype = dtype or self.model.embed_tokens.weight.dtype
        save_tensors(Path(path) / "model.safetensors", tensors or self.state_dict(), {"format": "pt"}, dtype)
        config = replace(self.config, dtype=str(dtype).removeprefix("torch."))
        write_text(Path(path) / "config.json", config_text(config))


def take(x, index):
    """x.flatten(0, -2)[index], but with a faster gradient. x: (..., C). Returns (*index.shape, C)."""
    return x.flatten(0, -2).index_select(0, index.flatten()).view(*index.shape, x.shape[-1])


class KVCache:
    """The keys and values of the tokens so far, so that every token goes through the model once.

    Each row of the batch has a length of its own: its next token comes behind its last one, over what padding left
    there. keys[i] and values[i] are layer i's, (B, n_kv_heads, n_slots, D). lengths: (B,) int64, how many slots of each
    row are filled; longest: no row has more.
    """

    BLOCK = 128  # slots that `grow` adds

    def __init__(self, model: Llama, batch_size: int, n_slots: int):
        config, weight = model.config, model.model.embed_tokens.weight
        shape = (batch_size, config.num_key_value_heads, n_slots, config.head_dim)
        self.keys = [weight.new_zeros(shape) for _ in model.model.layers]
        self.values = [weight.new_zeros(shape) for _ in model.model.layers]
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        self.longest = 0

    @property
    def n_slots(self) -> int:
        return self.keys[0].shape[2]

    def reserve(self, n_tokens: int):
        """Choose the slots of each row's next tokens. Returns their positions, (B, n_tokens), and the number of keys
        that attention will read."""
        device = self.lengths.device
        self.rows = torch.arange(len(self.lengths), device=device)[:, None]  # (B, 1)
        self.positions = self.lengths[:, None] + torch.arange(n_tokens, device=device)  # (B, n_tokens)
        self.n_keys = self.longest + n_tokens  # behind the longest row there is nothing to read
        if self.longest and device.type == "cuda":
            self.n_keys = self.n_slots  # all the same: the steps that data/device.py records need one shape
        return self.positions, self.n_keys

    def append(self, layer: int, k, v):
        """Write a layer's new keys and values, (B, n_kv_heads, n_tokens, D), into the slots that `reserve` chose.

        Returns the keys and values that attention reads, (B, n_kv_heads, S, D).
        """
        self.keys[layer][self.rows, :, self.positions] = k.transpose(1, 2)
        self.values[layer][self.rows, :, self.positions] = v.transpose(1, 2)
        return self.keys[layer][:, :, : self.n_keys], self.values[layer][:, :, : self.n_keys]

    def advance(self, n_tokens):
        """Count the tokens that the model has now read. n_tokens: (B,) int64, or an int for all rows alike."""
        self.lengths += n_tokens  # in place: a recorded step reads this tensor
        self.longest += n_tokens if isinstance(n_tokens, int) else int(n_tokens.max())

    def keep(self, rows):
        """Drop all but some rows of the batch. rows: (n,) int64."""
        self.lengths = self.lengths[rows]
        self.longest = int(self.lengths.max())
        for i in range(len(self.keys)):  # layer by layer: then two copies of one layer are held, not of all
            self.keys[i], self.values[i] = self.keys[i][rows], self.values[i][rows]

    def grow(self):
        """Add BLOCK empty slots to every row."""
        for i in range(len(self.keys)):
            self.keys[i] = F.pad(self.keys[i], (0, 0, 0, self.BLOCK))
            self.values[i] = F.pad(self.values[i], (0, 0, 0, self.BLOCK))
