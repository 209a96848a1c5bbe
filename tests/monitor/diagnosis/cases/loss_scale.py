"""Cases of loss-scale: fp16's range is used up at the top, at the bottom, or soon will be."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Facts, Signals
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, level, norms, only, scaled
from tests.monitor.diagnosis.controls import LAYERS


def retrying(interval: int, ceiling: float = 4096.0) -> Signals:
    """A scaler that doubles every ``interval`` clean steps and is refused each time above ``ceiling``."""
    scale, clean, values = ceiling, 0, []
    for _ in range(STEPS):
        values.append(scale)
        overflow = scale > ceiling
        scale, clean = (scale / 2, 0) if overflow else (scale, clean + 1)
        if clean == interval:
            scale, clean = 2 * scale, 0
    return only(train_loss=level(), loss_scale=np.array(values))


def zeros(scale: float, share: float, layers: int = len(LAYERS)) -> Signals:
    """From some row on another scale, and ``share`` zeros in the gradient of some layers, 0.1 before."""
    value = np.full((STEPS, len(LAYERS)), 0.1)
    value[AT:, :layers] = share
    series = {"train_loss": level(), "loss_scale": np.where(np.arange(STEPS) < AT, 65536.0, scale)}
    return Signals.from_arrays(series, layers={"grad_zero_share": (LAYERS, value)})


def outputs(first: float, then: float, precision: str = "fp16") -> Signals:
    value = np.full((STEPS, len(LAYERS)), 10.0)
    value[:AT, 3], value[AT:, 3] = first, then
    series = {"train_loss": level(), "loss_scale": np.full(STEPS, 65536.0)}
    facts = Facts(config={"precision": {"kind": precision}})
    return Signals.from_arrays(series, modules={"activation_absmax": (LAYERS, value)}, facts=facts)


def clipped(norm: float, scale: float = 65536.0, limit: float | None = 1.0) -> Signals:
    """A gradient norm about ``norm``, clipped to ``limit``; for None, to a limit that is divided by the scale later."""
    rows, size = np.full(STEPS, 1.0), norm * norms()
    known = {} if limit is None else {"clip_max_norm": limit * rows}
    left = np.minimum(size, limit or 1 / scale)
    series = {"grad_norm_preclip": size, "grad_norm_postclip": left, "loss_scale": scale * rows}
    return only(train_loss=level(), **series, **known)


FIRES = (
    Case(
        "clipped with the scale on it", lambda: clipped(65536.0), "warning", onset=1, words="with the loss scale still"
    ),
    Case(
        "clipped with the scale on it, which is known to be on it",
        lambda: clipped(1.0, limit=None),
        "warning",
        onset=1,
        words="with the loss scale still",
    ),
    Case(
        "one row, below 1",
        lambda: only(train_loss=level()[:1], loss_scale=np.array([0.5])),
        "warning",
        onset=1,
        words="below 1",
    ),
    Case(
        "0.001 throughout",
        lambda: only(train_loss=level(), loss_scale=np.full(STEPS, 1e-3)),
        "warning",
        onset=1,
        words="smaller",
    ),
    Case("halved every other step", lambda: scaled([AT, AT + 2, AT + 4], inf=[]), "warning", words="fell to 8192"),
    Case("at 1 in the first steps", lambda: scaled(list(range(16)), inf=[]), "warning", onset=1, words="fell to 1 "),
    Case("more zeros at a scale of 64", lambda: zeros(64, 0.6), "warning", words="underflow"),
    Case("outputs that grew to 40000", lambda: outputs(100, 4e4), "warning", words=LAYERS[3]),
    Case("outputs of 40000 throughout", lambda: outputs(4e4, 4e4), "info", onset=1, words="65504"),
)

NEAR_MISSES = (
    Case("clipped to a hundredth", lambda: clipped(100.0)),
    Case("clipped to a thousandth at a scale of 8", lambda: clipped(4096.0, scale=8.0)),
    Case("clipped far beyond the scale", lambda: clipped(1e9)),
    Case("a limit that is set to a hundred-thousandth", lambda: clipped(1.0, limit=1e-5)),
    Case("one row of 0, and no crash", lambda: only(train_loss=level()[:1], loss_scale=np.zeros(1))),
    Case("two halvings", lambda: scaled([AT, AT + 2], inf=[])),
    Case("three halvings in 120 steps", lambda: scaled([AT - 60, AT, AT + 60], inf=[])),
    Case("looking for its scale", lambda: scaled(list(range(12)), inf=[])),
    Case(
        "halved three times, down to where scalers begin", lambda: scaled([AT, AT + 2, AT + 4], inf=[], start=2.0**19)
    ),
    Case("growth every 5 steps, refused", lambda: retrying(5)),
    Case("growth every 20 steps, refused", lambda: retrying(20)),
    Case("growth every step, refused", lambda: retrying(1)),
    Case("more zeros at a high scale", lambda: zeros(4096, 0.6)),
    Case("as many zeros at a low scale", lambda: zeros(64, 0.15)),
    Case("more zeros in three layers", lambda: zeros(64, 0.9, layers=3)),
    Case("large outputs in bf16", lambda: outputs(100, 4e4, "bf16")),
    Case("outputs of 20000", lambda: outputs(100, 2e4)),
)

ABSTAINS = (Case("no scaler", lambda: only(train_loss=level()), words="loss_scale"),)
