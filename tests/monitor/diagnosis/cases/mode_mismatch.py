"""Cases of mode-mismatch: evaluation mode in training."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, level, only


def told(about: str, kind: str = "warning", during: str = "training") -> Signals:
    fields = {"text": "...", "about": about, "during": during, "modules": ["drop", "norm"], "count": 2}
    mark = Mark(kind, AT + 1, fields)
    return Signals.from_arrays({"train_loss": level(), "input_hash": np.arange(STEPS, dtype=float)}, events=[mark])


FIRES = (
    Case("dropout in evaluation mode", lambda: told("mode"), "warning", words="evaluation mode: drop, norm"),
    Case("evaluated with dropout", lambda: told("mode", during="evaluation"), "warning", words="as in training: drop"),
)

NEAR_MISSES = (
    Case("batch normalisation alone, a note", lambda: told("mode", kind="note")),
    Case("a warning of something else", lambda: told("unmoved")),
)

ABSTAINS = (Case("modes not recorded", lambda: only(train_loss=level()), words="modes"),)
