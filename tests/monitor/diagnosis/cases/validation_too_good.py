"""Cases of validation-too-good: validation below what training reaches."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Facts, Signals
from tests.monitor.diagnosis.cases.drawn import STEPS, Case, level, only

AT_STEPS = np.arange(50, STEPS + 1, 50)


def evaluated(
    share: float, loss: np.ndarray | None = None, config: dict[str, dict[str, float]] | None = None
) -> Signals:
    """Validation at ``share`` of the training loss of its step."""
    loss = level() if loss is None else loss
    series = {"train_loss": (np.arange(1, STEPS + 1), loss), "val_loss": (AT_STEPS, share * loss[AT_STEPS - 1])}
    return Signals.from_arrays(series, facts=Facts(config=config))


FIRES = (Case("half of training's", lambda: evaluated(0.5), "info", onset=50, words="evaluations running"),)

NEAR_MISSES = (
    Case("0.85 of training's", lambda: evaluated(0.85)),
    Case("with dropout", lambda: evaluated(0.5, config={"model": {"dropout": 0.2}})),
    Case("a loss that falls fast", lambda: evaluated(0.9, 4 * np.exp(-np.arange(STEPS) / 30) + 1e-3)),
    Case("near zero", lambda: evaluated(0.5, np.maximum(2 * np.exp(-np.arange(STEPS) / 10), 0.05))),
)

ABSTAINS = (
    Case("no validation", lambda: only(train_loss=level()), words="val_loss"),
    Case("two evaluations", lambda: evaluated(0.5).until(125), words="2 evaluations"),
    Case("signed", lambda: evaluated(0.5, np.sin(np.arange(STEPS))), words="zero or negative"),
)
