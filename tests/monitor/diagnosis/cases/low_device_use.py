"""Cases of low-device-use: a device that is mostly idle."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import Case, level, only
from tests.monitor.diagnosis.cases.timed import STEPS, seconds


def used(use: float, wait: float = 0.001, samples: int = 100, sd: float = 5.0) -> Signals:
    """A sample every six steps, and a step of which ``wait`` seconds of 0.1 are waiting for data."""
    step = np.arange(6, 6 * samples + 1, 6)
    value = np.clip(np.random.default_rng(0).normal(use, sd, samples), 0, 100)
    time = seconds()
    series = {
        "step_time_s": time,
        "data_wait_s": np.full(STEPS, wait),
        "backward_s": 0.6 * (time - wait),
        "forward_s": 0.4 * (time - wait),
    }
    return Signals.from_arrays(series, system={"gpu_util_pct": (step, value)})


FIRES = (
    Case("12 % busy", lambda: used(12), "info", onset=36, words="backward is the longest part"),
    Case("12 % busy, waiting for data", lambda: used(12, wait=0.06), "info", onset=36, words="waiting for data"),
    Case("never above 55 %", lambda: used(45), "info", onset=36, words="busiest"),
)

NEAR_MISSES = (
    Case("90 % busy", lambda: used(90)),
    Case("mostly 40 %, sometimes full", lambda: used(45, sd=30)),
)

ABSTAINS = (
    Case("no device", lambda: only(train_loss=level()), words="0 samples"),
    Case("20 samples", lambda: used(12, samples=20), words="15 samples"),
)
