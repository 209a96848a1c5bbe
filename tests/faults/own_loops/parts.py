"""What the loops share: the digits, a small network, the plain loop, and what one of them is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import monitor
from monitor.diagnosis.rule import Finding
from monitor.runfile.store import list_runs
from trainer.tasks.digits import load_digits

PIXELS, CLASSES = 64, 10
TRAINED = 1400
"""Images to train on; 397 are held out."""

Attach = Callable[..., monitor.Monitor]
"""``monitor.attach`` that knows already where the run goes."""
BUDGET = 0.5
"""Measured as often as the catalogue of signals says, whatever it costs, so that a busy machine sees what a calm one
does."""


@dataclass(frozen=True, slots=True)
class Loop:
    """One training as a user would write it."""

    name: str
    train: Callable[[Attach], None]
    onset: int | None = None
    """The step that breaks it; None where nothing does."""
    right: frozenset[str] = frozenset()
    """Ids of the rules that would be right about what breaks it."""
    window: int = 20
    """Steps about ``onset`` at which a finding of these has to begin."""
    causes: frozenset[str] = frozenset()
    """Ids of the causes that would be right; empty where none was written down."""

    def told(self, report: monitor.Report) -> bool:
        """Whether the doctor tells what was broken, as a warning at least, and from its step on."""
        return bool(self._right(report))

    def explained(self, report: monitor.Report) -> bool:
        """Whether one of the findings that tell it has a right cause in the first place."""
        return any(finding.causes and finding.causes[0].id in self.causes for finding in self._right(report))

    def _right(self, report: monitor.Report) -> list[Finding]:
        return [
            finding
            for finding in report.at_least("warning")
            if self.onset is not None
            and finding.id in self.right
            and abs(finding.onset_step - self.onset) <= self.window
        ]


def run(loop: Loop, folder: Path, seed: int, budget: float = BUDGET) -> Path:
    """Train it in this process and return its run directory, the only run of ``folder``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loop.train(partial(monitor.attach, run=folder, name=loop.name, budget=budget))
    (summary,) = list_runs(folder)
    return summary.path


@cache
def digits() -> tuple[Tensor, Tensor]:
    """float32[1797, 64] of pixels in [0, 1] and int64[1797] of labels, in an order that depends on no seed."""
    images, labels = load_digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.flatten(1)[order], labels[order]


def training_set() -> tuple[Tensor, Tensor]:
    images, labels = digits()
    return images[:TRAINED], labels[:TRAINED]


def batch(size: int = 64) -> tuple[Tensor, Tensor]:
    """float32[size, 64] and int64[size], drawn from the training images with replacement."""
    images, labels = digits()
    index = torch.randint(0, TRAINED, (size,))
    return images[index], labels[index]


def validation_loss(model: nn.Module) -> Tensor:
    """Cross-entropy on the images that are held out, in evaluation mode."""
    images, labels = digits()
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(images[TRAINED:]), labels[TRAINED:])
    model.train()
    return loss


def perceptron(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths, the activation between any two of them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def classifier() -> nn.Sequential:
    """Of the digits: two hidden layers."""
    return perceptron(PIXELS, 64, 64, CLASSES)


def descend(optimizer: Optimizer, loss: Tensor) -> None:
    """One step of one optimizer."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def fit(
    attach: Attach,
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    loss_of: Callable[[int], Tensor],
    *,
    max_norm: float | None = None,
    schedule: LRScheduler | None = None,
    after: Callable[[monitor.Monitor, int], None] | None = None,
) -> None:
    """The loop that most people write. Steps count from 1; ``after`` comes when the step has been recorded."""
    with attach(model, optimizer) as mon:
        for step in range(1, steps + 1):
            loss = loss_of(step)
            optimizer.zero_grad()
            loss.backward()
            if max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            mon.step(loss=loss, batch_id=step)
            if after is not None:
                after(mon, step)
