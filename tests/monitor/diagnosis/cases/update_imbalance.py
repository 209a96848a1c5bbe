"""Cases of update-imbalance: one tensor changes far faster than its peers."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from monitor.signals import LayerMatrix
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, level, only

NAMES = tuple(f"blocks.{block}.mlp.{part}.weight" for block in range(6) for part in ("up", "down"))
STEP = np.arange(20, STEPS + 1, 20)


def ratios(factor: float, steps: slice = slice(AT, None), names: tuple[str, ...] = NAMES) -> Signals:
    """1e-3 in each ``up``, 8e-3 in each ``down``; one ``up`` at ``factor`` times that."""
    usual = np.where([".down." in name for name in NAMES], 8e-3, 1e-3)
    value = usual * np.exp(np.random.default_rng(0).normal(0, 0.1, (len(STEP), len(NAMES))))
    stop = STEPS + 1 if steps.stop is None else steps.stop
    value[(steps.start < STEP) & (stop >= STEP), 4] *= factor
    value = value.astype(np.float32)
    matrix = LayerMatrix("update_to_weight_ratio", STEP, names, value, np.ones(value.shape, bool))
    return Signals.from_arrays({"train_loss": level()}, layers={"update_to_weight_ratio": matrix})


FIRES = (Case("x10 of its peers", lambda: ratios(10), "info", onset=220, words=NAMES[4]),)

NEAR_MISSES = (
    Case("x8 of another kind", lambda: ratios(1)),
    Case("x2 of its peers", lambda: ratios(2)),
    Case("x10 for 40 steps", lambda: ratios(10, slice(AT, AT + 40))),
    Case("x10 in the first 60 steps", lambda: ratios(10, slice(0, 60))),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="update_to_weight_ratio"),
    Case("no peers", lambda: ratios(10, names=tuple(f"part{i}.weight" for i in range(12))), words="same name"),
    Case("60 steps", lambda: ratios(10, slice(0, None)).until(100), words="less than 50 steps"),
)
