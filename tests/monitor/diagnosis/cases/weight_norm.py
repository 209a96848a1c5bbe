"""Cases of weight-norm: shrinking and growing without bound."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from monitor.signals import LayerMatrix
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, level, only
from tests.monitor.diagnosis.controls import LAYERS

EVERY = 20


def measured(rate: float, layer: int | None = None, start: int = AT) -> Signals:
    """Norms every 20 steps that change by ``rate`` a step from step ``start`` on, in one layer or in all."""
    step = np.arange(EVERY, STEPS + 1, EVERY)
    value = np.ones((len(step), len(LAYERS)))
    moves = slice(None) if layer is None else layer
    value[:, moves] *= np.exp(rate * np.maximum(0, step - start)).reshape(-1, *([1] if layer is None else []))
    series = {"train_loss": level(), "weight_norm": (step, np.sqrt((value**2).sum(axis=1)))}
    matrix = LayerMatrix("weight_norm", step, LAYERS, value.astype(np.float32), np.ones(value.shape, bool))
    return Signals.from_arrays(series, layers={"weight_norm": matrix})


def growing(final: float) -> np.ndarray:
    """As healthy small models: like the root of the step."""
    return 20 + (final - 20) * np.sqrt(np.arange(1, STEPS + 1) / STEPS)


FIRES = (
    Case("2 % less each step", lambda: measured(-0.02), "warning", words="shrank"),
    Case("2 % more each step", lambda: measured(0.02), "warning", words="grew"),
    Case("one layer grows", lambda: measured(0.06, layer=5), "warning", onset=None, words="grew"),
)

NEAR_MISSES = (
    Case("doubles in 300 steps, more and more slowly", lambda: only(weight_norm=growing(40))),
    Case("settles a fifth lower", lambda: only(weight_norm=20 - 4 * (1 - np.exp(-np.arange(STEPS) / 50)))),
    Case("0.2 % more each step", lambda: measured(0.002, start=0)),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="weight_norm not recorded"),
    Case("five measurements", lambda: measured(0.02).until(100), words="5 weight norms"),
)
