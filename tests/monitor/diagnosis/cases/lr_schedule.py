"""Cases of lr-schedule: what no schedule does."""

from __future__ import annotations

import numpy as np

from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, changed, constant_lr, level, only, put
from tests.monitor.diagnosis.controls import warmup_cosine


def paced(factor: float, curve: str = "cosine", times: float = 1.0) -> np.ndarray:
    """A schedule whose clock runs ``factor`` times as fast from row AT on; the rate is ``times`` as high then."""
    clock = np.minimum(np.where(np.arange(STEPS) < AT, np.arange(STEPS), AT + factor * (np.arange(STEPS) - AT)), 600)
    shape = {"cosine": 0.5 * (1 + np.cos(np.pi * clock / 600)), "linear": 1 - clock / 601, "exponential": 0.99**clock}
    return 1e-3 * (0.1 + 0.9 * shape[curve]) * np.where(np.arange(STEPS) < AT, 1.0, times)


def a_tenth_every(rows: int) -> np.ndarray:
    return 0.05 * 0.1 ** (np.arange(STEPS) // rows)


FIRES = (
    Case("a tenth every 20 batches", lambda: only(lr=a_tenth_every(20)), "warning", onset=101, words="ten-thousandth"),
    Case("cosine, stepped twice", lambda: only(lr=paced(2)), "warning", onset=AT + 2, words="2 times as fast"),
    Case("exponential, by four processes", lambda: only(lr=paced(4, "exponential")), "warning", onset=AT + 2),
    Case("a straight line, twice as steep", lambda: only(lr=paced(2, "linear")), "info", onset=AT + 2),
    Case("zero to the end", lambda: only(lr=put(constant_lr(), slice(AT, None), 0.0)), "warning", words="exactly 0"),
    Case(
        "zero from the start", lambda: only(lr=np.zeros(STEPS)), "warning", onset=1, words="exactly 0 from the start on"
    ),
    Case(
        "zero while every step is skipped",  # tloen/alpaca-lora#418
        lambda: only(lr=np.r_[np.zeros(14), 3e-6, 3e-6, 1.2e-5, 4.2e-5, 7.2e-5, 1.02e-4]),
        "warning",
        onset=1,
        words="exactly 0 from the start until step 14: 14 rows",
    ),
    Case(
        "x30 in one step", lambda: only(lr=changed(constant_lr(), slice(AT, None), 30)), "warning", words="jumped x30"
    ),
    Case(
        "a thousandth at once",
        lambda: only(lr=changed(constant_lr(), slice(AT, None), 1e-3)),
        "warning",
        words="by a factor of 1e+03",
    ),
)


def one_cycle() -> np.ndarray:
    up, down = np.linspace(1e-5, 1e-2, 100), np.geomspace(1e-2, 1e-7, 200)
    return np.concatenate([up, down])


NEAR_MISSES = (
    Case("so small in the last two fifths alone", lambda: only(lr=a_tenth_every(STEPS * 6 // 50))),
    Case("so small for long, and high again", lambda: only(lr=put(a_tenth_every(20), slice(-5, None), 0.05))),
    Case("warm-up and cosine", lambda: only(lr=warmup_cosine(STEPS, floor=0.0))),
    Case("linear to exactly 0 at the last step", lambda: only(lr=np.linspace(1e-3, 0, STEPS))),
    Case("linear, logged every tenth of the run", lambda: only(lr=np.linspace(1e-3, 0, 11)[:-1])),
    Case("cosine, at 2.4 times its pace", lambda: only(lr=paced(2.4))),
    Case("cosine, stepped twice after a leap", lambda: only(lr=paced(2, times=0.8))),
    Case("cosine, logged to three digits", lambda: only(lr=np.round(paced(2), 6))),
    Case("one cycle", lambda: only(lr=one_cycle())),
    Case("zero for the first rows", lambda: only(lr=put(warmup_cosine(STEPS), slice(0, 3), 0.0))),
    Case("step decays", lambda: only(lr=1e-1 * 0.1 ** (np.arange(STEPS) // 100))),
    Case("warm restarts", lambda: only(lr=1e-3 * (1e-3 + 0.5 * (1 + np.cos(np.pi * (np.arange(STEPS) % 50) / 50))))),
    Case("x8 to a new height", lambda: only(lr=changed(constant_lr(), slice(AT, None), 8))),
    Case("a warm-up that doubles", lambda: only(lr=1e-6 * 2.0 ** np.minimum(np.arange(STEPS), 10))),
)

ABSTAINS = (
    Case("no learning rate", lambda: only(train_loss=level()), words="lr not recorded"),
    Case("three rows", lambda: only(lr=constant_lr(3)), words="3 learning rates"),
)
