"""Cases of constant-output: every sample gets the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from monitor.diagnosis.view import Signals
from monitor.signals import LayerMatrix
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, level, only

EVERY = 10
STEP = np.arange(EVERY, STEPS + 1, EVERY)
SPREAD = 2.0


def outputs(after: float, *, until: int = STEPS, before: float = SPREAD, middle: float = 0.0, **more: Any) -> Signals:
    """A spread of ``after`` from step AT to ``until``, about ``middle``; ``before`` otherwise."""
    spread = np.where(np.clip(STEP, AT + 1, until) == STEP, after, before)
    measured = {"output_spread": spread, "output_min": middle - 3 * spread, "output_max": middle + 0.5 + 3 * spread}
    return Signals.from_arrays(
        {"train_loss": level(), **{name: (STEP, each) for name, each in measured.items()}}, **more
    )


def dead() -> LayerMatrix:
    value = np.where(STEP > AT, 1.0, 0.1).astype(np.float32)[:, None]
    return LayerMatrix("dead_units_share", STEP, ("layers.1",), value, np.ones(value.shape, bool))


FIRES = (
    Case("all alike", lambda: outputs(0.0), "warning", onset=AT + EVERY, words="the same output"),
    Case("alike, about 100", lambda: outputs(1e-4, middle=100.0), "warning", onset=AT + EVERY),
    Case("behind dead units", lambda: outputs(0.0, modules={"dead_units_share": dead()}), "warning", onset=AT + EVERY),
)

NEAR_MISSES = (
    Case("a fiftieth of what it was", lambda: outputs(SPREAD / 50)),
    Case("two measurements to the end", lambda: outputs(0.0).until(AT + 2 * EVERY)),
    Case("differ again at the end", lambda: outputs(0.0, until=STEPS - EVERY)),
    Case("alike from the start", lambda: outputs(0.0, before=0.0)),
    Case("little beside 100, as ever", lambda: outputs(1e-2, before=2e-2, middle=100.0)),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="output_spread not recorded"),
    Case("three measurements", lambda: outputs(0.0).until(3 * EVERY), words="3 spreads"),
)
