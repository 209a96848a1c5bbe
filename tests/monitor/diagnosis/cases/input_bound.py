"""Cases of input-bound: waiting for data."""

from __future__ import annotations

import numpy as np

from tests.monitor.diagnosis.cases.drawn import Case, changed, level, only
from tests.monitor.diagnosis.cases.timed import AT, STEPS, seconds, timed


def waiting(share: float, start: int = 0, usual: float = 0.1):
    time = seconds(usual=usual)
    wait = np.where(np.arange(STEPS) >= start, share * time, 0.01 * time)
    return timed(time, wait)


def crowded(share: float, others: float):
    """Others have the processor for their share of each step."""
    time = seconds()
    return timed(time, share * time, cpu_wait_s=others * time)


FIRES = (
    Case("two fifths of the step from the middle on", lambda: waiting(0.4, AT), "warning", onset=None, words="40 %"),
    Case("and others have the processor for a tenth of it", lambda: crowded(0.44, 0.04), "warning", onset=11),
    Case("15 % of the step", lambda: waiting(0.15), "info", onset=11),
)

NEAR_MISSES = (
    Case("5 % of the step", lambda: waiting(0.05)),
    Case("half of a step of a millisecond", lambda: waiting(0.5, usual=0.001)),
    Case("a third of the step, in which others had the processor", lambda: crowded(0.33, 0.33)),
    Case("one slow batch", lambda: timed(seconds(), changed(np.full(STEPS, 0.001), AT, 90))),
)

ABSTAINS = (
    Case("not timed", lambda: only(train_loss=level()), words="step_time_s"),
    Case("forty steps", lambda: waiting(0.4).until(40), words="30 training steps"),
)
