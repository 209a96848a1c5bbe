"""Cases of edge-of-stability: curvature against the limit of the steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import STEPS, Case

EVERY = 20
SAMPLED = np.arange(EVERY, STEPS + 1, EVERY)
ALL = np.arange(1, STEPS + 1)


def at(over: Sequence[float] | np.ndarray, loss: np.ndarray | None = None, lr: float = 0.01) -> Signals:
    """Samples every 20 steps that lie at ``over`` limits, 2 / lr, and a loss at each step."""
    over = np.asarray(over, float)
    falling = 3 * np.exp(-ALL / STEPS)
    return Signals.from_arrays(
        {
            "sharpness": (SAMPLED[: len(over)], over * 2 / lr),
            "sharpness_limit": (SAMPLED[: len(over)], np.full(len(over), 2 / lr)),
            "train_loss": (ALL, falling if loss is None else loss),
        }
    )


def rises(to: float) -> np.ndarray:
    """Progressive sharpening: from a tenth of the limit to ``to`` limits in half the run, then level."""
    return np.minimum(np.geomspace(0.1, to * to * 10, len(SAMPLED)), to)


def crossing(to: float) -> int:
    """The first sampled step above the limit."""
    return int(SAMPLED[np.argmax(rises(to) > 1)])


HALF = STEPS // 2
GROWING = np.where(ALL <= HALF, 2.0, 2.0 * 1.003 ** (ALL - HALF))

FIRES = (
    Case(
        "hovers just above the limit while the loss falls",
        lambda: at(rises(1.05)),
        "info",
        onset=crossing(1.05),
        words="1.05",
    ),
    Case(
        "far above, and the loss falls all the same",
        lambda: at(rises(3.0)),
        "info",
        onset=crossing(3),
        words="as high as",
    ),
    Case(
        "far above, and the loss grows",
        lambda: at(rises(3.0), GROWING),
        "warning",
        onset=crossing(3),
        words="overshoot",
    ),
    Case(
        "no losses to tell by",
        lambda: at(rises(3.0), np.full(STEPS, np.nan)),
        "info",
        onset=crossing(3),
        words="as high as",
    ),
)

NEAR_MISSES = (
    Case("hovers just below", lambda: at(rises(0.97))),
    Case("one sample above", lambda: at([0.5, 0.5, 5.0, 0.5, 0.5, 0.5])),
    Case("two running above, twice", lambda: at([0.5, 1.5, 1.5, 0.5, 1.5, 1.5, 0.5])),
    Case("a loss that grows far below the limit", lambda: at(rises(0.3), GROWING)),
)

ABSTAINS = (
    Case("two samples", lambda: at([3.0, 3.0]), words="at least 3"),
    Case("none finite", lambda: at([np.nan, np.inf, np.nan, np.inf]), words="at least 3"),
)
