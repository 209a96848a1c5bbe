"""Cases of resume-mismatch: what steps away at a resume."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from monitor.signals import LayerMatrix
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, changed, constant_lr, level, norms, only
from tests.monitor.diagnosis.controls import LAYERS, warmup_cosine


def resumed(**series: np.ndarray) -> Signals:
    return Signals.from_arrays(series, events=[Mark("resume", AT)])


def restored(optimizer: str, *changed_on_purpose: str) -> Signals:
    """A loss that goes on, and what the trainer found when it held its state against the checkpoint."""
    fields = {"parts": {"weights": "exact", "optimizer": optimizer}, "changed": list(changed_on_purpose)}
    return Signals.from_arrays({"train_loss": level()}, events=[Mark("resume", AT), Mark("fidelity", AT, fields)])


def frozen(rows: slice, *changed_on_purpose: str) -> Signals:
    """Half of the layers have no gradient in ``rows``."""
    present = np.ones((STEPS, len(LAYERS)), bool)
    present[rows, : len(LAYERS) // 2] = False
    step = np.arange(1, STEPS + 1, dtype=np.int64)
    matrix = LayerMatrix("grad_norm_preclip", step, tuple(LAYERS), np.ones(present.shape, np.float32), present)
    events = [Mark("resume", AT), Mark("fidelity", AT, {"parts": {}, "changed": list(changed_on_purpose)})]
    return Signals.from_arrays({"train_loss": level()}, layers={"grad_norm_preclip": matrix}, events=events)


FIRES = (
    Case("half of the layers frozen", lambda: frozen(slice(AT, None)), "warning", words="no longer get a gradient"),
    Case(
        "an optimizer that starts from nothing, and the loss goes on",
        lambda: restored("differs from the checkpoint", "steps"),
        "warning",
        onset=AT + 1,
        words="the state of optimizer",
    ),
    Case(
        "loss 8 % higher, learnt again in 40 steps",
        lambda: resumed(train_loss=changed(level(sd=0.01), slice(AT, AT + 40), 1.08), lr=constant_lr()),
        "warning",
        words="the loss went",
    ),
    Case(
        "gradient norm twice as large",
        lambda: resumed(train_loss=level(), grad_norm_preclip=changed(norms(), slice(AT, None), 2.0)),
        "warning",
        words="gradient norm",
    ),
    Case(
        "the warm-up begins anew",
        lambda: resumed(train_loss=level(), lr=np.concatenate([constant_lr(AT), warmup_cosine(STEPS - AT)])),
        "warning",
        words="learning rate",
    ),
)

NEAR_MISSES = (
    Case("half of the layers frozen all along", lambda: frozen(slice(None))),
    Case("half of the layers frozen on purpose", lambda: frozen(slice(AT, None), "model.weights")),
    Case("half of the layers have no gradient now and then", lambda: frozen(slice(0, None, 2))),
    Case("all state restored", lambda: restored("exact")),
    Case("another optimizer on purpose", lambda: restored("differs from the checkpoint", "optimizer.kind")),
    Case("no resume", lambda: only(train_loss=changed(level(), slice(AT, None), 1.5))),
    Case("everything goes on", lambda: resumed(train_loss=level(), grad_norm_preclip=norms(), lr=constant_lr())),
    Case("2 % higher", lambda: resumed(train_loss=changed(level(sd=0.005), slice(AT, None), 1.02))),
    Case("within the scatter", lambda: resumed(train_loss=changed(level(sd=0.3), slice(AT, None), 1.05))),
    Case("cosine goes on", lambda: resumed(train_loss=level(), lr=warmup_cosine(STEPS))),
    Case("a loss that falls", lambda: resumed(train_loss=level() * np.linspace(2, 1, STEPS))),
)

ABSTAINS = (
    Case(
        "three rows after",
        lambda: Signals.from_arrays({"train_loss": level()}, events=[Mark("resume", STEPS - 3)]),
        words="fewer than 5 rows",
    ),
    Case("nothing to compare", lambda: only(tokens=np.arange(STEPS)), words="not recorded"),
)
