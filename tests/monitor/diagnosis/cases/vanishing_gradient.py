"""Cases of vanishing-gradient: cut off for good, or fading towards the input."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from monitor.signals import LayerMatrix
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, layer_norms, level, only, with_layers
from tests.monitor.diagnosis.controls import LAYERS

LAST = len(LAYERS) - 1


def zeroed(rows: slice, layer: int = 4) -> Signals:
    layers = layer_norms()
    layers[rows, layer] = 0.0
    return with_layers(level(), layers)


def died(*, updates: float, dead: float = 0.98) -> Signals:
    """A tensor's gradient is 0 from ``AT`` on, and as many of the units of two modules are dead from then on."""
    layers = layer_norms()
    layers[AT:, 4] = 0.0
    ratio = np.full(STEPS, 1e-3)
    ratio[AT - 5 : AT] = updates
    share = np.full((STEPS, 2), [0.04, 0.0], np.float32)
    share[AT:, 0] = dead
    return Signals.from_arrays(
        {"train_loss": level(), "update_to_weight_ratio": ratio},
        layers={"grad_norm_preclip": (LAYERS, layers)},
        modules={"dead_units_share": (("act", "out"), share)},
    )


def fading(per_layer: float) -> Signals:
    """Norms that fall by ``per_layer`` from one tensor to the next towards the input."""
    return with_layers(level(), layer_norms() * per_layer ** (LAST - np.arange(len(LAYERS))))


def low_in_the_middle() -> Signals:
    layers = layer_norms()
    layers[:, 1:8] *= 1e-7
    return with_layers(level(), layers)


def gone(rows: slice | np.ndarray = slice(AT, None), *, frozen: bool = False, moves: bool = False) -> Signals:
    """The first three tensors have no gradient in ``rows``; every ten steps the updates of what is not frozen."""
    present = np.ones((STEPS, len(LAYERS)), bool)
    present[rows, :3] = False
    step = np.arange(1, STEPS + 1)
    update = np.where(present | moves, 1e-3, 0.0).astype(np.float32)[::10]
    told = present[::10] if frozen else np.ones(update.shape, bool)
    layers = {
        "grad_norm_preclip": LayerMatrix("grad_norm_preclip", step, LAYERS, layer_norms(), present),
        "update_norm": LayerMatrix("update_norm", step[::10], LAYERS, update, told),
    }
    return Signals.from_arrays({"train_loss": level()}, layers=layers)


def in_turn(low: float, rows: slice = slice(150, None), *, kind: str = "objectives", reward: bool = False) -> Signals:
    """Gradients of the first six tensors at the share ``low`` of what they were, in ``rows``."""
    layers = layer_norms()
    layers[rows, :6] *= low
    names = tuple(f"{'generator' if column < 6 else 'critic'}.{name}" for column, name in enumerate(LAYERS))
    series = {"train_loss": level()} | ({"reward": level()} if reward else {})
    return Signals.from_arrays(series, events=[Mark(kind, 1)], layers={"grad_norm_preclip": (names, layers)})


FIRES = (
    Case("a generator has lost", lambda: in_turn(5e-4), "warning", onset=151, words="next to no gradient"),
    Case("one tensor cut off", lambda: zeroed(slice(AT, None)), "warning", words=LAYERS[4]),
    Case("steps that killed its units", lambda: died(updates=0.9), "warning", words=LAYERS[4]),
    Case("detached from the rest", gone, "warning", words="is not there any more"),
    Case("a sixth from layer to layer", lambda: fading(1 / 6), "warning", onset=21, words="fade"),
)

NEAR_MISSES = (
    Case("a generator at a hundredth", lambda: in_turn(1e-2)),
    Case("a generator that comes back", lambda: in_turn(5e-4, slice(150, -25))),
    Case("a part at a minimum, of one loss", lambda: in_turn(5e-4, kind="note")),
    Case("an actor at its best", lambda: in_turn(5e-4, reward=True)),
    Case("zero from the start", lambda: zeroed(slice(0, None))),
    Case("zero for fifteen steps", lambda: zeroed(slice(AT, AT + 15))),
    Case("zero every third step", lambda: zeroed(slice(0, None, 3))),
    Case("frozen", lambda: gone(frozen=True)),
    Case("gone, and moved by another optimizer", lambda: gone(moves=True)),
    Case("gone for fifteen steps", lambda: gone(slice(AT, AT + 15))),
    Case("gone for the last fifteen steps", lambda: gone(slice(STEPS - 15, None))),
    Case("gone in every third step, and to the end", lambda: gone(np.r_[0:AT:3, AT:STEPS])),
    Case("gone from the start", lambda: gone(slice(0, None))),
    Case("a half from layer to layer", lambda: fading(1 / 2)),
    Case("low in the middle only", low_in_the_middle),
)

ABSTAINS = (
    Case("no layers", lambda: only(train_loss=level()), words="layers:grad_norm_preclip not recorded"),
    Case("ten rows", lambda: zeroed(slice(0, None)).until(10), words="10 rows"),
)
