"""Cases of batch-size: the noise scale against the batch."""

from __future__ import annotations

import numpy as np

from tests.monitor.diagnosis.cases.drawn import Case, level, only


def scale(level: float) -> np.ndarray:
    return level * np.exp(np.random.default_rng(0).normal(0, 0.5, 60))


FIRES = (
    Case("mostly noise", lambda: only(gradient_noise_scale=scale(200)), "info", onset=1, words="far below"),
    Case("hardly any noise", lambda: only(gradient_noise_scale=scale(0.005)), "info", onset=1, words="far above"),
)

NEAR_MISSES = (Case("a few batches", lambda: only(gradient_noise_scale=scale(4))),)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="gradient_noise_scale not recorded"),
    Case("five measurements", lambda: only(gradient_noise_scale=scale(4)[:5]), words="5 noise scales"),
)
