"""Cases of straggler: one rank is late."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import Case, changed, level, only
from tests.monitor.diagnosis.cases.timed import ranks, seconds


def late(factor: float, start: int = 0, sd: float = 0.05) -> Signals:
    slow = changed(seconds(sd, seed=2), slice(start, None), factor)
    return ranks({"first_gradient_s": slow}, {"train_loss": level(), "first_gradient_s": seconds(sd, seed=1)})


def crowded(factor: float, others: float) -> Signals:
    """Rank 1 takes longer, and has no processor for ``others`` of a usual time to the first gradient."""
    usual = seconds(0.05, seed=1)
    slow = {"first_gradient_s": seconds(0.05, seed=2) * factor, "cpu_wait_s": others * usual}
    return ranks(slow, {"train_loss": level(), "first_gradient_s": usual, "cpu_wait_s": 0.01 * usual})


FIRES = (
    Case(
        "a half slower, without a processor for that time", lambda: crowded(1.5, 0.5), "info", onset=1, words="Rank 1"
    ),
    Case("a half slower, a tenth of it so", lambda: crowded(1.5, 0.05), "warning", onset=1, words="Rank 1"),
    Case("a fifth slower", lambda: late(1.2), "warning", onset=1, words="Rank 1"),
    Case("from step 301 on", lambda: late(1.3, start=300), "warning", onset=301, words="Rank 1"),
    Case("from step 301 on, 22 of them", lambda: late(1.3, start=300).until(322), "warning", onset=301),
    Case("two fifths slower on a busy machine", lambda: late(1.4, sd=0.3), "warning", onset=None),
)

NEAR_MISSES = (
    Case("3 % slower", lambda: late(1.03)),
    Case("they take turns", lambda: late(1.0, sd=0.5)),
    Case("one process", lambda: only(first_gradient_s=np.ones(100))),
)

ABSTAINS = (
    Case("not measured", lambda: ranks({"train_loss": level()}, {"train_loss": level()}), words="0 ranks"),
    Case("nineteen steps", lambda: late(1.2).until(19), words="19 common steps"),
)
