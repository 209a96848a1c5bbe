"""Cases of weights-overwritten: a norm that changes by more than the updates can have changed it."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from monitor.signals import LayerMatrix
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, changed, constant_lr, level, only
from tests.monitor.diagnosis.controls import LAYERS

UPDATE = 0.01
"""Norm of each update, of weights of norm 1."""


def weights(
    factor: float, rows: slice = slice(AT, None), every: int = 20, resumed: bool = False, lr: np.ndarray | None = None
) -> Signals:
    """Weights on a random walk; in layer 3 multiplied by ``factor`` at the rows given."""
    walk = 1 + np.cumsum(np.random.default_rng(0).uniform(-UPDATE, UPDATE, (STEPS, len(LAYERS))), axis=0) / 5
    walk[rows, 3] *= factor
    step = np.arange(every, STEPS + 1, every)
    here = np.ones((len(step), len(LAYERS)), bool)
    stats = {"weight_norm": walk[step - 1], "update_norm": np.full(here.shape, UPDATE)}
    return Signals.from_arrays(
        {"train_loss": level(), "lr": constant_lr() if lr is None else lr},
        layers={name: LayerMatrix(name, step, LAYERS, value.astype(np.float32), here) for name, value in stats.items()},
        events=[Mark("resume", AT)] if resumed else [],
    )


def spiked() -> Signals:
    """One step at 100 times the learning rate between two measurements explains what happened to the weights."""
    return weights(1.8, lr=changed(constant_lr(), AT + 2, 100.0))


FIRES = (
    Case("doubled in place", lambda: weights(2.0), "warning", words=LAYERS[3]),
    Case("a third of it, measured each step", lambda: weights(0.3, every=1), "warning", words="Something other"),
    Case(
        "again and again, as by plan", lambda: weights(0.01, slice(60, None, 40), every=1), "info", onset=None,
        words=LAYERS[3],
    ),
)  # fmt: skip

NEAR_MISSES = (
    Case("nothing but updates", lambda: weights(1.0)),
    Case("half as much again, which twenty updates and three can do", lambda: weights(1.5)),
    Case("across a resume", lambda: weights(2.0, resumed=True)),
    Case("a step at 100 times the learning rate", spiked),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="weight_norm"),
    Case("four measurements", lambda: weights(2.0).until(80), words="4 measurements"),
)
