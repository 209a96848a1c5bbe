"""Small drawn runs that the rules' cases are made of, and what a case is."""

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


def scaled(falls: list[int], *, inf: list[int], start: float = 65536.0) -> Signals:
    """fp16: the scale halves after each row of ``falls``; the gradient is infinite at the rows of ``inf``."""
    scale = np.full(STEPS, start)
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
