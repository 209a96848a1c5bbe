"""Cases of mode-mismatch: evaluation mode in training."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, level, only


def told(about: str, kind: str = "warning") -> Signals:
    mark = Mark(kind, AT + 1, {"text": "...", "about": about, "modules": ["drop", "norm"], "count": 2})
    return Signals.from_arrays({"train_loss": level(), "input_hash": np.arange(STEPS, dtype=float)}, events=[mark])


FIRES = (Case("dropout in evaluation mode", lambda: told("mode"), "warning", words="drop, norm"),)

NEAR_MISSES = (
    Case("batch normalisation alone, a note", lambda: told("mode", kind="note")),
    Case("a warning of something else", lambda: told("unmoved")),
)

ABSTAINS = (Case("modes not recorded", lambda: only(train_loss=level()), words="modes"),)
