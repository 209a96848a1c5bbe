"""Cases of loss-on-probabilities: a softmax in front of the loss's own."""

from __future__ import annotations

import math

import numpy as np

from tests.monitor.diagnosis.cases.drawn import STEPS, Case, level, only

FLOOR = math.log(math.e + 9) - 1


def run(lowest: float, share: float = 1.0, first: float = math.log(10)) -> dict[str, np.ndarray]:
    loss = lowest + (first - lowest) * np.exp(-np.arange(STEPS) / 60)
    return {
        "train_loss": loss * np.exp(np.random.default_rng(0).normal(0, 0.003, STEPS)),
        "output_softmax_share": np.full(STEPS, share),
        "log_classes": np.full(STEPS, math.log(10)),
    }


def over_batch(share: float, along: float = 0.0) -> dict[str, np.ndarray]:
    return {**run(0.2, share=along), "output_batch_softmax_share": np.full(STEPS, share)}


def of_sigmoid(twice: bool, low: float = 0.0) -> dict[str, np.ndarray]:
    """One in ten is to be 1: outputs from a mean of 0.5 to what is best, and binary cross-entropy of them as logits, or
    as they are."""
    mean = (0.02 if twice else 0.1) + 0.4 * np.exp(-np.arange(STEPS) / 60)
    loss = np.log1p(np.exp(mean)) - 0.1 * mean if twice else -0.1 * np.log(mean) - 0.9 * np.log(1 - mean)
    return {"train_loss": loss, "output_mean": mean, "output_min": np.full(STEPS, low), "output_max": np.ones(STEPS)}


FIRES = (
    Case("stays above the floor", lambda: only(**run(FLOOR * 1.02)), "warning", onset=1, words="softmax already"),
    Case("columns sum to one", lambda: only(**over_batch(1.0)), "warning", onset=1, words="over the samples"),
    Case("two sigmoids", lambda: only(**of_sigmoid(twice=True)), "warning", onset=1, words="another sigmoid"),
)

NEAR_MISSES = (
    Case("far below the floor: the logarithm is taken", lambda: only(**run(0.2))),
    Case("half of the columns sum to one", lambda: only(**over_batch(0.5))),
    Case("rows and columns sum to one", lambda: only(**over_batch(1.0, along=1.0))),
    Case("one sigmoid", lambda: only(**of_sigmoid(twice=False), output_softmax_share=np.zeros(STEPS))),
    Case(
        "now and then below zero",
        lambda: only(**of_sigmoid(twice=True, low=-0.01), output_softmax_share=np.zeros(STEPS)),
    ),
    Case("half of the rows sum to one", lambda: only(**run(FLOOR * 1.02, share=0.5))),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="output_softmax_share or output_mean"),
    Case(
        "classes not known", lambda: only(**{k: v for k, v in run(1.6).items() if k != "log_classes"}), words="classes"
    ),
    Case("a loss above the guess", lambda: only(**run(5.0, first=6.0)), words="above that of a uniform guess"),
)
