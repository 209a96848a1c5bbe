"""Cases of slow-divergence: the loss climbs."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, changed, climbing, constant_lr, level, norms, only

WHISPER = np.r_[
    0.8328,
    0.4866,
    0.1645,
    0.121,
    0.1176,
    0.1345,
    0.1333,
    0.1447,
    0.1494,
    0.1673,
    0.1712,
    0.1947,
    0.1838,
    0.2139,
    0.2133,
    0.2279,
    0.2838,
    0.273,
    0.2982,
    0.2967,
    0.3135,
    0.3063,
    0.3273,
    0.3039,
    0.312,
    0.3008,
    0.3083,
    0.3116,
    0.301,
    0.306,
]
"""ByErenOzer/Whisper_Finetune trainer_state.json: every 25 steps, the learning rate rising to 1e-4 up to step 500."""
LOST_FOR_EPOCHS = np.r_[
    np.linspace(0.6937, 0.3208, 83), 0.3179, 0.3106, 0.3112, 0.2991, 0.2978, 0.2963, 0.2969, 0.2926, 0.2911, 0.2789,
    0.2832, 0.4288, 0.4112, 0.408, 0.4067, 0.4068, 0.4084, 0.4065, 0.4061, 0.4052, 0.4046, 0.4041, 0.4072, 0.4057,
    0.4044, 0.282, 0.2724, 0.2758, 0.2637, 0.2629, 0.2612, 0.2631, 0.2475, 0.2503, 0.2518,
]  # fmt: skip
"""AmanPriyanshu/XA1-CNN progress.csv: an epoch a row, the first 83 drawn as a line."""

SCATTERED = np.r_[0.696, 0.598, 0.520, 0.626, 0.638, 0.605, 0.813, 0.758, 0.833, 0.850, 0.884]
"""Ej-zhou/climate_ training_history.csv: an epoch a row."""


def sparse(loss: np.ndarray, every: int = 25, **more: np.ndarray) -> Signals:
    """A run whose log has a row every so many steps."""
    step = np.arange(1, len(loss) + 1) * every
    return Signals.from_arrays({"train_loss": (step, loss), **{name: (step, value) for name, value in more.items()}})


def in_the_middle(loss: np.ndarray) -> Signals:
    """An excerpt that begins late in a training."""
    return Signals.from_arrays({"train_loss": (np.arange(408, 408 + len(loss)), loss)})


def in_turn(*events: Mark) -> Signals:
    """A climb of 1 % a step; with an event ``objectives``, of one of several losses that are minimised in turn."""
    return Signals.from_arrays({"train_loss": climbing(0.01)}, events=events)


FIRES = (
    Case("the only loss that is minimised climbs", in_turn, "critical", onset=AT - 61),
    Case(
        "one row, then seven thousands of times as high, late in a training",  # tensorflow/models#8423
        lambda: in_the_middle(np.r_[0.1442, 25237.9, 75835.3, 28575.2, 134869.9, 437442.4, 212268.5, 1216893.1]),
        "critical",
        onset=409,
        words="above all before",
    ),
    Case(
        "three rows far above the best, below the start",  # paiml/entrenar#274
        lambda: only(train_loss=np.r_[15.5, 13.0, 3.8, 2.39, 1.43, 5.82, 7.05, 10.03]),
        "critical",
        onset=6,
        words="far above the best",
    ),
    Case(
        "a row every 25 steps, climbing as the learning rate rises",
        lambda: sparse(WHISPER, lr=np.minimum(np.arange(1, 31) / 20, 1) * 1e-4),
        "critical",
        onset=None,
        words="is not back",
    ),
    Case(
        "fourteen epochs at what was lost",
        lambda: sparse(LOST_FOR_EPOCHS, every=1, val_loss=LOST_FOR_EPOCHS),
        "warning",
        onset=None,
        words="was back after",
    ),
    Case(
        "two rows, then six far above them",
        lambda: only(train_loss=np.r_[1.59, 1.41, 3.32, 6.44, 5.48, 4.86, 4.87, 4.6]),
        "critical",
        onset=3,
        words="above all before",
    ),
    Case(
        "+0.2 % a step",
        lambda: only(train_loss=climbing(0.002), lr=constant_lr()),
        "warning",
        onset=None,
        words="is not back",
    ),
    Case(
        "hump from warm-up on that is never over",
        lambda: only(
            train_loss=level() * np.interp(np.arange(STEPS), [45, 150], [1.0, 1.5]),
            lr=1e-3 * np.minimum(1, np.arange(1, STEPS + 1) / 25),
        ),
        "warning",
        onset=None,
    ),
    Case("+0.4 % a step", lambda: only(train_loss=climbing(0.004), lr=constant_lr()), "critical", onset=None),
    Case(
        "twelve rows, the last five above all before",
        lambda: only(train_loss=np.r_[2.3, 2.0, 1.8, 1.7, 1.6, 1.55, 1.5, 7.4, 7.3, 7.5, 7.4, 7.4]),
        "critical",
        onset=8,
        words="above all before",
    ),
    Case(
        "few rows that scatter, and at the end all is lost",
        lambda: only(train_loss=SCATTERED),
        "warning",
        onset=4,
        words="above where it began",
    ),
)

NEAR_MISSES = (
    Case("climbs while another loss is minimised in turn, as a generator's", lambda: in_turn(Mark("objectives", 1))),
    Case("the first row of all is low", lambda: only(train_loss=np.r_[0.2, 2.4, 2.3, 2.2, 2.2, 2.1, 2.1, 2.0])),
    Case("one loss is exactly 0", lambda: only(train_loss=np.r_[1.0, 0.9, 0.95, 0.8, 0.0, 0.9, 0.8, 0.85, 0.7])),
    Case(
        "a lucky batch is the lowest",
        lambda: only(train_loss=np.r_[0.53, 0.73, 0.57, 0.67, 0.2, 0.67, 0.5, 0.59, 0.64]),
    ),
    Case(
        "epochs with a wavy level",
        lambda: sparse(2.0 + 0.15 * np.sin(np.arange(60) / 5), every=1, val_loss=np.linspace(2.1, 2.0, 60)),
    ),
    Case(
        "a policy's loss grows with its returns",
        lambda: only(train_loss=climbing(0.004), **{"rollout/ep_rew_mean": np.arange(STEPS, dtype=float)}),
    ),
    Case("few rows, two high ones at the end", lambda: only(train_loss=np.r_[2.3, 2.0, 1.8, 1.7, 1.6, 7.4, 7.3])),
    Case("few rows that scatter upward, not to the start", lambda: only(train_loss=np.r_[1.4, SCATTERED])),
    Case(
        "few rows that scatter upward in a warm-up", lambda: only(train_loss=SCATTERED, lr=1e-5 * np.arange(1.0, 12.0))
    ),
    Case("few rows, noisy", lambda: only(train_loss=np.random.default_rng(0).gamma(3.0, 0.5, 18))),
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
        "hump from warm-up on that is over late",
        lambda: only(
            train_loss=changed(level(), slice(60, 300), 1 + 0.5 * np.sin(np.linspace(0, np.pi, 240))),
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
)

ABSTAINS = (
    Case("no loss", lambda: only(grad_norm_preclip=norms()), words="train_loss not recorded"),
    Case("too few rows", lambda: only(train_loss=level()[:5]), words="5 losses"),
    Case("a loss about zero", lambda: only(train_loss=0.1 * np.sin(np.arange(STEPS))), words="zero or negative"),
)
