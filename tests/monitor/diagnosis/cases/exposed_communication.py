"""Cases of exposed-communication."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import Case, level, only
from tests.monitor.diagnosis.cases.timed import ranks, seconds

STEP = np.arange(10, 601, 10)


def exposed(share: float) -> Signals:
    time = seconds()
    view = {"step_time_s": time, "comm_exposed_s": (STEP, share * time[STEP - 1])}
    return ranks(view, view)


FIRES = (
    Case("half of the step", lambda: exposed(0.5), "warning", onset=10, words="50 %"),
    Case("a fifth of the step", lambda: exposed(0.2), "info", onset=10),
)

NEAR_MISSES = (Case("5 % of the step", lambda: exposed(0.05)), Case("one process", lambda: only(train_loss=level())))

ABSTAINS = (
    Case("not measured", lambda: ranks({"train_loss": level()}, {"train_loss": level()}), words="0 measurements"),
)
