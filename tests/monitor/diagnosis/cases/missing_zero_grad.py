"""Cases of missing-zero-grad: gradients that agree and grow."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, level, only

EVERY = 10
STEP = np.arange(EVERY, STEPS + 1, EVERY)


def run(cosine: np.ndarray, norm: np.ndarray) -> Signals:
    return Signals.from_arrays({"train_loss": level(), "grad_cosine": (STEP, cosine), "grad_norm_preclip": norm})


def agreeing(start: int) -> np.ndarray:
    """Cosines about 0.1, and 0.98 from step ``start`` on."""
    return np.where(start < STEP, 0.98, 0.1 + 0.05 * np.random.default_rng(0).normal(size=len(STEP)))


def ramp(start: int, per_step: float) -> np.ndarray:
    return 0.5 * (1 + per_step * np.maximum(0, np.arange(STEPS) - start))


def seen(text: str) -> Signals:
    """Cosines that say nothing, and a warning of the monitor."""
    warning = Mark("warning", AT + 1, {"text": text})
    return Signals.from_arrays({"train_loss": level()}, events=[warning])


FIRES = (
    Case(
        "the monitor saw backward add to them",
        lambda: seen("gradients were not zeroed: when backward began, those of the step before were still there"),
        "warning",
        onset=AT,
        words="were not zeroed",
    ),
    Case("from the middle on", lambda: run(agreeing(AT), ramp(AT, 0.1)), "warning", words="add up"),
    Case("from the start", lambda: run(agreeing(0), ramp(0, 0.5)), "warning", onset=11, words="add up"),
)

NEAR_MISSES = (
    Case("full batches: they agree and do not grow", lambda: run(agreeing(0), ramp(STEPS, 0.0))),
    Case("full batches that grow by a third", lambda: run(agreeing(0), ramp(0, 0.001))),
    Case("a growing norm of gradients that differ", lambda: run(agreeing(STEPS), ramp(AT, 0.1))),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="grad_cosine not recorded"),
    Case("two cosines", lambda: run(agreeing(0), ramp(0, 0.5)).until(25), words="2 cosines"),
)
