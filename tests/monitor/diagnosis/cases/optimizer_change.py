"""Cases of optimizer-change: a setting, or the clip limit, is another one from one step on."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, level, norms, only, put


def told(name: str, before: float, after: float, decay: float = 0.1) -> Signals:
    groups = [{"weight_decay": decay, "beta1": 0.9}, {"weight_decay": 0.0, "beta1": 0.9}]
    jump = {"group": 0, "name": name, "before": before, "after": after}
    events = [Mark("optimizer", 1, {"name": "AdamW", "groups": groups}), Mark("optimizer_change", AT + 1, jump)]
    return Signals.from_arrays({"train_loss": level()}, events=events if name else events[:1])


def clipped(until: int, factor: float, limit: float = 0.5, later: float = 1.0) -> Signals:
    """Clipped at ``limit`` up to row ``until``; the norm is ``factor`` times as large ten rows after AT. From
    ``until`` on the optimizer gets ``later`` of it."""
    rows = np.arange(STEPS)
    norm = put(norms(), AT + 10, limit * factor)
    series = {
        "train_loss": level(), "grad_norm_preclip": norm,
        "clip_max_norm": (rows[:until] + 1, np.full(until, limit)),
        "clip_coef": (rows[:until] + 1, np.minimum(1.0, limit / norm[:until])),
        "grad_norm_postclip": np.where(rows < until, np.minimum(norm, limit), later * norm),
    }  # fmt: skip
    return Signals.from_arrays(series)


def forgotten(*steps: int) -> Signals:
    """The moments of 21 tensors are gone at these steps."""
    lost = [Mark("optimizer_change", step, {"name": "state", "before": 21, "after": 0}) for step in steps]
    return Signals.from_arrays({"train_loss": level()}, events=[Mark("optimizer", 1, {"groups": []}), *lost])


FIRES = (
    Case("its moments are gone", lambda: forgotten(AT + 1), "warning", words="forgotten its state at step 201"),
    Case("its moments are gone again and again", lambda: forgotten(201, 226, 251), "warning", words="2 times more"),
    Case("the decay's sign is turned", lambda: told("weight_decay", 0.1, -0.1), "warning", words="below zero"),
    Case("100 times the decay", lambda: told("weight_decay", 0.1, 10.0), "warning", words="weight decay"),
    Case("a negative decay from the start", lambda: told("", 0, 0, decay=-0.01), "warning", onset=1, words="-0.01"),
    Case("momentum lost", lambda: told("momentum", 0.99, 0.5), "warning", words="momentum"),
    Case("decay switched off", lambda: told("weight_decay", 0.1, 0.0), "info", words="went from"),
    Case("no longer clipped", lambda: clipped(AT, 40), "warning", words="no longer clipped"),
)

NEAR_MISSES = (
    Case("what it was from the start", lambda: told("", 0, 0)),
    Case("three times the decay", lambda: told("weight_decay", 0.1, 0.3)),
    Case("momentum warmed up", lambda: told("momentum", 0.5, 0.9)),
    Case("clipped to the end, a heavy gradient", lambda: clipped(STEPS, 40)),
    Case("no longer clipped, nothing heavy since", lambda: clipped(AT, 1)),
    Case("clipped tensor by tensor from then on", lambda: clipped(AT, 40, later=0.4)),
    Case("a limit that never did anything", lambda: clipped(AT, 0.001, limit=1e4)),
)

ABSTAINS = (Case("settings not recorded", lambda: only(train_loss=level()), words="settings were not recorded"),)
