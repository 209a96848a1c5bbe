"""Cases of initialisation: the first loss against a uniform guess."""

from __future__ import annotations

import math

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import STEPS, Case, level, only, put


def run(first: float, unrelated: float | None = None) -> Signals:
    """``unrelated``: what the first outputs lose against targets that have nothing to do with them."""
    more = {} if unrelated is None else {"unrelated_loss": np.full(STEPS, unrelated)}
    return only(train_loss=put(level(), 0, first), log_classes=np.full(STEPS, math.log(256)), **more)


FIRES = (
    Case("64 against 5.5", lambda: run(64.0), "warning", onset=1, words="uniform guess"),
    Case("half above", lambda: run(8.3), "info", onset=1),
    Case("64, as outputs so large lose", lambda: run(64.0, unrelated=60.0), "warning", onset=1),
)

NEAR_MISSES = (
    Case("a tenth above", lambda: run(6.1)),
    Case("pretrained", lambda: run(1.2)),
    Case("another loss of 64 outputs that are all small", lambda: run(64.0, unrelated=5.6)),
)

ABSTAINS = (
    Case("classes not known", lambda: only(train_loss=level()), words="log_classes"),
    Case(
        "logged from step 10 on",
        lambda: Signals.from_arrays(
            {
                "train_loss": (10 * np.arange(1, 9), np.full(8, 64.0)),
                "log_classes": (10 * np.arange(1, 9), np.full(8, 5.5)),
            }
        ),
        words="first step",
    ),
)
