"""Cases of epsilon-floor: updates that Adam's epsilon holds back."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Facts, Signals
from monitor.signals import LayerMatrix
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, level, only
from tests.monitor.diagnosis.controls import LAYERS

EVERY = 50


def floor(share: float, zeros: float = 0.05, rows: int = STEPS // EVERY, zeros_until: int = STEPS) -> Signals:
    """The share of one layer from step AT + 1 on, every 50 steps; zeros of its gradient every 10, up to a step."""
    step = np.arange(1, rows * EVERY, EVERY)
    held = np.full((len(step), len(LAYERS)), 0.02, np.float32)
    held[step > AT, 5] = share
    off = np.full((STEPS // 10, len(LAYERS)), 0.05, np.float32)
    off[:, 5] = zeros
    known = np.ones(off.shape, bool)
    known[zeros_until // 10 :, 5] = False
    layers = {
        "adam_floor_share": LayerMatrix("adam_floor_share", step, LAYERS, held, np.ones(held.shape, bool)),
        "grad_zero_share": LayerMatrix("grad_zero_share", np.arange(1, STEPS, 10), LAYERS, off, known),
    }
    return Signals.from_arrays({"train_loss": level()}, layers=layers)


def armed(first: int, last: int) -> Signals:
    """Measured in each step from ``first`` to ``last``, with no second moment yet, and every 50 steps as usual."""
    step = np.union1d(np.arange(first, last + 1), np.arange(1, STEPS, EVERY))
    held = np.where((step >= first) & (step <= last), 1.0, 0.02)[:, None] * np.ones(len(LAYERS), np.float32)
    matrix = LayerMatrix("adam_floor_share", step, LAYERS, held.astype(np.float32), np.ones(held.shape, bool))
    zeros = floor(0.0).layers("grad_zero_share")
    assert zeros is not None
    return Signals.from_arrays({"train_loss": level()}, layers={"adam_floor_share": matrix, "grad_zero_share": zeros})


def throughout(eps: float, first: int = 0) -> Signals:
    """All entries of all tensors from step ``first`` on."""
    step = np.arange(1, STEPS, EVERY)
    held = np.where(step >= first, 1.0, 0.02)[:, None] * np.ones(len(LAYERS), np.float32)
    zeros = floor(0.0).layers("grad_zero_share")
    assert zeros is not None
    matrix = LayerMatrix("adam_floor_share", step, LAYERS, held.astype(np.float32), np.ones(held.shape, bool))
    layers = {"adam_floor_share": matrix, "grad_zero_share": zeros}
    facts = Facts(config={"optimizer": {"eps": eps}})
    return Signals.from_arrays({"train_loss": level()}, layers=layers, facts=facts)


FIRES = (
    Case("90 % of a tensor", lambda: floor(0.9), "info", words=LAYERS[5]),
    Case("all of the model from the start, epsilon 0.1", lambda: throughout(0.1), "warning", onset=51),
    Case("all of the model from the start, epsilon 1e-6", lambda: throughout(1e-6), "info", onset=51),
    Case("all of the model once it has learnt, epsilon 0.1", lambda: throughout(0.1, AT), "info"),
)

NEAR_MISSES = (
    Case("thirteen measurements in thirteen steps", lambda: armed(110, 122)),
    Case("40 % of a tensor", lambda: floor(0.4)),
    Case("90 %, and nobody looks at its zeros any more", lambda: floor(0.9, zeros_until=30)),
    Case("90 %, of which 80 % have no gradient", lambda: floor(0.9, zeros=0.8)),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="adam_floor_share"),
    Case("one measurement", lambda: floor(0.9, rows=1), words="fewer than 2"),
)
