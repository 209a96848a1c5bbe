"""Cases of memory-growth: a leak."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import Case, level, only

SAMPLES = 40
STEP = 10 * np.arange(1, SAMPLES + 1)


def memory(gib: np.ndarray, name: str = "rss_gib") -> Signals:
    noise = np.random.default_rng(0).normal(0, 0.001, len(gib))
    return Signals.from_arrays({"train_loss": level()}, system={name: (STEP[: len(gib)], gib + noise)})


ROWS = np.arange(SAMPLES)

FIRES = (
    Case("5 MiB a step", lambda: memory(1.0 + 0.05 * ROWS), "warning", onset=90, words="goes on"),
    Case(
        "on the device",
        lambda: memory(1.0 + 0.05 * ROWS, "gpu_memory_allocated_gib"),
        "warning",
        onset=90,
        words="device memory",
    ),
)

NEAR_MISSES = (
    Case("level", lambda: memory(np.full(SAMPLES, 2.0))),
    Case("fills a cache", lambda: memory(1.0 + 0.8 * (1 - np.exp(-ROWS / 6)))),
    Case("2 % in all", lambda: memory(2.0 + 0.001 * ROWS)),
    Case("one step up", lambda: memory(np.where(ROWS < 20, 1.0, 1.5))),
    Case("up and down", lambda: memory(1.5 + 0.3 * np.sin(ROWS / 3))),
)

ABSTAINS = (
    Case("not sampled", lambda: only(train_loss=level()), words="0 samples"),
    Case("eight samples in all", lambda: memory(1.0 + 0.05 * ROWS[:8]), words="7 samples"),
)
