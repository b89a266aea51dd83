"""The ranks that share a run under torchrun, and FSDP2. With one process, each function is the obvious thing."""
import os

import torch
import torch.distributed as dist


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
    if dist.is_initialized():
        dist.barrier()  # a rank that left early could cut off one that still gathers
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def n_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:  # whether this process prints and writes
    return rank() == 0


def say(text: str):
    if is_main():
        print(text, flush=True)


def dealt(items: list, cut, idle) -> list:
    """This rank's share of some work, every n-th item, as passes: cut(share) yields them. All ranks get as many passes
    as the one that has the most: the others do `idle` at the end."""
    shares = [list(cut(items[i :: n_ranks()])) for i in range(n_ranks())]
    mine = shares[rank()]
    return mine + [idle] * (max(map(len, shares)) - len(mine))


def from_all(value) -> list:
    """The values of all ranks, in their order, on every rank."""
    values = [value] * n_ranks()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def from_main(work):
    """The result of work(), which rank 0 alone does, on every rank."""
    return from_all(work() if is_main() else None)[0]


def wait_for_all():
    from_all(None)


def summed(tensor):
    """The sum of a tensor over the ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def gathered(tensors: dict) -> dict:
    """Whole tensors on rank 0 from those that are sharded over ranks; every rank must take part."""
    whole = {}
    for name, tensor in tensors.items():
        tensor = tensor.full_tensor() if hasattr(tensor, "placements") else tensor
        if is_main():
            whole[name] = tensor.detach().cpu()
    return whole


def placed_like(parameter, tensor):
    """This rank's part of `tensor` if `parameter` is sharded over ranks, else all of it."""
    if hasattr(parameter, "placements"):
        from torch.distributed.tensor import distribute_tensor  # a second of importing, which only sharding needs
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor


def shard(model, autocast: bool):
    """Split every layer's weights, gradients and moments over the ranks (FSDP2; Zhao et al., 2023). A layer is gathered
    when its turn comes, in bf16 under autocast (its norms, too, which stay in fp32 on one device), and dropped after;
    gradients are summed in fp32. The embedding stays gathered in fp32 through a micro-batch."""
    if n_ranks() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh  # slow to import
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    mesh = init_device_mesh("cuda" if dist.get_backend() == "nccl" else "cpu", (n_ranks(),))
    # without cast_forward_inputs the residual stream and the rotary angles stay in fp32, as on one device
    policy = MixedPrecisionPolicy(torch.bfloat16 if autocast else None, torch.float32, cast_forward_inputs=False)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
