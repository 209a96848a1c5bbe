"""Cases of stall: one step that hung."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.cases.drawn import Case, changed, level, only
from tests.monitor.diagnosis.cases.timed import AT, STEPS, evaluated, seconds, timed


def paused():
    time, more = evaluated(seconds(), pause=9.0)
    return timed(time, **more)


def hung(lost_s: float, wait_s: float = 0.001) -> Signals:
    """One step that took so much longer, ``wait_s`` of it waiting for data."""
    time, wait = seconds(usual=0.02), np.full(STEPS, 0.001)
    time[AT] += lost_s
    wait[AT] = wait_s
    return timed(time, wait)


def kept_waiting(lost_s: float = 3.0, without_s: float = 2.9) -> Signals:
    time, wait, without = seconds(), np.full(STEPS, 0.001), np.zeros(STEPS)
    for row in (AT, AT + 1):
        time[row] += lost_s
        without[row] = without_s
    return timed(time, wait, cpu_wait_s=without)


FIRES = (
    Case("x30", lambda: timed(changed(seconds(), AT, 30)), "warning", onset=AT + 1, words="took 3"),
    Case("0.6 s waiting for data", lambda: hung(0.6, wait_s=0.6), "warning", onset=AT + 1, words="in data wait"),
)

NEAR_MISSES = (
    Case("0.6 s computing", lambda: hung(0.6)),
    Case("3 s without a processor", kept_waiting),
    Case("12 s, of which 10 without a processor", lambda: kept_waiting(12.0, 10.5)),
    Case("x10", lambda: timed(changed(seconds(), AT, 10))),
    Case("x15 at steps of 3 ms", lambda: timed(changed(seconds(usual=0.003, sd=0.5), AT, 15))),
    Case("evaluation takes 90 steps' time", paused),
    Case("the first step after a resume", lambda: timed(changed(seconds(), AT, 60), events=(Mark("resume", AT),))),
)

ABSTAINS = (
    Case("not timed", lambda: only(train_loss=level()), words="step_time_s not recorded"),
    Case("thirty steps", lambda: timed(seconds()).until(30), words="20 training steps"),
)
