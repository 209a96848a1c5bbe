"""Cases of saturated-units: units at the bounds of a tanh or sigmoid."""

from __future__ import annotations

from tests.monitor.diagnosis.cases.dead_units import EVERY, MODULES, run
from tests.monitor.diagnosis.cases.drawn import AT, Case, level, only

STAT = "saturated_units_share"

FIRES = (
    Case("from 5 to 80 %", lambda: run(STAT, 0.05, 0.8), "warning", onset=AT + EVERY, words=MODULES[1]),
    Case("80 % from the start", lambda: run(STAT, 0.8, 0.8), "info", onset=EVERY, words="saturated"),
)

NEAR_MISSES = (
    Case("from 5 to 45 %", lambda: run(STAT, 0.05, 0.45)),
    Case("a third, always", lambda: run(STAT, 0.33, 0.33)),
)

ABSTAINS = (Case("not measured", lambda: only(train_loss=level()), words="saturated_units_share"),)
