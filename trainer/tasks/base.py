"""The seam between the loop and what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.losses import IGNORED


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples side by side: ``inputs`` int64[B, T] and ``targets`` int64[B, T], B sequences of T bytes."""

    inputs: Tensor
    targets: Tensor

    @property
    def tokens(self) -> int:
        """How many targets carry a loss. Reads a device tensor, so call it before ``to``."""
        return int((self.targets != IGNORED).sum())

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        return Batch(self.inputs.to(device, non_blocking=True), self.targets.to(device, non_blocking=True))


class Task(Protocol):
    """A model, its data and its loss."""

    name: str
    loss_unit: str
    """Unit of ``loss`` per token, such as nats."""
    train_size: int
    """Number of training examples; the sampler draws from ``range(train_size)``."""
    val_size: int
    """Number of validation examples."""
    data_summary: str
    """One line about the data, for the log."""

    def build_model(self) -> nn.Module:
        """A freshly initialised model, from torch's global random state."""
        ...

    def train_batch(self, indices: Tensor) -> Batch:
        """The training examples int64[B] ``indices``, on the CPU."""
        ...

    def val_batch(self, indices: Tensor) -> Batch:
        """The validation examples int64[B] ``indices``, on the CPU."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss summed over the tokens of ``batch``: a float32 scalar. ``model`` may be a DDP wrapper."""
        ...


class EpochSampler:
    """Indices in a new random order each epoch: a pure function of seed, epoch and position, so resuming is exact."""

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"size = {size}: there must be at least one example.")
        self.size = size
        self.seed = seed
        self.epoch = 0
        self.position = 0
        self._order = self._shuffled(0)

    @property
    def drawn(self) -> int:
        """Examples drawn since the start of training: the identity of the batch that comes next."""
        return self.epoch * self.size + self.position

    def take(self, count: int) -> Tensor:
        """The next ``count`` indices, int64; an epoch that runs out is continued by the next one."""
        parts: list[Tensor] = []
        while count > 0:
            if self.position == self.size:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffled(self.epoch)
            part = self._order[self.position : self.position + count]
            parts.append(part)
            self.position += len(part)
            count -= len(part)
        return torch.cat(parts)

    def state_dict(self) -> dict[str, int]:
        return {"size": self.size, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            ValueError: the data are not those that the state was taken on.
        """
        if state["size"] != self.size:
            raise ValueError(
                f"the data hold {self.size} training examples now and {state['size']} when the checkpoint was written. "
                "Use the same data to resume, or start a new run"
            )
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self._order = self._shuffled(self.epoch)

    def _shuffled(self, epoch: int) -> Tensor:
        # A generator of its own: data order must not depend on how many random numbers dropout has drawn.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.size, generator=generator)
