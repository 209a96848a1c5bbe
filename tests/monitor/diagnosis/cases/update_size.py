"""Cases of update-size: a step changes too much of the weights, or nothing."""

from __future__ import annotations

import numpy as np

from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, changed, constant_lr, level, only
from tests.monitor.diagnosis.controls import warmup_cosine


def ratio(size: float = 1e-3) -> np.ndarray:
    return size * np.exp(np.random.default_rng(0).normal(0, 0.2, STEPS))


FIRES = (
    Case(
        "a third of the weights",
        lambda: only(update_to_weight_ratio=changed(ratio(), slice(AT, None), 300), lr=constant_lr()),
        "warning",
        words="changes the weights",
    ),
    Case(
        "a millionth",
        lambda: only(update_to_weight_ratio=ratio(1e-6), lr=constant_lr()),
        "info",
        onset=21,
        words="a hundredth",
    ),
    Case(
        "rounded away",
        lambda: only(update_to_weight_ratio=changed(ratio(), slice(AT, None), 3e-6), lr=constant_lr()),
        "warning",
        words="rounds away",
    ),
)

NEAR_MISSES = (
    Case("3 %, as plain SGD has it", lambda: only(update_to_weight_ratio=ratio(0.03), lr=constant_lr())),
    Case("large at the start", lambda: only(update_to_weight_ratio=changed(ratio(), slice(0, 15), 500))),
    Case(
        "a decay to nothing",
        lambda: only(update_to_weight_ratio=warmup_cosine(STEPS, floor=0.0), lr=warmup_cosine(STEPS, floor=0.0)),
    ),
    Case("two steps", lambda: only(update_to_weight_ratio=changed(ratio(), slice(AT, AT + 2), 300))),
)

ABSTAINS = (
    Case("not measured", lambda: only(train_loss=level()), words="update_to_weight_ratio not recorded"),
    Case("early", lambda: only(update_to_weight_ratio=ratio()[:22]), words="2 updates"),
)
