"""Cases of dead-units: a share of units that never fire."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from monitor.signals import LayerMatrix
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, level, only

MODULES = ("layers.0.act", "layers.1.act", "layers.2.act")
EVERY = 50
STEP = np.arange(EVERY, STEPS + 1, EVERY)


def run(stat: str, before: float, after: float, start: int = AT) -> Signals:
    """``stat`` of the second module, every 50 steps; the others at a tenth."""
    value = np.full((len(STEP), len(MODULES)), 0.1, np.float32)
    value[:, 1] = np.where(start < STEP, after, before)
    matrix = LayerMatrix(stat, STEP, MODULES, value, np.ones(value.shape, bool))
    return Signals.from_arrays({"train_loss": level()}, modules={stat: matrix})


def dead(before: float, after: float, start: int = AT) -> Signals:
    return run("dead_units_share", before, after, start)


def of_samples(count: int) -> Signals:
    matrix = dead(0.05, 0.9).modules("dead_units_share")
    assert matrix is not None
    series = {"train_loss": level(), "samples": np.full(STEPS, count)}
    return Signals.from_arrays(series, modules={"dead_units_share": matrix})


def while_it_learns(after: float, fall: float) -> Signals:
    """Units that die from step AT on, of a loss that falls by the share ``fall`` from there to the end."""
    matrix = dead(0.05, after).modules("dead_units_share")
    assert matrix is not None
    loss = level() * (1 - fall * np.clip((np.arange(STEPS) - AT) / (STEPS - AT), 0, 1))
    return Signals.from_arrays({"train_loss": loss}, modules={"dead_units_share": matrix})


FIRES = (
    Case("to 90 %, of one sample at a time", lambda: of_samples(1), "info", onset=AT + EVERY),
    Case("to 90 %, of eight samples", lambda: of_samples(8), "warning", onset=AT + EVERY),
    Case("to 60 %, and the loss falls", lambda: while_it_learns(0.6, 0.5), "info", onset=AT + EVERY),
    Case("to 60 %, and the loss falls by 1 %", lambda: while_it_learns(0.6, 0.01), "warning", onset=AT + EVERY),
    Case("to 90 %, and the loss falls", lambda: while_it_learns(0.9, 0.5), "warning", onset=AT + EVERY),
    Case("from 5 to 90 %", lambda: dead(0.05, 0.9), "warning", onset=AT + EVERY, words=MODULES[1]),
    Case("90 % from the start", lambda: dead(0.9, 0.9), "info", onset=EVERY, words="first steps"),
    Case("from 5 to 40 %, for three measurements", lambda: dead(0.05, 0.4, start=100), "info", onset=150),
)

NEAR_MISSES = (
    Case("a third, always", lambda: dead(0.33, 0.33)),
    Case("from 30 to 45 %", lambda: dead(0.3, 0.45)),
    Case("one measurement", lambda: dead(0.05, 0.9, start=STEPS - 10)),
)

ABSTAINS = (Case("not measured", lambda: only(train_loss=level()), words="dead_units_share"),)
