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


def memory_of_a_default_run(until: int) -> Signals:
    """What `gradiometer train` took on a quiet machine: at step 200 it evaluates and draws text for the first time."""
    step = [*range(1, 200, 6), 200, 200, 200, 200, 200, *range(204, 301, 6)]
    mib = [487.2, 492.5, 498.8, *[498.9 + 0.1 * n for n in range(31)], 531.8, 576.6, 589.4, 556.2, 557.2, 560.9,
           *[564.9] * 16]  # fmt: skip
    return Signals.from_arrays({"train_loss": level()}, system={"rss_gib": (step, np.array(mib) / 1024)}).until(until)


def mapped_data(private: np.ndarray) -> Signals:
    """A data set that is mapped and read bit by bit, beside what the process has of its own."""
    rng = np.random.default_rng(0)
    own = private + rng.normal(0, 0.001, len(private))
    system = {"rss_gib": (STEP, own + 0.05 * ROWS), "rss_private_gib": (STEP, own)}
    return Signals.from_arrays({"train_loss": level()}, system=system)


FIRES = (
    Case("5 MiB a step", lambda: memory(1.0 + 0.05 * ROWS), "warning", onset=90, words="goes on"),
    Case(
        "on the device",
        lambda: memory(1.0 + 0.05 * ROWS, "gpu_memory_allocated_gib"),
        "warning",
        onset=90,
        words="device memory",
    ),
    Case(
        "a leak, and an import on the way", lambda: memory(1.0 + 0.05 * ROWS + 0.3 * (ROWS >= 12)), "warning", onset=90
    ),
    Case("a leak beside mapped data", lambda: mapped_data(1.0 + 0.05 * ROWS), "warning", onset=90),
    Case("with every evaluation", lambda: memory(1.0 + 0.1 * (ROWS // 3)), "warning", onset=90),
)

NEAR_MISSES = (
    Case("level", lambda: memory(np.full(SAMPLES, 2.0))),
    Case("fills a cache", lambda: memory(1.0 + 0.8 * (1 - np.exp(-ROWS / 6)))),
    Case("2 % in all", lambda: memory(2.0 + 0.001 * ROWS)),
    Case("one step up", lambda: memory(np.where(ROWS < 20, 1.0, 1.5))),
    Case("an import and the first evaluation", lambda: memory(1.0 + 0.1 * (ROWS >= 12) + 0.1 * (ROWS >= 30))),
    Case("a default run until step 200", lambda: memory_of_a_default_run(200)),
    Case("a default run until step 300", lambda: memory_of_a_default_run(300)),
    Case("mapped data", lambda: mapped_data(np.full(SAMPLES, 1.0))),
    Case("up and down", lambda: memory(1.5 + 0.3 * np.sin(ROWS / 3))),
)

ABSTAINS = (
    Case("not sampled", lambda: only(train_loss=level()), words="0 samples"),
    Case("eight samples in all", lambda: memory(1.0 + 0.05 * ROWS[:8]), words="7 samples"),
)
