"""Drawn mishaps on top of healthy curves: replays of published logs and textbook courses, each with its onset.

The published numbers are BLOOM-176B's iterations 31214 to 31219 and the peak of the 104B run (BigScience chronicles).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.controls import LAYERS, falling, gradient, noise, spread, warmup_cosine

BLOOM_GRADIENT = (0.24, 0.95, 2.4, 15.9, 145.0, 960.0)
BLOOM_LOSS = (2.199, 2.220, 2.595, 2.242, 2.345, 5.098)


@dataclass(frozen=True, slots=True)
class Mishap:
    """One broken run and the truth about it."""

    name: str
    signals: Signals
    onset: int
    """Step at which the mishap began."""
    rule: str
    """The rule that must see it."""
    within: int
    """Steps after the onset in which a live alarm must come."""
    causes: tuple[str, ...] = ()
    """Causes any of which is right."""
    layer: str | None = None


def _signals(
    loss: np.ndarray, norm: np.ndarray | None, lr: np.ndarray | None, layers: np.ndarray | None, clip: float = 1.0
) -> Signals:
    series: dict[str, np.ndarray] = {"train_loss": loss}
    if norm is not None:
        with np.errstate(invalid="ignore"):
            series |= {"grad_norm_preclip": norm, "clip_coef": np.minimum(1.0, clip / norm)}
    if lr is not None:
        series["lr"] = lr
    matrices = {"grad_norm_preclip": (LAYERS, layers)} if layers is not None else None
    return Signals.from_arrays(series, layers=matrices)


def _base(rng: np.random.Generator, steps: int, sd: float = 0.02) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loss, gradient norm and learning rate of a healthy language model."""
    return falling(steps) * np.exp(noise(rng, steps, sd)), gradient(rng, steps), warmup_cosine(steps)


def bloom(rng: np.random.Generator, steps: int, onset: int) -> Mishap:
    """The published ratios, then a decay over thirty steps as in the chronicles."""
    loss, norm, lr = _base(rng, steps, 0.01)
    length = len(BLOOM_LOSS)
    at = slice(onset - 2, onset - 2 + length)  # the first pair of numbers is the last healthy step
    norm[at] = norm[at] * np.array(BLOOM_GRADIENT) / BLOOM_GRADIENT[0]
    loss[at] = loss[at] * np.array(BLOOM_LOSS) / BLOOM_LOSS[0]
    after = np.arange(30)
    tail = slice(at.stop, at.stop + 30)
    loss[tail] *= 1 + 1.3 * np.exp(-after / 8)
    norm[tail] *= 1 + 30 * np.exp(-after / 4)
    layers = spread(rng, norm)
    return Mishap("bloom-176b", _signals(loss, norm, lr, layers), onset, "gradient-explosion", 3)


def bloom_104b(rng: np.random.Generator, steps: int, onset: int) -> Mishap:
    """Gradient one step ahead, loss at 2.5 times its level, hundreds of steps until it is back."""
    loss, norm, lr = _base(rng, steps, 0.015)
    norm[onset - 1] *= 12
    after = np.arange(steps - onset)
    loss[onset:] *= 1 + 1.5 * np.exp(-after / 60)
    norm[onset:] *= 1 + 20 * np.exp(-after / 10)
    return Mishap("bloom-104b", _signals(loss, norm, lr, spread(rng, norm)), onset, "loss-spike", 3)


def one_batch(rng: np.random.Generator, steps: int, onset: int) -> Mishap:
    loss, norm, lr = _base(rng, steps)
    loss[onset - 1] *= 1.4
    norm[onset - 1] *= 4
    return Mishap("+40 % one step", _signals(loss, norm, lr, spread(rng, norm)), onset, "loss-spike", 0, ("bad-batch",))


def one_batch_loss_only(rng: np.random.Generator, steps: int, onset: int) -> Mishap:
    loss, _, _ = _base(rng, steps)
    loss[onset - 1] *= 1.4
    return Mishap("+40 % one step, loss only", _signals(loss, None, None, None), onset, "loss-spike", 0)


def five_steps(rng: np.random.Generator, steps: int, onset: int) -> Mishap:
    loss, norm, lr = _base(rng, steps)
    loss[onset - 1 : onset + 4] *= 1.15
    return Mishap("+15 % five steps", _signals(loss, norm, lr, None), onset, "loss-spike", 5)


def creeping(rng: np.random.Generator, steps: int, onset: int) -> Mishap:
    loss, norm, lr = _base(rng, steps)
    loss[onset - 1 :] = loss[onset - 1 :] * 1.002 ** np.arange(steps - onset + 1)
    return Mishap(
        "+0.2 % a step", _signals(loss, norm, lr, None), onset, "slow-divergence", 100, ("lr-too-high", "data-change")
    )


def nan_loss(rng: np.random.Generator, steps: int, onset: int) -> Mishap:
    loss, norm, lr = _base(rng, steps)
    loss[onset - 1 :] = np.nan
    norm[onset - 1 :] = np.nan
    layers = spread(rng, gradient(rng, steps))
    layers[onset - 1 :] = np.nan
    return Mishap(
        "NaN", _signals(loss, norm, lr, layers), onset, "non-finite", 0, ("non-finite-input", "undefined-operation")
    )


def noisy_jump(rng: np.random.Generator, steps: int, onset: int) -> Mishap:
    """A convolutional network with noisy losses; one step at six times the level."""
    t = np.arange(steps)
    loss = (0.4 + 1.9 * np.exp(-t / 100)) * np.exp(noise(rng, steps, 0.15))
    loss[onset - 1] *= 6
    norm = gradient(rng, steps, sd=0.25)
    norm[onset - 1] *= 8
    return Mishap(
        "x6 step, noisy CNN", _signals(loss, norm, np.full(steps, 0.1), None), onset, "loss-spike", 0, ("bad-batch",)
    )


def lr_times_30(rng: np.random.Generator, steps: int, onset: int) -> Mishap:
    loss, norm, lr = _base(rng, steps)
    lr[onset - 1 :] *= 30
    after = np.arange(steps - onset)
    loss[onset:] = loss[onset:] * (1 + 1.2 * (1 - np.exp(-after / 8)))
    norm[onset:] = norm[onset:] * (1 + 6 * np.exp(-after / 20))
    return Mishap("lr x30", _signals(loss, norm, lr, spread(rng, norm)), onset, "loss-spike", 20, ("lr-too-high",))


def corrupted_layer(rng: np.random.Generator, steps: int, onset: int) -> Mishap:
    """One tensor's gradient is fifty times too large in one step; the loss does not notice."""
    loss, norm, lr = _base(rng, steps)
    layers = spread(rng, norm)
    hit = int(rng.integers(len(LAYERS)))
    layers[onset - 1, hit] *= 50
    norm = np.sqrt((layers.astype(float) ** 2).sum(axis=1))
    signals = _signals(loss, norm, lr, layers)
    return Mishap("one layer x50", signals, onset, "gradient-explosion", 0, ("corrupted-gradient",), LAYERS[hit])


def labels_shuffled(rng: np.random.Generator, steps: int, onset: int) -> Mishap:
    t = np.arange(steps)
    loss = (0.5 + 1.8 * np.exp(-t / 80)) * np.exp(noise(rng, steps, 0.1))
    after = np.arange(steps - onset + 1)
    loss[onset - 1 :] = (2.3 + 1.5 * np.exp(-after / 10)) * np.exp(noise(rng, steps - onset + 1, 0.05))
    norm = gradient(rng, steps, sd=0.2)
    norm[onset - 1 :] *= 3
    lr = np.full(steps, 1e-3)
    return Mishap(
        "labels shuffled", _signals(loss, norm, lr, None), onset, "loss-spike", 5, ("data-change", "bad-batch")
    )


def nan_in_layers(rng: np.random.Generator, steps: int, onset: int) -> Mishap:
    """The backward pass turns NaN at one layer: it and everything nearer the input is hit, the loss a step later."""
    loss, norm, lr = _base(rng, steps)
    layers = spread(rng, norm)
    hit = int(rng.integers(2, len(LAYERS) - 2))
    layers[onset - 1 :, : hit + 1] = np.nan
    layers[onset:] = np.nan
    norm[onset - 1 :] = np.nan
    loss[onset:] = np.nan
    signals = _signals(loss, norm, lr, layers)
    return Mishap("NaN in backward", signals, onset, "non-finite", 0, ("undefined-operation",), LAYERS[hit])


def warmup_blow_up(rng: np.random.Generator, steps: int, onset: int) -> Mishap:
    """The learning rate is too high: what was learnt in warm-up is lost again, over a hundred steps."""
    t = np.arange(steps)
    lr = warmup_cosine(steps, peak=3e-2, warmup=onset)
    loss = falling(steps, scale=30) * np.exp(noise(rng, steps, 0.02))
    loss = np.where(t >= onset - 1, loss + (np.log(256) + 0.3 - loss) * (1 - np.exp(-(t - onset + 1) / 80)), loss)
    norm = gradient(rng, steps) * np.where(t >= onset - 1, 4.0, 1.0)
    return Mishap(
        "blow-up in warm-up",
        _signals(loss, norm, lr, None),
        onset,
        "slow-divergence",
        100,
        ("lr-too-high", "data-change"),
    )


MISHAPS: tuple[Callable[[np.random.Generator, int, int], Mishap], ...] = (
    bloom, bloom_104b, one_batch, one_batch_loss_only, five_steps, creeping, nan_loss, noisy_jump, lr_times_30,
    corrupted_layer, labels_shuffled, nan_in_layers, warmup_blow_up,
)  # fmt: skip
