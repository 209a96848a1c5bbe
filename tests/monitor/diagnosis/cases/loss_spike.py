"""Cases of loss-spike: the loss jumps."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import (
    AT,
    STEPS,
    Case,
    changed,
    climbing,
    level,
    moved_data,
    norms,
    only,
    put,
    restarted,
)

SIGNED = np.r_[-5.48, -5.35, -5.3, -5.46, -5.55, -5.27, -5.4, -4.72, -5.18, -4.8, -4.85]


def hard_batch(lead: int = 0, input_std: float | None = 36.0) -> Signals:
    """A noisy loss that is 40 % up in one row, some seven deviations; the gradient is up from ``lead`` before."""
    usual = np.random.default_rng(5).normal(36.0, 0.5, STEPS)
    known = {} if input_std is None else {"input_std": put(usual, AT, input_std)}
    return only(
        train_loss=changed(level(sd=0.05), AT, 1.4),
        grad_norm_preclip=changed(norms(), slice(AT - lead, AT + 1), 5.0),
        **known,
    )


def outliers(times: int) -> Signals:
    """One batch of three times the loss every twenty-five steps, so many times up to the one at AT."""
    return only(train_loss=changed(level(), [AT - 25 * number for number in range(times)], 3.0))


def scattered(level_after: float) -> Signals:
    """A loss that scatters by a half from batch to batch: one batch of 200 times as much at AT, and then the level."""
    loss = 2 * np.exp(np.random.default_rng(0).normal(0, 0.5, STEPS))
    return only(train_loss=changed(changed(loss, AT, 200), slice(AT + 1, None), level_after))


FIRES = (
    Case(
        "the second of many rows 10^8 times as high, and not back",
        lambda: only(train_loss=level() * np.r_[1.0, 1e8, np.full(STEPS - 2, 1e6)]),
        "critical",
        onset=2,
        words="is not back",
    ),
    Case(
        "one outlier, and then 15 % more, within the scatter", lambda: scattered(1.15), "warning", words="back after 1"
    ),
    Case("one outlier, and then twice as much", lambda: scattered(2.0), "critical", words="does not come back"),
    Case("the third outlier", lambda: outliers(3), "warning", onset=AT - 49, words="back after 1"),
    Case("one step, +40 %", lambda: only(train_loss=changed(level(), AT, 1.4)), "warning", words="back after 1 step"),
    Case("one step, +20 %, quiet run", lambda: only(train_loss=changed(level(sd=0.005), AT, 1.2)), "info"),
    Case("one hard batch: +40 % and five times the gradient, z of 7", lambda: hard_batch(), "info", words="back after"),
    Case("the same, and the gradient the step before", lambda: hard_batch(lead=1), "warning", words="back after"),
    Case("the same of a constant input", lambda: hard_batch(input_std=0.0), "warning", words="back after"),
    Case("the same, and nothing known of the input", lambda: hard_batch(input_std=None), "warning", words="back after"),
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
    Case(
        "few rows, the last but one 30,000 times as high, then 0",
        lambda: only(train_loss=np.r_[1.29, 1.27, 1.26, 1.28, 1.31, 1.32, 34023.79, 0.0]),
        "critical",
        onset=7,
        words="not back",
    ),
    Case(
        "few rows, one ten times as high",
        lambda: only(train_loss=np.r_[1.3, 1.2, 1.25, 1.1, 12.0, 1.2, 1.1, 1.0]),
        "warning",
        onset=5,
        words="came back",
    ),
    Case(
        "three rows, the last 10^32 times as high",
        lambda: only(train_loss=np.r_[0.11, 0.1, 3.6e32]),
        "critical",
        onset=3,
    ),
    Case(
        "a density's, one row at 40,490 and the first level after it",
        lambda: only(train_loss=np.r_[SIGNED, 40490.18, -3.5, -2.2, -1.7, -1.5, -1.4, -1.3]),
        "critical",
        onset=len(SIGNED) + 1,
        words="not back",
    ),
    Case(
        "a density's, one row at 40,490",
        lambda: only(train_loss=np.r_[SIGNED, 40490.18, SIGNED]),
        "warning",
        onset=len(SIGNED) + 1,
        words="came back",
    ),
)

NEAR_MISSES = (
    Case("the second of many rows 5,000 times as high", lambda: only(train_loss=put(level(), 1, 5e3 * level()[0]))),
    Case("few rows, the last twice as high", lambda: only(train_loss=np.r_[1.3, 1.2, 1.25, 1.1, 1.15, 1.2, 2.4])),
    Case("few rows, a late fall", lambda: only(train_loss=np.r_[9.0, 4.0, 2.0, 1.0, 3.5, 1.0, 0.9])),
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
)

ABSTAINS = (
    Case("no loss", lambda: only(grad_norm_preclip=norms()), words="train_loss not recorded"),
    Case("too few rows", lambda: only(train_loss=level()[:5]), words="5 losses"),
    Case("two rows, a hundred times as high", lambda: only(train_loss=np.r_[0.1, 10.0]), words="losses recorded"),
    Case(
        "a density's that loses all it had won",
        lambda: only(train_loss=np.r_[9.0, 1.0, SIGNED, 8.0, SIGNED]),
        words="zero or negative",
    ),
    Case("a loss about zero", lambda: only(train_loss=0.1 * np.sin(np.arange(STEPS))), words="zero or negative"),
)
