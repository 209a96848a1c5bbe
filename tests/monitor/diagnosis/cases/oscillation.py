"""Cases of oscillation: losses that alternate while they fall."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import STEPS, Case, level, only

SIGN = (-1.0) ** np.arange(STEPS)
FALL = np.exp(-np.arange(STEPS) / 1000)


def alternating(size: float, sd: float = 0.01, trend: np.ndarray = FALL) -> Signals:
    noise = np.random.default_rng(0).normal(0, sd, STEPS)
    return only(train_loss=2 * trend * np.exp(size * SIGN + noise))


def with_cosine(cosine: float) -> Signals:
    return only(train_loss=2 * FALL * np.exp(0.05 * SIGN), grad_cosine=np.full(STEPS, cosine))


FIRES = (
    Case("5 % either way", lambda: alternating(0.05), "info", onset=1, words="autocorrelation -0.9"),
    Case("while steps overshoot", lambda: with_cosine(-0.7), "info", onset=1, words="up and down"),
    Case("data that takes turns", lambda: with_cosine(0.1), "info", onset=1, words="up and down"),
)

NEAR_MISSES = (
    Case("noise", lambda: alternating(0.0)),
    Case("much noise", lambda: alternating(0.0, sd=0.3)),
    Case("0.1 %", lambda: alternating(0.001, sd=0.0001)),
    Case("half as large as the noise", lambda: alternating(0.05, sd=0.1)),
    Case("rising", lambda: alternating(0.05, trend=1 / FALL)),
)

ABSTAINS = (
    Case("100 losses", lambda: only(train_loss=level()[:100]), words="at least 200"),
    Case("signed", lambda: only(train_loss=np.sin(np.arange(STEPS))), words="zero or negative"),
    Case(
        "every tenth step",
        lambda: Signals.from_arrays({"train_loss": (np.arange(1, 10 * STEPS, 10), 2 * FALL * np.exp(0.05 * SIGN))}),
        words="intervals",
    ),
)
