"""What of a training is in memory, part by part; and, when memory runs out, what to change."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from trainer.optim import state_bytes
from trainer.tasks.base import Batch

if TYPE_CHECKING:
    from trainer.loop import Session

_OF_THE_ALLOCATORS = ("can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory")
"""How torch's CPU allocator and C++ say it, in a plain RuntimeError."""


class OutOfMemory(RuntimeError):
    """Memory ran out; the message says what was held and what to change."""


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes by part, in one process."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int | None
    """Kept by one micro-batch's forward for its backward; None when it could not be measured."""
    running_mean: int = 0
    """The second set of weights that ``ema.decay`` keeps."""

    def told(self) -> list[tuple[str, int]]:
        """(part, bytes), those that are known."""
        parts = {
            "parameters": self.parameters,
            "gradients": self.gradients,
            "optimizer state": self.optimizer,
            "running mean of the weights": self.running_mean or None,
            "activations of a micro-batch": self.activations,
        }
        return [(name, size) for name, size in parts.items() if size is not None]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is how torch, Python or C++ say that there is no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_THE_ALLOCATORS)


@contextmanager
def explained_at_start() -> Iterator[None]:
    """Say of memory that runs out in here that the model and the data alone do not fit."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        rss = psutil.Process().memory_info().rss
        raise OutOfMemory(
            f"out of memory before the first step: data, model and optimizer do not fit; this process is {mib(rss)} in "
            f"memory. Lower the model's size (model.d_model, model.n_layer) or task.max_data_mib. ({_asked(error)})"
        ) from error


def out_of_memory(session: Session, error: BaseException) -> OutOfMemory:
    """What to raise instead of ``error``. Lets go of what the failed step held, in order to measure."""
    traceback.clear_frames(error.__traceback__)
    config, parallel = session.config, session.parallel
    examples = config.batch_size // (config.grad_accum_steps * parallel.world_size)
    held = measured(session, _activations(session, examples))
    parts = [f"{name} {mib(size)}" for name, size in held.told()]
    process = psutil.Process().memory_info().rss
    return OutOfMemory(
        f"out of memory in step {session.state.step + 1} on {parallel.device}: held were {', '.join(parts)} "
        f"({examples} x {session.task.tokens_per_example} tokens); this process is {mib(process)} in memory"
        f"{_on_device(parallel.device)}. {_advice(held, examples, config.grad_accum_steps)} ({_asked(error)})"
    )


def measured(session: Session, activations: int | None) -> Held:
    """What ``session`` holds now, and ``activations``."""
    parameters, ema = list(session.state.model.parameters()), session.state.ema
    return Held(
        parameters=sum(parameter.nbytes for parameter in parameters),
        gradients=sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None),
        optimizer=state_bytes(session.state.optimizer),
        activations=activations,
        running_mean=0 if ema is None else sum(parameter.nbytes for parameter in ema.parameters()),
    )


def saved_bytes(session: Session, batch: Batch) -> int:
    """Bytes that autograd keeps from the forward of ``batch`` for its backward: each storage once, no parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in session.state.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = batch.to(session.parallel.device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), session.precision.autocast():
        loss = session.task.loss(session.state.model, batch)
    del loss
    return sum(kept.values())


def _activations(session: Session, examples: int) -> int | None:
    """Of ``examples``, from the forward of one: all of them did not fit."""
    try:
        return examples * saved_bytes(session, session.task.train_batch(torch.zeros(1, dtype=torch.long)))
    except (RuntimeError, MemoryError):
        return None


def _asked(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _on_device(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    return f", {mib(torch.cuda.memory_allocated(device))} of tensors on the device, {mib(free)} of {mib(total)} free"


def _advice(held: Held, examples: int, grad_accum_steps: int) -> str:
    """The change that lowers the largest part; the first one leaves the result as it is."""
    largest = max(held.told(), key=lambda part: part[1])[0]
    if largest.startswith("activations") or held.activations is None:
        if examples > 1 and examples % 2 == 0:
            return (
                f"Halve the micro-batch and keep the result: --set grad_accum_steps={2 * grad_accum_steps}; "
                "or lower task.seq_len or the model's size."
            )
        return "Lower batch_size, task.seq_len or the model's size."
    return "Lower the model's size (model.d_model, model.n_layer), or take optimizer.kind=sgd, which keeps less state."


def mib(size: float) -> str:
    """``12.5 MiB``."""
    return f"{size / 2**20:,.1f} MiB"
