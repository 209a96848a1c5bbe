"""Cases of non-finite: a NaN or an infinity."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import (
    AT,
    STEPS,
    Case,
    constant_lr,
    hit,
    layer_norms,
    level,
    loss_and_norm,
    norms,
    only,
    put,
    scaled,
    with_layers,
)
from tests.monitor.diagnosis.controls import LAYERS


def overflowing(factor: float) -> Signals:
    """A loss and a gradient that grow by ``factor`` a step from the first one on, and are not finite from the sixth."""
    grown = put(factor ** np.arange(60.0), slice(5, None), np.inf)
    return only(train_loss=grown, grad_norm_preclip=put(grown, slice(5, None), np.nan))


def doubtful(*perplexity: float, first: int = 1, loss: float = 1.5e5, last: float = 1.5e5) -> Signals:
    """Perplexities every hundred steps beside a loss that goes from ``loss`` to ``last``."""
    step = first + 100 * np.arange(len(perplexity))
    return Signals.from_arrays(
        {
            "train_loss": (first + 20 * np.arange(10), np.linspace(loss, last, 10)),
            "val/perplexity": (step, np.array(perplexity)),
        }
    )


FIRES = (
    Case(
        "a perplexity beyond exp, finite before",
        lambda: doubtful(40.0, 30.0, np.inf, np.inf, loss=3.0, last=3.0),
        "warning",
        onset=201,
        words="val/perplexity became +Inf at step 201",
    ),
    Case(
        "a perplexity beyond exp, long after the start",  # OpenNMT/OpenNMT-tf#744
        lambda: doubtful(np.inf, first=435000),
        "warning",
        onset=435000,
    ),
    Case(
        "a part of the loss to the end",
        lambda: only(train_loss=level(), **{"train/box_loss": put(level(), slice(AT, None), np.nan)}),
        "warning",
        words="train/box_loss became NaN",
    ),
    Case(
        "three NaN gradients are all there is, at a scale of 1",
        lambda: only(grad_norm_preclip=np.full(3, np.nan), loss_scale=np.ones(3)),
        "critical",
        onset=1,
    ),
    Case(
        "NaN loss to the end",
        lambda: only(train_loss=put(level(), slice(AT, None), np.nan)),
        "critical",
        words="became NaN",
    ),
    Case(
        "infinite after five steps, each a thousand times as far",
        lambda: overflowing(1e3),
        "critical",
        onset=3,
        words="had been rising since step 3",
    ),
    Case(
        "NaN after five steps like each other",
        lambda: overflowing(1.1),
        "critical",
        onset=6,
        words="became +Inf at step 6 and",
    ),
    Case("one NaN loss", lambda: only(train_loss=put(level(), AT, np.nan)), "warning", words="recovered"),
    Case("infinite loss", lambda: only(train_loss=put(level(), slice(AT, None), -np.inf)), "critical", words="-Inf"),
    Case(
        "NaN gradients to the end",
        lambda: loss_and_norm(level(), put(norms(), slice(AT, None), np.nan)),
        "critical",
        words="Gradient became NaN",
    ),
    Case("gradient norm alone", lambda: only(grad_norm_preclip=put(norms(), slice(AT, None), np.nan)), "critical"),
    Case("one infinite gradient without a scaler", lambda: loss_and_norm(level(), put(norms(), AT, np.inf)), "info"),
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
        "two rows: a loss, then 0 with a NaN gradient",
        lambda: only(train_loss=np.array([80.8, 0.0]), grad_norm_preclip=np.array([np.nan, np.nan])),
        "critical",
        onset=1,
        words="Gradient became NaN",
    ),
    Case(
        "three rows, then 0",
        lambda: only(train_loss=np.r_[2.31, 2.02, 1.84, np.zeros(5)]),
        "critical",
        onset=4,
        words="exactly 0",
    ),
    Case(
        "most columns of a log whose loss has no known name",
        lambda: only(
            **{name: put(level(), slice(AT, STEPS - 1), np.nan) for name in ("D_A", "G_A", "cycle_A")}, D_B=level()
        ),
        "warning",
        words="3 of 4 columns are not finite",
    ),
    Case(
        "a value loss, where no other is known",
        lambda: only(**{"Value function loss": put(level(), slice(AT, None), np.inf)}, reward=level(1)),
        "warning",
        words="Value function loss became +Inf",
    ),
)

NEAR_MISSES = (
    Case("a perplexity that comes down from beyond exp", lambda: doubtful(np.inf, np.inf, 90.0)),
    Case("a perplexity of a sum", lambda: doubtful(np.inf, np.inf, first=5000, last=1e5)),
    Case("a perplexity of a sum, from the start", lambda: doubtful(np.inf, np.inf)),
    Case(
        "a part of an evaluation's loss, as of one without targets",
        lambda: only(train_loss=level(), **{"eval/box_loss": put(level(), slice(AT, None), np.nan)}),
    ),
    Case("finite and huge", lambda: only(train_loss=put(level(), AT, 1e30))),
    Case("overflow that the scaler skipped", lambda: scaled([AT], inf=[AT])),
    Case("overflow on the last row, scaler undecided", lambda: scaled([], inf=[STEPS - 1])),
    Case("learnt down to 0", lambda: only(train_loss=np.maximum(0.0, 2.0 - 0.01 * np.arange(STEPS)))),
    Case(
        "about zero from the start",
        lambda: only(train_loss=put(0.1 * np.sin(np.arange(STEPS)), slice(AT, None), 0.0)),
    ),
    Case("zeros of a policy loss", lambda: only(train_loss=put(level(), slice(AT, None), 0.0), reward=level(1))),
    Case(
        "rounded to 0 after 0.0003", lambda: only(train_loss=np.r_[np.round(np.geomspace(2, 3e-4, 8), 4), np.zeros(8)])
    ),
    Case("two zeros", lambda: only(train_loss=put(level(), slice(STEPS - 2, None), 0.0))),
    Case("halvings far apart", lambda: scaled([60, 120, 180, 240], inf=[60, 120, 180, 240])),
)

ABSTAINS = (
    Case("neither loss nor gradient", lambda: only(lr=constant_lr()), words="neither the loss nor the gradient"),
    Case(
        "rewards before the first episode has ended, and one column of four",
        lambda: only(
            **{f"episode_reward_{end}": np.full(STEPS, np.nan) for end in ("min", "mean", "max")},
            div=put(level(), AT, np.nan),
            **{name: level() for name in ("entropy", "spread", "range")},
        ),
        words="neither the loss nor the gradient",
    ),
)
