"""Cases of loss-on-probabilities: a softmax in front of the loss's own."""

from __future__ import annotations

import math

import numpy as np

from tests.monitor.diagnosis.cases.drawn import STEPS, Case, level, only

FLOOR = math.log(math.e + 9) - 1


def run(lowest: float, share: float = 1.0, first: float = math.log(10)) -> dict[str, np.ndarray]:
    loss = lowest + (first - lowest) * np.exp(-np.arange(STEPS) / 60)
    return {
        "train_loss": loss * np.exp(np.random.default_rng(0).normal(0, 0.003, STEPS)),
        "output_softmax_share": np.full(STEPS, share),
        "log_classes": np.full(STEPS, math.log(10)),
    }


FIRES = (Case("stays above the floor", lambda: only(**run(FLOOR * 1.02)), "warning", onset=1, words="softmax already"),)

NEAR_MISSES = (
    Case("far below the floor: the logarithm is taken", lambda: only(**run(0.2))),
    Case("half of the rows sum to one", lambda: only(**run(FLOOR * 1.02, share=0.5))),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="output_softmax_share not recorded"),
    Case(
        "classes not known", lambda: only(**{k: v for k, v in run(1.6).items() if k != "log_classes"}), words="classes"
    ),
    Case("a loss above the guess", lambda: only(**run(5.0, first=6.0)), words="above that of a uniform guess"),
)
