"""Cases of overfitting: validation rises while training falls."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import Case

EPOCH = 25
EVALUATIONS = 12
BEST = 5
"""Row of the best evaluation in the cases that fire."""


def run(val: np.ndarray, train_end: float = 0.2, **more: np.ndarray) -> Signals:
    """A training loss that falls from 2 to ``train_end`` in a straight line of logs, and evaluations every epoch."""
    steps = EPOCH * len(val)
    rng = np.random.default_rng(0)
    train = np.exp(np.linspace(np.log(2.0), np.log(train_end), steps)) * np.exp(rng.normal(0, 0.05, steps))
    at = EPOCH * np.arange(1, len(val) + 1)
    series = {"train_loss": (np.arange(1, steps + 1), train), "val_loss": (at, val)}
    return Signals.from_arrays({**series, **{name: (at, value) for name, value in more.items()}})


def valley(rise: float, *, sd: float = 0.0) -> np.ndarray:
    """Falls to 1 at evaluation BEST, then rises to ``1 + rise`` at the end."""
    row = np.arange(EVALUATIONS)
    value = np.where(row <= BEST, 1.0 + 0.15 * (BEST - row), 1.0 + rise * (row - BEST) / (EVALUATIONS - 1 - BEST))
    return value * np.exp(np.random.default_rng(3).normal(0, sd, EVALUATIONS))


FTC_UNET = np.r_[
    0.01359,
    0.01299,
    0.01372,
    0.0146,
    0.01438,
    0.02502,
    0.01625,
    0.01472,
    0.00893,
    0.04843,
    0.01181,
    0.02004,
    0.0206,
    0.01658,
    0.02307,
    0.01902,
    0.0254,
    0.02044,
    0.02218,
    0.02399,
    0.02066,
    0.03573,
    0.01798,
    0.02589,
    0.02375,
    0.03395,
    0.02813,
    0.0332,
    0.02447,
    0.02839,
    0.04821,
    0.02798,
]

GROWW = np.array([0.7286, 0.4989, 0.3873, 0.5213, 0.3333, 0.4409, 5.0336, 7.1756, 1.6807, 1.2049])

FIRES = (
    Case(
        "four evaluations above all before, whatever they scatter",  # 065010-AmanMalhi/groww-sentiment-analyser
        lambda: run(GROWW),
        "warning",
        onset=EPOCH * 5,
    ),
    Case(
        "evaluations that scatter by a third and double",  # DexterGomez/ftc-unet training_history.csv
        lambda: run(FTC_UNET),
        "warning",
        onset=EPOCH * 9,
    ),
    Case("rises by half", lambda: run(valley(0.5)), "warning", onset=EPOCH * (BEST + 1), words="Validation loss rose"),
    Case(
        "never below a blind guess",
        lambda: run(np.array([6.2, 6.9]), train_end=0.05, log_classes=np.full(2, 5.55)),
        "warning",
        onset=EPOCH,
        words="blind guess",
    ),
    Case(
        "at a blind guess, but for what it knows of the classes' shares",
        lambda: run(np.array([5.5, 5.52]), train_end=0.05, log_classes=np.full(2, 5.55)),
        "warning",
        onset=EPOCH,
        words="blind guess",
    ),
    Case(
        "six evaluations, each above the one before, by 5 % in all",  # FuTao0715/multimodal-movie-recommender
        lambda: run(np.array([1.0736, 0.8281, 0.7494, 0.7357, 0.7358, 0.7396, 0.7448, 0.7500, 0.7595, 0.7695])),
        "info",
        onset=EPOCH * 4,
    ),
    Case("rises by 8 %", lambda: run(valley(0.08)), "info", onset=EPOCH * (BEST + 1)),
    Case(
        "accuracy still improves",
        lambda: run(valley(0.5), **{"eval/accuracy": np.linspace(0.5, 0.9, EVALUATIONS)}),
        "info",
        onset=EPOCH * (BEST + 1),
        words="over-confidence",
    ),
    Case(
        "accuracy rises by a rounding",
        lambda: run(valley(0.5), val_acc=np.linspace(0.915, 0.916, EVALUATIONS)),
        "warning",
        onset=EPOCH * (BEST + 1),
    ),
    Case(
        "a training score improves, which says nothing",
        lambda: run(valley(0.5), **{"train/accuracy": np.linspace(0.5, 0.9, EVALUATIONS)}),
        "warning",
        onset=EPOCH * (BEST + 1),
    ),
    Case(
        "three evaluations, the last 40 % higher", lambda: run(np.array([0.318, 0.320, 0.443])), "warning", onset=EPOCH
    ),
    Case(
        "learnt by heart: validation never falls", lambda: run(np.full(8, 0.7), train_end=0.02), "warning", onset=EPOCH
    ),
)

NEAR_MISSES = (
    Case("three evaluations above all before, which scatter", lambda: run(GROWW[[0, 1, 2, 3, 4, 5, 6, 8, 9]])),
    Case("back from above all before", lambda: run(np.r_[GROWW, 0.3, 0.35])),
    Case("scatter by a third around one level", lambda: run(np.exp(np.random.default_rng(3).normal(0, 0.35, 32)))),
    Case("three evaluations, the last 10 % higher", lambda: run(np.array([0.50, 0.51, 0.55]))),
    Case("never falls, and training does not learn it either", lambda: run(np.full(8, 0.7), train_end=1.5)),
    Case(
        "above a blind guess at first",
        lambda: run(np.array([6.2, 5.0, 4.0, 3.9]), train_end=1.0, log_classes=np.full(4, 5.55)),
    ),
    Case("both rise", lambda: run(valley(0.5), train_end=4.0)),
    Case("a new best after a rise", lambda: run(np.concatenate([valley(0.5), [0.9, 0.8, 0.7]]))),
    Case("flat with scatter", lambda: run(np.exp(np.random.default_rng(1).normal(0, 0.1, 40)))),
    Case("two evaluations a tenth above the best", lambda: run(np.array([1.5, 1.2, 1.0, 1.1, 1.12]))),
    Case("still falling", lambda: run(np.linspace(2, 1, EVALUATIONS))),
)

ABSTAINS = (
    Case("no validation", lambda: Signals.from_arrays({"train_loss": np.ones(50)}), words="val_loss not recorded"),
    Case("two evaluations", lambda: run(np.array([1.0, 1.2])), words="2 evaluations"),
    Case("a negative loss", lambda: run(valley(0.5) - 1.2), words="zero or negative"),
)
