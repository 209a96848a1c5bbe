"""Which rank this is, and how the ranks agree on the run and the attempt that they write."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monitor.errors import RunError
from monitor.runfile.writer import is_anonymous

if dist.is_available():
    from torch.distributed.tensor import DTensor


def together() -> bool:
    """Whether a process group is up, so that ranks can agree on something."""
    return dist.is_available() and dist.is_initialized()


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether ``tensor`` is a DTensor: a piece of one that is spread over ranks, or a copy of it."""
    return dist.is_available() and isinstance(tensor, DTensor)


def ddp_of(model: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    """The DistributedDataParallel that ``model`` is or holds, under torch.compile for example; None without or with
    several of them."""
    found = [module for module in model.modules() if isinstance(module, nn.parallel.DistributedDataParallel)]
    return found[0] if len(found) == 1 else None


def rank_and_world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """What was given, else what torch.distributed says, else what the launcher's environment says, else 0 of 1."""
    if together():
        return (dist.get_rank() if rank is None else rank), (
            dist.get_world_size() if world_size is None else world_size
        )
    environ = os.environ
    return (
        int(environ.get("RANK", 0)) if rank is None else rank,
        int(environ.get("WORLD_SIZE", 1)) if world_size is None else world_size,
    )


def agree(make: Callable[[], tuple[Path, int]], rank: int) -> tuple[Path, int]:
    """Run ``make`` on rank 0 and give its answer to every rank.

    A collective operation, so it stands outside of ``contained``: if rank 0 fails, all ranks raise the same RunError.
    """
    if not together() or dist.get_world_size() == 1:
        return make()
    box: list[Any] = [None]
    if rank == 0:
        try:
            run_dir, attempt = make()
            box = [(str(run_dir), attempt)]
        except Exception as error:
            box = [f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], str):
        raise RunError(f"rank 0 could not begin the run: {box[0]}")
    run_dir, attempt = box[0]
    return Path(run_dir), attempt


def stages(model: nn.Module, world_size: int, *, split_layers: bool = False) -> str | None:
    """A sentence for the run on what its numbers mean across ranks; None in a run of one process."""
    if world_size == 1:
        return None
    if ddp_of(model) is not None:
        gradients = (
            "gradients are averaged over the ranks by DistributedDataParallel before they are measured, "
            "grad_norm_local aside"
        )
    elif split_layers:
        gradients = (
            "each rank holds layers of its own (pipeline stages): its per-layer statistics are of those, the norm of "
            "the whole gradient is reduced over the ranks"
        )
    elif any(is_sharded(parameter) for parameter in model.parameters()):
        gradients = (
            "parameters are sharded over the ranks (DTensor): statistics of gradients, weights, updates and Adam's "
            "moments are those of the whole tensors, reduced over the ranks; parameter_checksum is of the parameters "
            "that are not sharded, because each rank has other pieces of the others"
        )
    else:
        gradients = "the model given to attach is not a DistributedDataParallel: gradients are as this rank has them"
    return f"{gradients}; train_loss is what this rank's caller passed to mon.step"


def environment(model: nn.Module) -> dict[str, Any]:
    """Versions and device of this process, for the attempt's record."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    record: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.system() if is_anonymous() else platform.platform(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }
    if device.type == "cuda":
        record["device_name"] = torch.cuda.get_device_name(device)
        record["cuda"] = torch.version.cuda
    return record
