"""Cases of slow-divergence: the loss climbs."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, changed, climbing, constant_lr, level, norms, only

FIRES = (
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
    Case("+0.4 % a step", lambda: only(train_loss=climbing(0.004), lr=constant_lr()), "critical", onset=None),
    Case(
        "twelve rows, the last five above all before",
        lambda: only(train_loss=np.r_[2.3, 2.0, 1.8, 1.7, 1.6, 1.55, 1.5, 7.4, 7.3, 7.5, 7.4, 7.4]),
        "critical",
        onset=8,
        words="above all before",
    ),
)

NEAR_MISSES = (
    Case(
        "a policy's loss grows with its returns",
        lambda: only(train_loss=climbing(0.004), **{"rollout/ep_rew_mean": np.arange(STEPS, dtype=float)}),
    ),
    Case("few rows, two high ones at the end", lambda: only(train_loss=np.r_[2.3, 2.0, 1.8, 1.7, 1.6, 7.4, 7.3])),
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
