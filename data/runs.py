"""A run that can be killed: the folder `out/NAME`, its settings and its checkpoint, and the ranks that share the work.

A checkpoint is one file, written whole: weights, AdamW's moments, the settings, the steps done. The order of the data
needs no saving, since it follows from the seed and the epoch; so a run that is killed and resumed ends in the same
bytes as one that was not (on a CPU).
"""
import json
import os
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from data.files import hold, parse_json, read_json
from data.hub import load_tensors, read_metadata, save_tensors

CHECKPOINT, RECORD = "checkpoint.safetensors", "run.json"  # of a run under way; of a finished one
AFRESH = "--overwrite (make: OVERWRITE=1) starts afresh"


@contextmanager
def claimed(out: Path, model: Path):
    """Keep the folder `out` for this run: made if it is not there, and removed again if nothing was written.

    Raises OSError where another run has it, ValueError where it holds something else than a run.
    """
    if out.resolve() == model.resolve():
        raise ValueError(f"--out {out} is the folder of --model, whose weights it would replace; choose another")
    if not is_main():
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"--out {out} is a file; choose another") from None
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

    Raises ValueError where it holds a run that is not to be continued, or one with other settings.
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
    check_settings(checkpoint, checkpoint_metadata(checkpoint)[0], settings)
    return "half"


def check_settings(path: Path, found: dict, wanted: dict):
    """Raise ValueError, naming the first difference, where the run that `path` is of is not the one asked for."""
    if not isinstance(found, dict) or not wanted.keys() <= found.keys():
        raise ValueError(f"{path} is damaged; {AFRESH}")
    for key, value in wanted.items():
        if found[key] != value:
            differs = f"{key} = {found[key]}, not {value}"
            if key.endswith("_sha256"):  # of files, whatever their path
                differs = f"other files in --{key.removesuffix('_sha256')}"
            raise ValueError(f"{path} is of a run with {differs}; choose another --out (make: OUT=...), or {AFRESH}")


def checkpoint_metadata(path: Path) -> tuple[dict, int]:
    """(settings, steps done) of a checkpoint. Raises ValueError where it is none."""
    try:
        metadata = read_metadata(path)
        return parse_json(metadata["settings"]), int(metadata["step"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); {AFRESH}") from None


def save_checkpoint(path: Path, model, optimizer, settings: dict, step: int):
    """Write weights and AdamW's moments in one safetensors file, so that they cannot come apart."""
    tensors = {}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        tensors |= {name: parameter, f"{name}.exp_avg": moments["exp_avg"], f"{name}.exp_avg_sq": moments["exp_avg_sq"]}
    tensors = gathered(tensors)
    if is_main():
        save_tensors(path, tensors, {"settings": json.dumps(settings), "step": str(step)})


def load_checkpoint(path: Path, model, optimizer) -> int:
    """Restore what save_checkpoint wrote. Returns the number of steps done."""
    expected = {}
    for name, parameter in model.named_parameters():
        expected |= {name: parameter, f"{name}.exp_avg": parameter, f"{name}.exp_avg_sq": parameter}
    tensors, step = load_tensors(path, expected, torch.float32, model.device), checkpoint_metadata(path)[1]
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.copy_(tensors[name])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step), device=model.device),
            "exp_avg": tensors[f"{name}.exp_avg"], "exp_avg_sq": tensors[f"{name}.exp_avg_sq"],
        }
    return step


def start_ranks(device: str, backend: str | None = None, **options) -> str:
    """Join torchrun's process group, if torchrun started this process. Returns this rank's device."""
    if not dist.is_torchelastic_launched():
        return device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group(backend or ("nccl" if device.startswith("cuda") else "gloo"), **options)
    return device


def end_ranks():
    """Leave together: a rank that left early could cut off one that still gathers."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def n_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes: the only one, or rank 0."""
    return rank() == 0


def say(text: str):
    """Print, once for all ranks."""
    if is_main():
        print(text, flush=True)


def from_main(work):
    """The result of work(), which rank 0 alone does, on every rank."""
    result = [work() if is_main() else None]
    if dist.is_initialized():
        dist.broadcast_object_list(result)
    return result[0]


def from_all(value) -> list:
    """The values of all ranks, in their order, on every rank."""
    values = [value] * n_ranks()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def wait_for_all():
    """Let the ranks, if there are several, come together."""
    if dist.is_initialized():
        dist.barrier()


def summed(tensor):
    """The sum of a tensor over the ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def gathered(tensors: dict) -> dict:
    """Whole tensors on rank 0 from those that are sharded over ranks; every rank must take part."""
    whole = {}
    for name, tensor in tensors.items():
        tensor = (tensor.full_tensor() if hasattr(tensor, "placements") else tensor).detach()
        if is_main():
            whole[name] = tensor.cpu()
    return whole


def shard(model, autocast: bool):
    """Split every layer's weights, gradients and moments over the ranks (FSDP2; Zhao et al., 2023).

    A layer is gathered when its turn comes, in bf16 under autocast (its norms' weights too, which autocast
    on one device leaves in fp32), and dropped after; gradients are summed in fp32. The embedding, needed at
    both ends, stays gathered in fp32 through a micro-batch.
    """
    from torch.distributed.device_mesh import init_device_mesh  # slow to import, and needed by none but torchrun
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh("cuda" if dist.get_backend() == "nccl" else "cpu", (n_ranks(),))
    # without cast_forward_inputs the residual stream and the rotary angles stay in fp32, as on one device
    policy = MixedPrecisionPolicy(torch.bfloat16 if autocast else None, torch.float32, cast_forward_inputs=False)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
