"""Cases of machine-trouble: memory nearly full, heat, errors."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from tests.monitor.diagnosis.cases.drawn import AT, Case, level, only

STEP = 10 * np.arange(1, 31)


def machine(ram: np.ndarray | None = None, *events: Mark, **system: np.ndarray) -> Signals:
    measures = {"ram_used_pct": np.full(30, 40.0) if ram is None else ram, **system}
    return Signals.from_arrays(
        {"train_loss": level()}, system={k: (STEP, v) for k, v in measures.items()}, events=events
    )


def throttle(harmful: bool) -> Mark:
    return Mark("throttle", AT + 1, {"device": 0, "harmful": harmful, "text": "device 0 runs below its highest clocks"})


FIRES = (
    Case("memory full", lambda: machine(np.where(STEP > AT, 98.5, 60.0)), "warning", onset=210, words="98.5 % full"),
    Case("memory nearly full", lambda: machine(np.where(STEP > AT, 94.0, 60.0)), "info", onset=210),
    Case("too hot", lambda: machine(None, throttle(True)), "warning", words="below its highest clocks"),
    Case(
        "memory errors",
        lambda: machine(None, Mark("ecc", AT + 1, {"device": 0, "text": "2 errors"})),
        "warning",
        words="2 errors",
    ),
    Case(
        "fragmented",
        lambda: machine(gpu_memory_reserved_gib=np.full(30, 9.0), gpu_memory_allocated_gib=np.full(30, 3.0)),
        "info",
        onset=10,
        words="allocator holds",
    ),
)

NEAR_MISSES = (
    Case("a short peak", lambda: machine(np.where((STEP > AT) & (STEP <= AT + 20), 99.0, 60.0))),
    Case("idle clocks", lambda: machine(None, throttle(False))),
    Case(
        "a small pool",
        lambda: machine(gpu_memory_reserved_gib=np.full(30, 0.5), gpu_memory_allocated_gib=np.full(30, 0.1)),
    ),
)

ABSTAINS = (Case("not sampled", lambda: only(train_loss=level()), words="sampled"),)
