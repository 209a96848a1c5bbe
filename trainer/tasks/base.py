"""The seam between the loop and what is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trainer.losses import IGNORED


@dataclass(frozen=True, slots=True)
class Batch:
    """B examples side by side.

    Sequences: ``inputs`` int64[B, T], ``targets`` int64[B, T]. Images: float32[B, C, H, W] in 0 to 1, and int64[B].
    """

    inputs: Tensor
    targets: Tensor
    shift: Tensor | None = None
    """What adversarial training adds to float inputs, or to the embeddings of integer ones; None adds nothing."""

    @property
    def tokens(self) -> int:
        """How many targets carry a loss: tokens of text, images. Reads a device tensor, so call it before ``to``."""
        return int((self.targets != IGNORED).sum())

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        shift = None if self.shift is None else self.shift.to(device, non_blocking=True)
        return Batch(self.inputs.to(device, non_blocking=True), self.targets.to(device, non_blocking=True), shift)

    def first(self, count: int) -> Batch:
        """The first ``count`` examples."""
        return Batch(self.inputs[:count], self.targets[:count], None if self.shift is None else self.shift[:count])

    def cut(self, length: int) -> Batch:
        """Sequences cut to their first ``length`` tokens."""
        return replace(self, inputs=self.inputs[:, :length], targets=self.targets[:, :length])


class Task(ABC):
    """A model, its data and its loss. One of your own is a subclass with the four methods that are abstract here.

    What is drawn at random in making a batch must depend on the index and the configuration alone: a resumed run then
    trains on the same batches, bit for bit.
    """

    name: str
    train_size: int
    """Number of training examples; the sampler draws from ``range(train_size)``."""
    val_size: int
    """Number of validation examples."""
    data_summary: str = ""
    """One line about the data, for the log."""
    loss_unit: str = "nats"
    """Unit of ``loss`` per token."""
    tokens_per_example: int = 1
    """Targets with a loss in one full-length training example."""
    score_names: tuple[str, ...] = ("loss",)
    """What ``scores`` measures, in its order; ``loss`` comes first."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A freshly initialised model, from torch's global random state."""

    @abstractmethod
    def train_batch(self, indices: Tensor) -> Batch:
        """The training examples int64[B] ``indices``, on the CPU."""

    @abstractmethod
    def val_batch(self, indices: Tensor) -> Batch:
        """The validation examples int64[B] ``indices``, on the CPU."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss summed over the tokens of ``batch``: a float32 scalar. ``model`` may be a DDP wrapper."""

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """What validation measures, each summed over the tokens of ``batch``: float[len(score_names)]."""
        return self.loss(model, batch).unsqueeze(0)

    def held_out(self, means: Mapping[str, float]) -> dict[str, float]:
        """What is recorded of a validation pass, ``val_loss`` first, from the mean of each score per held-out token."""
        return {f"val_{name}": mean for name, mean in means.items()}

    def no_shift(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """A ``shift`` of zeros for ``batch``; None when the task has nothing that adversarial training could move."""
        return None

    def sample(self, model: nn.Module, size: int) -> tuple[str, str] | None:
        """A prompt and the ``size`` bytes that ``model``, in evaluation mode, lets follow; None when it writes no text.

        Draws from a generator of its own and leaves every random state as it was.
        """
        return None


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

    def skip(self, count: int) -> None:
        """Leave the next ``count`` indices out: what ``take`` gives afterwards is as if they had been taken."""
        epochs, self.position = divmod(self.position + count, self.size)
        if epochs:
            self.epoch += epochs
            self._order = self._shuffled(self.epoch)

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
