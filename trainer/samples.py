"""Samples of the loss landscape while training: which, when, and by whom.

A sample that is due waits until the time so far pays for it, so that the share is kept at every moment. The
curvature has most of that time: the question whether the learning rate is too high needs it again and again. With
several processes rank 0 decides, and they share out what can be shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from trainer.allowance import Allowance
from trainer.config import TrainConfig
from trainer.parallel import Parallel
from trainer.precision import Precision
from trainer.tasks import Batch, Task

WEIGHTS = {"curvature": 8.0, "loss": 1.0, "slices": 1.0}
GRADIENTS = {"curvature": 20.0, "loss": 7.0, "slices": 11.0}
"""What the first of each costs, about, in gradients of the batch that it is taken on: 7 products of 2.4, 20 losses,
and a product with 22 losses. Those after it are judged by it."""
DEARER = 1.3
"""A token of a small batch beside one of the step's. Measured on a GPT of 1 M parameters: 256 tokens and 2,048."""
ASKS = 20
"""Times in ``landscape_every`` steps that rank 0 tells the others whether there is room."""


class LandscapeSamples:
    """What is due, and what has been spent. Every process of a training in which each has the whole model has one.

    Args:
        clock: seconds.
    """

    def __init__(
        self,
        config: TrainConfig,
        parallel: Parallel,
        model: nn.Module,
        task: Task,
        precision: Precision,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parallel, self._model, self._task, self._precision = parallel, model, task, precision
        self._every = config.monitor.landscape_every if config.monitor.enabled else None
        self._examples = max(1, config.monitor.landscape_tokens // task.tokens_per_example)
        self._share_of_step = min(1.0, DEARER * self._examples * parallel.data_size / config.batch_size)
        self._allowance = Allowance(config.monitor.landscape_share, WEIGHTS, self._expected, clock)
        self._due: list[str] = []
        self._steps = 0

    def after_step(self, step: int, mon: Any, batch: Batch) -> None:
        """Take what is due and affordable after optimizer step ``step``; every process calls this after every step.

        Args:
            batch: the step's first micro-batch of this process. Samples are taken on the first examples of rank 0's.
        """
        self._steps += 1
        if self._every is None:
            return
        if mon.landscape_due:
            self._due = list(WEIGHTS)
        if self._parallel.world_size > 1 and step % max(1, self._every // ASKS) and step % self._every:
            return
        while (kind := self._agreed()) is not None:
            if kind in self._due:
                self._due.remove(kind)
            longest = self._allowance.longest
            with self._allowance.spending(kind):
                self._take(kind, longest, mon, batch.first(self._examples))

    def _agreed(self) -> str | None:
        """What comes now: rank 0's word, on every rank."""
        kinds, kind = [None, *WEIGHTS], None
        if self._parallel.is_first:
            kind = self._allowance.next_of(self._due)
            if kind is not None and not self._allowance.affords(kind):
                kind = None
        return kinds[self._parallel.highest(kinds.index(kind))]

    def _expected(self, kind: str) -> float:
        """Seconds of the first one of a kind."""
        return GRADIENTS[kind] * self._share_of_step * self._allowance.elapsed / self._steps

    def _take(self, kind: str, longest: float, mon: Any, few: Batch) -> None:
        alone = kind == "curvature"  # one product follows another: there is nothing to share out
        if alone and not self._parallel.is_first:
            return
        split = self._parallel.world_size > 1 and not alone
        if split:
            few = self._parallel.shared(few)
        tokens, few = few.tokens, few.to(self._parallel.device)

        def loss() -> Tensor:
            with self._precision.autocast():
                return self._task.loss(self._model, few) / tokens

        if alone:
            mon.curvature_sample(loss, budget_s=longest)
        else:
            {"loss": mon.landscape_sample, "slices": mon.slices_sample}[kind](loss, split=split)
