"""Cases of exposed-communication."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import Case, level, only
from tests.monitor.diagnosis.cases.timed import ranks, seconds

STEP = np.union1d(np.arange(1, 11), np.arange(20, 601, 10))


def exposed(share: float, at_first: float | None = None) -> Signals:
    """``share`` of each step, ``at_first`` of the first twenty."""
    time = seconds()
    part = np.where(STEP > 20, share, share if at_first is None else at_first)
    view = {"step_time_s": time, "comm_exposed_s": (STEP, part * time[STEP - 1])}
    return ranks(view, view)


FIRES = (
    Case("half of the step", lambda: exposed(0.5), "warning", onset=30, words="50 %"),
    Case("a fifth of the step", lambda: exposed(0.2), "info", onset=30),
)

NEAR_MISSES = (
    Case("5 % of the step", lambda: exposed(0.05)),
    Case("half of the first steps, while the processes start", lambda: exposed(0.05, 0.5).until(130)),
    Case("one process", lambda: only(train_loss=level())),
)

ABSTAINS = (
    Case("not measured", lambda: ranks({"train_loss": level()}, {"train_loss": level()}), words="0 measurements"),
    Case("twenty steps", lambda: exposed(0.5).until(20), words="0 measurements"),
)
