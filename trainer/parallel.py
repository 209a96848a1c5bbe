"""Several processes with a full copy of the model each (DDP), as torchrun starts them; or one, treated the same way."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.run as torchrun
from torch import nn
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.nn.parallel import DistributedDataParallel

from monitor.errors import ConfigError
from trainer.config import ParallelConfig


@dataclass(frozen=True, slots=True)
class Parallel:
    """Who this process is among all of them, and the few things they say to each other.

    Counts and flags go over gloo in CPU tensors, so that agreeing never waits for the device; gradients and losses go
    over the backend of the device.
    """

    rank: int
    world_size: int
    device: torch.device
    owns_group: bool = False
    """Whether ``start_parallel`` made the process group, so that ``stop_parallel`` ends it."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """``model`` itself, or its DDP wrapper: backward then leaves the mean gradient over ranks in every rank."""
        if self.world_size == 1:
            return model
        # One bucket view per gradient saves a copy and a second set of gradients in memory.
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """For one micro-batch, forward and backward: the gradients are reduced over ranks only after the last one."""
        if isinstance(model, DistributedDataParallel) and not last:
            return model.no_sync()
        return nullcontext()

    def total(self, count: int) -> int:
        """The sum of ``count`` over ranks."""
        if self.world_size == 1:
            return count
        counts = torch.tensor([count], dtype=torch.int64)
        dist.all_reduce(counts)
        return int(counts.item())

    def highest(self, number: int) -> int:
        """The largest ``number`` of any rank.

        For the signal that asks to stop: it reaches ranks at different steps, or one alone; all must stop at the same.
        """
        if self.world_size == 1:
            return number
        numbers = torch.tensor([number], dtype=torch.int64)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return int(numbers.item())

    def summed(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a device tensor over ranks; it stays on the device."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def shared(self, value: Any) -> Any:
        """Rank 0's small value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        # pickled, but between our own processes and never from a file
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            self.highest(0)


def start_parallel(config: ParallelConfig, device: str) -> Parallel:
    """Join the process group that torchrun's environment describes, or stay alone without one.

    A process group that the caller has made is used and left standing.

    Raises:
        ConfigError: CUDA was asked for and is absent, or there are fewer devices than processes on this host.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = _device(device, local_rank)
    if world_size == 1:
        return Parallel(rank=0, world_size=1, device=place)
    if dist.is_initialized():
        return Parallel(rank=dist.get_rank(), world_size=world_size, device=place)
    backend = config.backend if config.backend != "auto" else ("nccl" if place.type == "cuda" else "gloo")
    if backend == "nccl" and place.type != "cuda":
        raise ConfigError("parallel.backend = nccl needs CUDA devices, and training is on the CPU. Use gloo or auto.")
    dist.init_process_group(
        backend=f"cpu:gloo,cuda:{backend}" if place.type == "cuda" else backend,
        timeout=timedelta(seconds=config.timeout_s),
    )
    return Parallel(rank=dist.get_rank(), world_size=world_size, device=place, owns_group=True)


def stop_parallel(parallel: Parallel) -> None:
    """Leave the process group, if ``start_parallel`` made it."""
    if parallel.owns_group and dist.is_initialized():
        dist.destroy_process_group()


def run_workers(processes: int, words: list[str]) -> int:
    """Be torchrun for that many ``python -m trainer`` workers on this machine; gives back their exit code.

    Signals go on to the workers. torchrun itself ends with an exception after one, even when all workers left cleanly.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    here = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(processes)]
    try:
        torchrun.run(torchrun.parse_args([*here, "-m", "trainer", *words]))
    except SignalException:
        return 0
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 1
    return 0


def _device(wanted: str, local_rank: int) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device = cuda, but torch finds no CUDA device here. Use --device cpu or --device auto.")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this host has no CUDA device of its own: {torch.cuda.device_count()} found. "
            "Start fewer processes, or use --device cpu."
        )
    place = torch.device("cuda", local_rank)
    torch.cuda.set_device(place)
    return place
