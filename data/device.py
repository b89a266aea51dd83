"""The machine: the names of its processors, and ways to be fast on each. Where one refuses, a sentence says so and the
work is done without."""
import ctypes
import os
import platform
import shutil
import sys

import torch
import torch.nn as nn

from data.common import ran_out_of_memory


def device_name(text: str) -> str:
    """`text` if it names a processor that this machine has, for argparse. Raises ValueError otherwise."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError from None
    return text


device_name.__name__ = "device"  # argparse: "invalid device value: 'abacus'"


def default_device() -> str:
    """The fastest kind of processor that this machine has."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def fast_bf16(device: str) -> bool:
    """Whether the processor multiplies bf16 matrices faster than fp32 ones."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu" or not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False  # the last asks what the kernels may use, which can be less than what the processor has
    capabilities = torch.cpu.get_capabilities()
    return capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)


def prepare(device: str):
    """Settings of the process that make training faster: freed memory is kept, fp32 products on a GPU use TF32."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        # glibc hands large blocks back when they are freed, and the next tensor is new pages that the system
        # must zero: a fifth of a training step on a CPU. M_MMAP_MAX = -4, M_TRIM_THRESHOLD = -1.
        ctypes.CDLL(None).mallopt(-4, 0)
        ctypes.CDLL(None).mallopt(-1, -1)
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")


def has_compiler() -> bool:
    """Whether torch.compile finds what it needs on a CPU."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))


def check_compiler(device: str):
    """Raises ValueError where --compile cannot work."""
    if device == "cpu" and not has_compiler():
        raise ValueError("--compile on a CPU needs a C++ compiler, and neither g++ nor clang++ is on the path; "
                         "leave it out")


def compile_layers(model):
    """torch.compile each layer: they are alike, so the code is made once, where the whole model's would repeat it."""
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)


def or_eagerly(model, step):
    """step(), a step's gradient; where compiled layers fail, a sentence says so and plain layers do it again."""
    compiled = any("forward" in vars(layer) for layer in model.model.layers)
    try:
        return step()
    except Exception as error:
        if not compiled or ran_out_of_memory(error):
            raise
        stop_compiling(model, error, "training")
    model.zero_grad()
    return step()


def stop_compiling(model, error: Exception, work: str):
    """Plain layers again, and a sentence that says why. work: what goes on, "training" or "decoding"."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    print(f"torch.compile failed ({reason[:200]}); {work} goes on without it, more slowly", file=sys.stderr)
    vars(model).pop("logits", None)
    for layer in model.model.layers:
        vars(layer).pop("forward", None)


class VectorLinear(nn.Linear):
    """Multiplies a single vector row by row, which compiles to a loop that reads the weight as fast as memory can."""

    def forward(self, x):  # (..., in_features) -> (..., out_features)
        if torch.compiler.is_compiling() and x.numel() == self.in_features:
            return (x[..., None, :] * self.weight).sum(-1)
        return super().forward(x)


def compile_decoding(model, batch_size: int):
    """torch.compile the layers for the steps of decoding; the prompt goes through plain ones. The work is done at once,
    and where it fails, a sentence says so and the layers stay plain.

    On a CPU this is for one sequence: then a layer's step becomes two loops and attention between them, instead of some
    seventy operators (tests/README.md, Speed). More sequences profit more from `reorder_weights_for_cpu`.
    batch_size: how many sequences a step will have.
    """
    def compile_layer(layer):
        plain, compiled = layer.forward, torch.compile(layer.forward, dynamic=True)
        layer.forward = lambda x, *rest: (compiled if x.shape[1] == 1 else plain)(x, *rest)

    for layer in model.model.layers:
        compile_layer(layer)
    if model.device.type == "cpu":
        for module in model.model.layers.modules():
            if type(module) is nn.Linear:
                module.__class__ = VectorLinear
        weight = model.head.weight
        model.logits = torch.compile(lambda h: (h[:, None] * weight).sum(-1))  # (1, C) -> (1, V)
    try:
        with torch.inference_mode():  # as in generate, whose cache is of another kind than one that is made outside
            cache, start = model.new_cache(batch_size, 16), torch.full((batch_size,), 8, device=model.device)
            model.logits(model.hidden(torch.zeros_like(start)[:, None], cache, start)[:, 0])
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        stop_compiling(model, error, "decoding")


def reorder_weights_for_cpu(model, batch_size: int):
    """Put large weights in the order in which an x86 CPU's matrix kernel reads them. The model can only decode after.

    A step of decoding mostly reads the weights, and reads them up to twice as fast so. The matrices of queries, keys
    and values become one, which saves calls. Small ones lie in the processor's cache anyway. Elsewhere, and where the
    operator refuses (bf16 without AVX-512), nothing is done.
    batch_size: how many sequences a step will have; oneDNN chooses the order for that number.
    """
    x86 = model.device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    if not x86 or not torch.backends.mkldnn.is_available():
        return model

    def reordered(*layers):
        """A function that multiplies by the layers' weights, or None where there is no use or no way."""
        weight = torch.cat([layer.weight.detach() for layer in layers])  # (out, in)
        if weight.numel() < 100_000:
            return None
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, batch_size)
        except RuntimeError:
            return None
        for layer in layers:
            if isinstance(layer, nn.Linear):  # an embedding's rows are still looked up
                layer.weight = None
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")

    def project_at_once(attention):
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        sizes = [len(part.weight) for part in parts]
        if product := reordered(*parts):
            attention.project = lambda x: product(x).split(sizes, -1)

    for layer in model.model.layers:
        project_at_once(layer.self_attn)
        for linear in (layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            if product := reordered(linear):
                linear.forward = product
    if product := reordered(model.head):
        model.logits = product
    return model


def warn_without_flash(model):
    """Say why, where SDPA will not use the flash kernel (Dao, 2023) for what this model trains on a GPU."""
    config = model.config
    q, k = (torch.empty(1, heads, 128, config.head_dim, dtype=torch.bfloat16, device=model.device)
            for heads in (config.num_attention_heads, config.num_key_value_heads))
    grouped = config.num_key_value_heads < config.num_attention_heads
    try:
        parameters = torch.backends.cuda.SDPAParams(q, k, k, None, 0.0, True, grouped)
        flash = torch.backends.cuda.can_use_flash_attention(parameters, debug=True)  # debug: warns with the reason
    except (RuntimeError, TypeError) as error:  # a build that cannot be asked must not end the run
        return print(f"could not ask whether attention uses the flash kernel ({str(error)[:200]})", file=sys.stderr)
    if not flash:
        print("attention does without the flash kernel, for the reason given above, and is slower", file=sys.stderr)
