"""Cases of stale-second-moment: RMS_t of one tensor jumps."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, Rows, constant_lr, layer_norms, level, only
from tests.monitor.diagnosis.controls import LAYERS


def rms(
    row: Rows = AT,
    layer: int = 2,
    factor: float = 1.0,
    usual: float = 1.0,
    longer: float = 1.0,
    grown: float | None = None,
    zeros: float | None = None,
) -> Signals:
    """RMS_t about ``usual`` in every layer, and ``factor`` times that in one from some row on, its updates ``longer``
    times as long and its gradient, where it is measured, ``grown`` times as large, with the share ``zeros`` of its
    entries at 0, four fifths before."""
    value = usual * np.exp(np.random.default_rng(0).normal(0, 0.2, (STEPS, len(LAYERS))))
    value[row, layer] *= factor
    update = np.full(value.shape, 1e-3)
    update[row, layer] *= longer
    layers = {"adam_rms": (LAYERS, value), "update_to_weight_ratio": (LAYERS, update)}
    if grown is not None:
        gradients = layer_norms()
        gradients[row, layer] *= grown
        layers["grad_norm_preclip"] = (LAYERS, gradients)
    if zeros is not None:
        share = np.full(value.shape, 0.8)
        share[row, layer] = zeros
        layers["grad_zero_share"] = (LAYERS, share)
    return Signals.from_arrays({"train_loss": level(), "lr": constant_lr()}, layers=layers)


def after_a_harmless_one() -> Signals:
    """A small jump of another tensor at step 50 comes first."""
    value = np.exp(np.random.default_rng(0).normal(0, 0.2, (STEPS, len(LAYERS))))
    value[50:53, 1] *= 9
    value[AT:, 2] *= 30
    return Signals.from_arrays({"train_loss": level()}, layers={"adam_rms": (LAYERS, value)})


FIRES = (
    Case("x30 for one step", lambda: rms(factor=30), "warning", words=LAYERS[2]),
    Case("x9 for three steps", lambda: rms(slice(AT, AT + 3), factor=9), "info", words=LAYERS[2]),
    Case("x9 at the same gradient", lambda: rms(slice(AT, AT + 3), factor=9, grown=1.1), "warning", words=LAYERS[2]),
    Case("x9, at other entries", lambda: rms(slice(AT, AT + 3), factor=9, grown=1.1, zeros=0.5), "info"),
    Case("x9, at the same entries", lambda: rms(slice(AT, AT + 3), factor=9, grown=1.1, zeros=0.75), "warning"),
    Case("x9 at four times the gradient", lambda: rms(slice(AT, AT + 3), factor=9, grown=4), "info", words=LAYERS[2]),
    Case("x6, and longer updates", lambda: rms(slice(AT, AT + 3), factor=6, usual=0.6, longer=8), "warning"),
)

NEAR_MISSES = (
    Case(
        "x6 at four times the gradient, and longer updates, as in a new phase of the training",
        lambda: rms(slice(AT, AT + 3), factor=6, usual=0.6, longer=8, grown=4),
    ),
    Case("x2.5, as healthy runs have it", lambda: rms(slice(AT, AT + 3), factor=2.5)),
    Case("x7 for one step", lambda: rms(factor=7)),
    Case("always large", lambda: rms(slice(0, STEPS), factor=9)),
    Case("in the first steps", lambda: rms(slice(0, 15), factor=50)),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="adam_rms"),
    Case("ten steps", lambda: rms(factor=30).until(10), words="measurements"),
)
