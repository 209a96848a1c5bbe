"""Cases of stall: one step that hung."""

from __future__ import annotations

from monitor.diagnosis.view import Mark
from tests.monitor.diagnosis.cases.drawn import Case, changed, level, only
from tests.monitor.diagnosis.cases.timed import AT, evaluated, seconds, timed


def paused():
    time, more = evaluated(seconds(), pause=9.0)
    return timed(time, **more)


FIRES = (Case("x30", lambda: timed(changed(seconds(), AT, 30)), "warning", onset=AT + 1, words="took 3"),)

NEAR_MISSES = (
    Case("x10", lambda: timed(changed(seconds(), AT, 10))),
    Case("x15 at steps of 3 ms", lambda: timed(changed(seconds(usual=0.003, sd=0.5), AT, 15))),
    Case("evaluation takes 90 steps' time", paused),
    Case("the first step after a resume", lambda: timed(changed(seconds(), AT, 60), events=(Mark("resume", AT),))),
)

ABSTAINS = (
    Case("not timed", lambda: only(train_loss=level()), words="step_time_s not recorded"),
    Case("thirty steps", lambda: timed(seconds()).until(30), words="20 training steps"),
)
