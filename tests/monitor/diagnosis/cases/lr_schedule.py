"""Cases of lr-schedule: what no schedule does."""

from __future__ import annotations

import numpy as np

from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, changed, constant_lr, level, only, put
from tests.monitor.diagnosis.controls import warmup_cosine

FIRES = (
    Case("zero to the end", lambda: only(lr=put(constant_lr(), slice(AT, None), 0.0)), "warning", words="exactly 0"),
    Case("zero from the start", lambda: only(lr=np.zeros(STEPS)), "warning", onset=1, words="from the start"),
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
    Case("warm-up and cosine", lambda: only(lr=warmup_cosine(STEPS, floor=0.0))),
    Case("linear to exactly 0 at the last step", lambda: only(lr=np.linspace(1e-3, 0, STEPS))),
    Case("linear, logged every tenth of the run", lambda: only(lr=np.linspace(1e-3, 0, 11)[:-1])),
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
