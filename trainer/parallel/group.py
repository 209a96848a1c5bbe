"""The processes of one training, as torchrun starts them; or one alone, treated the same way."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from monitor.errors import ConfigError
from trainer.config import ParallelConfig


@dataclass(frozen=True, slots=True)
class Parallel:
    """Who this process is among all of them, and the few things they say to each other.

    Processes that share one copy of the model (tensor parallel, pipeline) see the same data; such a group counts once
    in the sums, and there are ``data_size`` of them.

    Counts and flags go over gloo in CPU tensors, so that agreeing never waits for the device; gradients and losses go
    over the backend of the device.
    """

    rank: int
    world_size: int
    device: torch.device
    owns_group: bool = False
    """Whether ``start_parallel`` made the process group, so that ``stop_parallel`` ends it."""
    tensor_size: int = 1
    """Processes that share each layer. They are neighbours: ranks 0 and 1 for two."""
    stages: int = 1
    """Processes that the layers are dealt out to."""
    layout: str = "1 process"
    """How the model is spread, in words: checkpoints of another one are not resumed bit for bit."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def data_size(self) -> int:
        """Into how many shares the examples of a step are split."""
        return self.world_size // self._sharing

    @property
    def data_rank(self) -> int:
        """Which of the shares is this process's."""
        return self.rank // self._sharing

    @property
    def random_stream(self) -> int:
        """Equal for processes that share layers: they hold the same activations, so dropout must draw the same."""
        return self.rank // self.tensor_size

    @property
    def _sharing(self) -> int:
        return self.tensor_size * self.stages

    def laid_out(self, config: ParallelConfig) -> Parallel:
        """The same process, which knows with whom it shares the model. The configuration must be the same on all."""
        world = self.world_size
        if world == 1:
            return self
        tensor_size = {"tensor": world, "fsdp": config.tensor_processes}.get(config.mode, 1)
        stages = world if config.mode == "pipeline" else 1
        by = f" by {tensor_size}" if config.mode == "fsdp" and tensor_size > 1 else ""
        layout = f"{config.mode} over {world // tensor_size if by else world}{by} processes"
        return replace(self, tensor_size=tensor_size, stages=stages, layout=layout)

    def total(self, count: int) -> int:
        """The sum of ``count`` over all shares of the data."""
        if self.world_size == 1:
            return count
        counts = torch.tensor([count], dtype=torch.int64)
        dist.all_reduce(counts)
        return int(counts.item()) // self._sharing

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
        """The sum of a device tensor over all shares of the data; it stays on the device."""
        if self.world_size > 1:
            value = value / self._sharing
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
        return Parallel(dist.get_rank(), world_size, place)
    backend = config.backend if config.backend != "auto" else ("nccl" if place.type == "cuda" else "gloo")
    if backend == "nccl" and place.type != "cuda":
        raise ConfigError("parallel.backend = nccl needs CUDA devices, and training is on the CPU. Use gloo or auto.")
    dist.init_process_group(
        backend=f"cpu:gloo,cuda:{backend}" if place.type == "cuda" else backend,
        timeout=timedelta(seconds=config.timeout_s),
    )
    return Parallel(dist.get_rank(), world_size, place, owns_group=True)


def stop_parallel(parallel: Parallel) -> None:
    """Leave the process group, if ``start_parallel`` made it."""
    if parallel.owns_group and dist.is_initialized():
        dist.destroy_process_group()


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
