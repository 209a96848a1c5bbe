"""Cases of replicas-apart: ranks with different parameters."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import Case, level, only
from tests.monitor.diagnosis.cases.timed import ranks

STEP = np.array([100, 200, 300])


def sums(of_rank_1: list[float]) -> Signals:
    def view(values: list[float]):
        return {"train_loss": (np.arange(1, 301), level()), "parameter_checksum": (STEP, np.array(values))}

    return ranks(view(of_rank_1), view([11.0, 12.0, 13.0]))


FIRES = (
    Case(
        "from step 300 on", lambda: sums([11.0, 12.0, 14.0]), "critical", onset=201, words="between steps 200 and 300"
    ),
    Case("from the start", lambda: sums([1.0, 2.0, 3.0]), "critical", onset=1, words="or before"),
)

NEAR_MISSES = (
    Case("equal", lambda: sums([11.0, 12.0, 13.0])),
    Case("one process", lambda: only(train_loss=level(), parameter_checksum=np.arange(300.0))),
)

ABSTAINS = (Case("no checksums", lambda: ranks({"train_loss": level()}, {"train_loss": level()}), words="checksum"),)
