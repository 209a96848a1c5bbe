"""Cases of output-logits: log Z drifts."""

from __future__ import annotations

import math

import numpy as np

from tests.monitor.diagnosis.cases.drawn import STEPS, Case, level, only

GUESS = math.log(256)


def run(end: float) -> dict[str, np.ndarray]:
    drift = np.linspace(GUESS, end, STEPS) + np.random.default_rng(0).normal(0, 0.1, STEPS)
    return {"train_loss": level(), "log_z_mean": drift, "log_classes": np.full(STEPS, GUESS)}


FIRES = (
    Case("to -60", lambda: only(**run(-60)), "warning", onset=None, words="log Z"),
    Case("to 20", lambda: only(**run(20)), "info", onset=None),
)

NEAR_MISSES = (
    Case("to 8", lambda: only(**run(8))),
    Case("away and back for good", lambda: only(**(run(8) | {"log_z_mean": 5.5 + 9 * np.exp(-np.arange(STEPS) / 20)}))),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="log_z_mean not recorded"),
    Case("three measurements", lambda: only(log_z_mean=np.ones(3)), words="3 measurements"),
)
