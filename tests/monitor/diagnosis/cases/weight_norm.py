"""Cases of weight-norm: shrinking and growing without bound."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from monitor.signals import LayerMatrix
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, level, only
from tests.monitor.diagnosis.controls import LAYERS

EVERY = 20


def measured(rate: float, layer: int | None = None, start: int = AT) -> Signals:
    """Norms every 20 steps that change by ``rate`` a step from step ``start`` on, in one layer or in all."""
    step = np.arange(EVERY, STEPS + 1, EVERY)
    value = np.ones((len(step), len(LAYERS)))
    moves = slice(None) if layer is None else layer
    value[:, moves] *= np.exp(rate * np.maximum(0, step - start)).reshape(-1, *([1] if layer is None else []))
    series = {"train_loss": level(), "weight_norm": (step, np.sqrt((value**2).sum(axis=1)))}
    matrix = LayerMatrix("weight_norm", step, LAYERS, value.astype(np.float32), np.ones(value.shape, bool))
    return Signals.from_arrays(series, layers={"weight_norm": matrix})


def growing(final: float) -> np.ndarray:
    """As healthy small models: like the root of the step."""
    return 20 + (final - 20) * np.sqrt(np.arange(1, STEPS + 1) / STEPS)


def turned(pace: float) -> Signals:
    """Weights that grow by a tenth in a hundred steps, and from AT on by the share ``pace`` a step."""
    t = np.arange(STEPS)
    return only(weight_norm=5 * np.exp(np.cumsum(np.where(t < AT, 0.001, pace))))


FIRES = (
    Case("2 % less each step", lambda: measured(-0.02), "warning", words="shrank"),
    Case("2 % more each step", lambda: measured(0.02), "warning", words="grew"),
    Case("grows and then loses an eighth in 100 steps", lambda: turned(-0.0014), "warning", onset=None, words="shrank"),
    Case("one layer grows", lambda: measured(0.06, layer=5), "warning", onset=None, words="grew"),
)


def measured_each_20(norm: np.ndarray, **more: np.ndarray) -> Signals:
    step = np.arange(EVERY, STEPS + 1, EVERY)
    return Signals.from_arrays({"train_loss": level(), "weight_norm": (step, norm[step - 1]), **more})


def in_one_direction(steps: int, power: float = 1.0) -> np.ndarray:
    """Random first weights of norm 1, and beside them a straight line, or this power of one, as long after so many."""
    return np.sqrt(1 + (np.arange(1, STEPS + 1) / steps) ** (2 * power))


def measured_densely_at_first(norm: np.ndarray) -> Signals:
    """In each of the first ten steps, and in every 20th, as the monitor does."""
    step = np.concatenate([np.arange(1, 11), np.arange(20, STEPS, 20)])
    return Signals.from_arrays({"train_loss": level(), "weight_norm": (step, norm[step - 1])})


def in_warmup() -> Signals:
    """Grows by lr x 1 a step while the learning rate rises to 0.02, then ever more slowly."""
    t = np.arange(STEPS)
    lr = np.where(t < 150, 0.02 * (t + 1) / 150, 0.02)
    pace = np.where(t < 150, lr, 0.02 * np.exp(-(t - 150) / 20))
    return measured_each_20(5 * np.exp(np.cumsum(pace)), lr=lr)


def in_a_burst(fastest: float, at: int, width: int) -> Signals:
    """As classifiers of digits: fastest just after the warm-up, by a share ``fastest`` a step."""
    t = np.arange(STEPS)
    pace = fastest * np.exp(-0.5 * ((t - at) / width) ** 2)
    return measured_each_20(5 * np.exp(np.cumsum(pace)), lr=np.minimum(1, (t + 1) / 50))


def thawed() -> Signals:
    """Growth by 0.8 % a step that slows down, and a second tensor counted from step AT on, three times as large."""
    step = np.arange(EVERY, STEPS + 1, EVERY)
    head = np.exp(np.cumsum(np.full(STEPS, 0.008) * np.linspace(1, 0.4, STEPS)))[step - 1]
    value = np.stack([head, np.full(len(step), 3 * head[step < AT][-1])], axis=1)
    present = np.stack([step > 0, step >= AT], axis=1)
    matrix = LayerMatrix("weight_norm", step, ("head", "trunk"), value.astype(np.float32), present)
    series = {"train_loss": level(), "weight_norm": (step, np.sqrt((value**2 * present).sum(axis=1)))}
    return Signals.from_arrays(series, layers={"weight_norm": matrix})


NEAR_MISSES = (
    Case("a second tensor is thawed", thawed),
    Case("grows and then loses a tenth in 200 steps", lambda: turned(-0.0005)),
    Case("grows and then stands", lambda: turned(0.0)),
    Case("doubles in a hundred steps and settles", lambda: in_a_burst(0.009, 70, 35)),
    Case("grows by two thirds in a hundred steps and settles", lambda: in_a_burst(0.0058, 95, 60)),
    Case("grows faster and faster in a warm-up", in_warmup),
    Case("learns in one direction beside its first weights", lambda: measured_each_20(in_one_direction(60))),
    Case("learns so, and ever faster at first", lambda: measured_densely_at_first(in_one_direction(60, 1.3))),
    Case("learns so, seen from its first step on", lambda: measured_densely_at_first(in_one_direction(60))),
    Case("doubles in 300 steps, more and more slowly", lambda: only(weight_norm=growing(40))),
    Case("settles a fifth lower", lambda: only(weight_norm=20 - 4 * (1 - np.exp(-np.arange(STEPS) / 50)))),
    Case("0.2 % more each step", lambda: measured(0.002, start=0)),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="weight_norm not recorded"),
    Case("five measurements", lambda: measured(0.02).until(100), words="5 weight norms"),
)
