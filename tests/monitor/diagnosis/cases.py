"""For each rule: runs on which it fires, near misses on which it stays silent, runs on which it cannot tell.

A near miss looks guilty: most differ from a firing case by one number, on the other side of a threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.controls import LAYERS, gradient, spread

STEPS = 300
AT = 200
"""Row of every planted event; step 201."""


@dataclass(frozen=True, slots=True)
class Case:
    """One small run and what the rule must answer."""

    name: str
    make: Callable[[], Signals]
    severity: str | None = None
    """Worst severity expected, for cases that fire; a near miss may give ``info`` at most."""
    onset: int | None = AT + 1
    words: str = ""
    """Part of the summary, or of the reason for abstaining."""


def level(seed: int = 0, sd: float = 0.02, steps: int = STEPS) -> np.ndarray:
    """A loss of 2 nats after a fall, with noise; flat, so that a planted ratio is the ratio seen."""
    start = 3.5 * np.exp(-np.arange(steps) / 15)
    return (2.0 + start) * np.exp(np.random.default_rng(seed).normal(0, sd, steps))


def norms(seed: int = 1, sd: float = 0.1, steps: int = STEPS) -> np.ndarray:
    return gradient(np.random.default_rng(seed), steps, sd=sd)


def constant_lr(steps: int = STEPS) -> np.ndarray:
    return np.full(steps, 1e-3)


Rows = int | slice | list[int] | tuple[slice, int]


def changed(value: np.ndarray, rows: Rows, factor: float | np.ndarray) -> np.ndarray:
    """A copy with ``rows`` multiplied by ``factor``."""
    copy = value.copy()
    copy[rows] *= factor
    return copy


def put(value: np.ndarray, rows: Rows, new: float) -> np.ndarray:
    copy = value.copy()
    copy[rows] = new
    return copy


def only(**series: np.ndarray) -> Signals:
    return Signals.from_arrays(series)


def loss_and_norm(loss: np.ndarray, norm: np.ndarray, **more: np.ndarray) -> Signals:
    return only(train_loss=loss, grad_norm_preclip=norm, lr=constant_lr(len(loss)), **more)


def with_layers(loss: np.ndarray, layers: np.ndarray) -> Signals:
    with np.errstate(invalid="ignore"):
        norm = np.sqrt((layers.astype(float) ** 2).sum(axis=1))
    series = {"train_loss": loss, "grad_norm_preclip": norm, "lr": constant_lr(len(loss))}
    return Signals.from_arrays(series, layers={"grad_norm_preclip": (LAYERS, layers)})


def layer_norms(seed: int = 2) -> np.ndarray:
    return spread(np.random.default_rng(seed), norms(seed))


def hit(layers: np.ndarray, row: int, layer: int | slice, factor: float) -> np.ndarray:
    copy = layers.copy()
    copy[row, layer] *= factor
    return copy


def scaled(falls: list[int], *, inf: list[int]) -> Signals:
    """fp16: the scale halves after each row of ``falls``; the gradient is infinite at the rows of ``inf``."""
    scale = np.full(STEPS, 65536.0)
    for row in falls:
        scale[row + 1 :] /= 2
    return loss_and_norm(level(), put(norms(), inf, np.inf), loss_scale=scale)


def restarted(factor: float, *, known_height: bool) -> Signals:
    lr = np.full(STEPS, 1e-4)
    lr[: 60 if known_height else 0] = 1e-3
    lr[AT:] = 1e-3
    return only(train_loss=changed(level(), slice(AT, None), factor), lr=lr)


def moved_data(factor: float, kind: str) -> Signals:
    series = {"train_loss": changed(level(), slice(AT, None), factor), "lr": constant_lr()}
    return Signals.from_arrays(series, events=[Mark(kind, AT + 1)])


def climbing(share: float, seed: int = 0, start: int = AT - 60) -> np.ndarray:
    """A climb by ``share`` a step from row ``start``."""
    loss = level(seed)
    loss[start:] *= (1 + share) ** np.arange(STEPS - start)
    return loss


FIRES: dict[str, tuple[Case, ...]] = {
    "non-finite": (
        Case(
            "NaN loss to the end",
            lambda: only(train_loss=put(level(), slice(AT, None), np.nan)),
            "critical",
            words="became NaN",
        ),
        Case("one NaN loss", lambda: only(train_loss=put(level(), AT, np.nan)), "warning", words="recovered"),
        Case(
            "infinite loss", lambda: only(train_loss=put(level(), slice(AT, None), -np.inf)), "critical", words="-Inf"
        ),
        Case(
            "NaN gradients to the end",
            lambda: loss_and_norm(level(), put(norms(), slice(AT, None), np.nan)),
            "critical",
            words="Gradient became NaN",
        ),
        Case("gradient norm alone", lambda: only(grad_norm_preclip=put(norms(), slice(AT, None), np.nan)), "critical"),
        Case(
            "one infinite gradient without a scaler", lambda: loss_and_norm(level(), put(norms(), AT, np.inf)), "info"
        ),
        Case("one layer", lambda: with_layers(level(), hit(layer_norms(), AT, 4, np.nan)), "info", words=LAYERS[4]),
        Case(
            "loss falls to exactly 0",
            lambda: only(train_loss=put(level(), slice(AT, None), 0.0)),
            "critical",
            words="exactly 0",
        ),
        Case(
            "validation loss",
            lambda: Signals.from_arrays(
                {"train_loss": level(), "val_loss": (np.array([100, AT + 1]), np.array([2.0, np.inf]))}
            ),
            "warning",
            words="Validation",
        ),
        Case(
            "scale used up",
            lambda: scaled(list(range(AT - 20, AT, 2)), inf=list(range(AT - 20, AT, 2))),
            "warning",
            onset=None,
            words="fp16",
        ),
    ),
    "gradient-explosion": (
        Case(
            "grows over four steps, loss follows",
            lambda: loss_and_norm(
                changed(level(), slice(AT + 4, AT + 12), 1.6),
                changed(norms(), slice(AT, AT + 5), 4.0 ** np.arange(1, 6)),
            ),
            "warning",
            words="loss followed 4 steps later",
        ),
        Case(
            "x40 for one step",
            lambda: loss_and_norm(level(), changed(norms(), AT, 40)),
            "warning",
            words="did not follow",
        ),
        Case("x5 for one step", lambda: loss_and_norm(level(), changed(norms(), AT, 5)), "info"),
        Case(
            "then NaN",
            lambda: loss_and_norm(
                put(level(), slice(AT + 4, None), np.nan),
                put(changed(norms(), slice(AT, AT + 4), 10.0 ** np.arange(1, 5)), slice(AT + 4, None), np.nan),
            ),
            "critical",
            words="non-finite",
        ),
        Case(
            "one small layer alone",
            lambda: with_layers(level(), hit(changed(layer_norms(), (slice(None), 3), 0.01), AT, 3, 60)),
            "warning",
            words=LAYERS[3],
        ),
        Case("no loss recorded", lambda: only(grad_norm_preclip=changed(norms(), slice(AT, AT + 3), 30)), "warning"),
    ),
    "loss-spike": (
        Case(
            "one step, +40 %", lambda: only(train_loss=changed(level(), AT, 1.4)), "warning", words="back after 1 step"
        ),
        Case("one step, +20 %, quiet run", lambda: only(train_loss=changed(level(sd=0.005), AT, 1.2)), "info"),
        Case("three steps, +15 %", lambda: only(train_loss=changed(level(), slice(AT, AT + 3), 1.15)), "warning"),
        Case(
            "does not come back",
            lambda: only(train_loss=changed(level(), slice(AT, None), 3.0)),
            "critical",
            words="does not come back",
        ),
        Case(
            "a new level",
            lambda: only(train_loss=changed(level(), slice(AT, None), 1.25)),
            "warning",
            words="new level",
        ),
        Case(
            "ends in NaN",
            lambda: only(train_loss=put(changed(level(), slice(AT, AT + 9), 2.0), slice(AT + 9, None), np.nan)),
            "critical",
        ),
        Case("learning rate to a new height", lambda: restarted(1.3, known_height=False), "warning"),
        Case("blow-up after a restart", lambda: restarted(2.5, known_height=True), "critical"),
    ),
    "slow-divergence": (
        Case(
            "+0.2 % a step",
            lambda: only(train_loss=climbing(0.002), lr=constant_lr()),
            "warning",
            onset=None,
            words="is not back",
        ),
        Case("+0.4 % a step", lambda: only(train_loss=climbing(0.004), lr=constant_lr()), "critical", onset=None),
    ),
}

NEAR_MISSES: dict[str, tuple[Case, ...]] = {
    "non-finite": (
        Case("finite and huge", lambda: only(train_loss=put(level(), AT, 1e30))),
        Case("overflow that the scaler skipped", lambda: scaled([AT], inf=[AT])),
        Case("overflow on the last row, scaler undecided", lambda: scaled([], inf=[STEPS - 1])),
        Case("learnt down to 0", lambda: only(train_loss=np.maximum(0.0, 2.0 - 0.01 * np.arange(STEPS)))),
        Case(
            "about zero from the start",
            lambda: only(train_loss=put(0.1 * np.sin(np.arange(STEPS)), slice(AT, None), 0.0)),
        ),
        Case("two zeros", lambda: only(train_loss=put(level(), slice(STEPS - 2, None), 0.0))),
        Case("halvings far apart", lambda: scaled([60, 120, 180, 240], inf=[60, 120, 180, 240])),
    ),
    "gradient-explosion": (
        Case(
            "x1.8, below the smallest rise",
            lambda: loss_and_norm(level(), changed(norms(sd=0.02), slice(AT, AT + 5), 1.8)),
        ),
        Case(
            "falls thirtyfold at the start",
            lambda: only(grad_norm_preclip=gradient(np.random.default_rng(0), STEPS, fall=30)),
        ),
        Case("grows slowly to x8", lambda: only(grad_norm_preclip=norms() * np.linspace(1, 8, STEPS))),
        Case(
            "burst that the loss does not follow",
            lambda: loss_and_norm(level(), changed(norms(), slice(AT, AT + 8), 4)),
        ),
        Case(
            "rounding-noise layer",
            lambda: with_layers(level(), hit(changed(layer_norms(), (slice(None), 3), 1e-7), AT, 3, 1e3)),
        ),
        Case("all layers together, x8, one step", lambda: with_layers(level(), hit(layer_norms(), AT, slice(None), 8))),
        Case(
            "zeros are steps without a gradient",
            lambda: only(grad_norm_preclip=put(norms(), list(range(AT, AT + 20)), 0.0)),
        ),
        Case(
            "nearly vanished, then a hard batch",
            lambda: only(grad_norm_preclip=changed(norms() * np.exp(-np.arange(STEPS) / 30), AT, 8)),
        ),
    ),
    "loss-spike": (
        Case("+6 % for five steps", lambda: only(train_loss=changed(level(sd=0.001), slice(AT, AT + 5), 1.06))),
        Case("within its own noise", lambda: only(train_loss=changed(level(sd=0.2), AT, 1.8))),
        Case(
            "hard sample at a loss near zero",
            lambda: only(train_loss=put(0.002 + 2 * np.exp(-np.arange(STEPS) / 20), AT, 0.3)),
        ),
        Case("restart of the learning rate", lambda: restarted(1.3, known_height=True)),
        Case("harder data, logged", lambda: moved_data(1.3, "data_stage")),
        Case("fall to a new level", lambda: only(train_loss=changed(level(), slice(AT, None), 0.5))),
        Case("slow climb", lambda: only(train_loss=climbing(0.002))),
        Case("steep fall that flattens", lambda: only(train_loss=2.4 + 3.1 * np.exp(-np.arange(STEPS) / 10))),
    ),
    "slow-divergence": (
        Case("+0.02 % a step", lambda: only(train_loss=climbing(0.0002), lr=constant_lr())),
        Case(
            "a jump, which is loss-spike's",
            lambda: only(train_loss=changed(level(), slice(AT, None), 1.5), lr=constant_lr()),
        ),
        Case("one huge outlier", lambda: only(train_loss=changed(level(), AT, 1e4), lr=constant_lr())),
        Case(
            "hump in warm-up",
            lambda: only(
                train_loss=changed(level(), slice(40, 120), 1 + 0.4 * np.sin(np.linspace(0, np.pi, 80))),
                lr=1e-3 * np.minimum(1, np.arange(1, STEPS + 1) / 80),
            ),
        ),
        Case(
            "climb after a logged change of data",
            lambda: Signals.from_arrays(
                {"train_loss": climbing(0.02, start=AT)[: AT + 12], "lr": constant_lr(AT + 12)},
                events=[Mark("data_stage", AT + 1)],
            ),
        ),
    ),
}

ABSTAINS: dict[str, tuple[Case, ...]] = {
    "non-finite": (
        Case("neither loss nor gradient", lambda: only(lr=constant_lr()), words="train_loss or grad_norm_preclip"),
    ),
    "gradient-explosion": (
        Case("no gradient norm", lambda: only(train_loss=level()), words="grad_norm_preclip not recorded"),
        Case("too few rows", lambda: only(grad_norm_preclip=norms()[:24]), words="24 finite gradient norms"),
    ),
    "loss-spike": (
        Case("no loss", lambda: only(grad_norm_preclip=norms()), words="train_loss not recorded"),
        Case("too few rows", lambda: only(train_loss=level()[:24]), words="24 losses"),
        Case("a loss about zero", lambda: only(train_loss=0.1 * np.sin(np.arange(STEPS))), words="zero or negative"),
    ),
    "slow-divergence": (
        Case("no loss", lambda: only(grad_norm_preclip=norms()), words="train_loss not recorded"),
        Case("too few rows", lambda: only(train_loss=level()[:20]), words="20 losses"),
        Case("a loss about zero", lambda: only(train_loss=0.1 * np.sin(np.arange(STEPS))), words="zero or negative"),
    ),
}
