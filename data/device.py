"""The machine: the names of its processors, and ways to be fast on each."""
import ctypes
import platform
import shutil
import sys

import torch
import torch.nn as nn


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
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def fast_bf16(device: str) -> bool:
    """Whether the processor multiplies bf16 matrices faster than fp32 ones."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu" or not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False  # the last asks what the kernels may use, which can be less than what the processor has
    return any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))


def prepare(device: str):
    """Settings of the process that make training faster."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):  # glibc: keep freed memory, since new pages are zeroed: a tenth of a step on a CPU
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # fp32 products use TF32


def to_device(tensor, device):
    """A tensor on `device`. A GPU takes it from pinned memory, so that the copy does not wait for earlier kernels."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def compile_layers(model):
    """torch.compile each layer: they are alike, so the code is made once, where the whole model's would repeat it.
    Raises ValueError if a CPU's code cannot be compiled here."""
    if model.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise ValueError("--compile on a CPU needs a C++ compiler, g++ or clang++; leave it out")
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)


def decoding_step(model):
    """(step, the share of finished rows from which dropping them pays, which is larger on a GPU, where a step is
    recorded). step(token, cache) is the model's output, (B, C), for one more token of each row, (B,)."""
    def step(token, cache):
        return model.hidden(token[:, None], cache)[:, 0]

    return (RecordedStep(step), 0.5) if model.device.type == "cuda" else (step, 0.25)


class RecordedStep:
    """A step as a CUDA graph: launching its hundreds of small kernels one by one takes longer than they do. It works on
    the tensors that it was recorded with, so if the cache grows or the batch shrinks it is recorded anew. If recording
    fails, a sentence says so, and decoding goes on without."""

    def __init__(self, step):
        self.step, self.recorded_keys, self.failed = step, None, False

    def __call__(self, token, cache):  # (B,), KVCache -> (B, C), good until the next call
        if self.recorded_keys is not cache.keys[0] and not self.failed:
            try:
                self.record(token, cache)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.failed = True
                print(f"recording a CUDA graph failed ({str(error).splitlines()[0][:200]}); decoding goes on without, "
                      "more slowly", file=sys.stderr, flush=True)
        if self.failed:
            return self.step(token, cache)
        self.token.copy_(token)
        self.graph.replay()
        return self.h

    def record(self, token, cache):
        self.token, self.graph = token.clone(), torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what kernels set up the first time must not be recorded
            self.step(self.token, cache)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(self.graph):
            self.h = self.step(self.token, cache)
        self.recorded_keys = cache.keys[0]


def reorder_weights_for_cpu(model, batch_size: int):
    """Put large weights in the order in which an x86 CPU's matrix kernel reads them: a step of decoding, which mostly
    reads weights, then takes down to half the time. The model can only decode after. Elsewhere, and if the operator
    refuses (bf16 without AVX-512), nothing is done. batch_size: how many sequences a step will have; oneDNN chooses the
    order for that number."""
    x86 = model.device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    if not x86 or not torch.backends.mkldnn.is_available():
        return model

    def reordered(*layers):
        """A function that multiplies by the layers' weights, or None if there is no use or no way."""
        weight = torch.cat([layer.weight.detach() for layer in layers])  # (out, in)
        if weight.numel() < 100_000:  # it lies in the processor's cache anyway
            return None
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, batch_size)
        except RuntimeError:
            return None
        for layer in layers:
            if isinstance(layer, nn.Linear):  # an embedding's rows are still looked up
                layer.weight = None
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")

    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        sizes = [len(part.weight) for part in parts]  # queries, keys and values become one, which saves calls
        if product := reordered(*parts):
            attention.project = lambda x, product=product, sizes=sizes: product(x).split(sizes, -1)
        for linear in (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            if product := reordered(linear):
                linear.forward = product
    if product := reordered(model.head):
        model.logits = product
    return model
