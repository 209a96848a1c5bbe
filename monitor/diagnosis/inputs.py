"""Whether the input of a step is unlike those before, from its fingerprint."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.primitives import MAD_TO_SD
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number

WATCHED = ("input_mean", "input_std", "input_absmax", "input_unique_share")
LEAST_ROWS = 32
BLOCK = 32
"""Rows after which the baseline is taken again."""
MEMORY_ROWS = 512
Z = 12.0
"""Robust standard deviations beyond what the batches before show. Our judgement."""
CHANGE = 0.5
"""Smallest change, in log units or relative to the typical magnitude. Our judgement."""
GATES = ("batch_size", "seq_len", "data_stage")
"""Events that move the fingerprint for good reason."""


def odd_rows(signals: Signals, name: str, z: float = Z, change: float = CHANGE) -> np.ndarray:
    """bool[T]: rows of fingerprint ``name`` that leave all it has shown, or are not finite; the first 32 never do."""
    return signals.remember(("odd_rows", name, z, change), lambda: _odd_rows(signals, name, z, change))


def _odd_rows(signals: Signals, name: str, z: float, change: float) -> np.ndarray:
    series = signals[name]
    if len(series) < LEAST_ROWS:
        return np.zeros(len(series), bool)
    if name == "input_absmax" and _are_numbers_of_things(series.value):
        return ~np.isfinite(series.value)
    # A spread, a size and a share are compared as ratios.
    relative = name == "input_mean"
    x = series.value if relative else np.log(np.maximum(series.value, 1e-9))
    low, high = _bounds(x, z, change, relative)
    odd = ~np.isfinite(series.value) | (x > high) | (x < low)
    for event in signals.events(*GATES):
        if event.step is not None:
            odd &= (series.step < event.step - 1) | (series.step > event.step + BLOCK)
    return odd


def _are_numbers_of_things(absmax: np.ndarray) -> bool:
    """Whether inputs are tokens or the like: a rare one has a high number and is not large."""
    finite = absmax[np.isfinite(absmax)]
    return bool((finite == np.floor(finite)).all())


def oddity_at(signals: Signals, step: int) -> str | None:
    """What is unusual about the input of ``step``, "" for nothing; None where it has no fingerprint."""
    judged = False
    for name in WATCHED:
        series = signals[name]
        row = int(np.searchsorted(series.step, step))
        if row < LEAST_ROWS or row >= len(series) or series.step[row] != step:
            continue
        judged = True
        if odd_rows(signals, name)[row]:
            value, before = float(series.value[row]), usual(series.value, row)
            return f"{name} of its batch is {number(value)}, {number(before)} is usual"
    return "" if judged else None


def change_at(signals: Signals, step: int, *, near: int = 15, lasting: int = 10) -> str | None:
    """What is another in the inputs from ``near`` steps about ``step`` on, in ``lasting`` rows of a block; None for
    nothing. The first step of a climb is known to some steps only."""
    for name in WATCHED:
        series = signals[name]
        rows = np.flatnonzero(odd_rows(signals, name))
        rows = rows[(series.step[rows] >= step - near) & (series.step[rows] < step + near + BLOCK)]
        if len(rows) >= lasting and series.step[rows[0]] <= step + near:
            value, before = float(np.median(series.value[rows])), usual(series.value, int(rows[0]))
            return f"{name} is {number(value)} from step {int(series.step[rows[0]])} on, {number(before)} was usual"
    return None


def usual(value: np.ndarray, row: int) -> float:
    """Median of the 96 rows before ``row``."""
    return float(np.median(value[max(0, row - 96) : row]))


def _bounds(value: np.ndarray, z: float, change: float, relative: bool) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), float64[T]: what a value may be, from the batches before its block of 32; unbounded at first.

    ``change`` is relative to the typical magnitude, or in log units.
    """
    low, high = np.full(len(value), -np.inf), np.full(len(value), np.inf)
    for start in range(LEAST_ROWS, len(value), BLOCK):
        before = value[max(0, start - MEMORY_ROWS) : start]
        before = before[np.isfinite(before)]
        if len(before) < LEAST_ROWS // 2:
            continue
        middle = float(np.median(before))
        scale = MAD_TO_SD * float(np.median(np.abs(before - middle)))
        room = max(z * scale, change * max(abs(middle), scale) if relative else change)
        low[start : start + BLOCK] = min(middle - room, float(np.quantile(before, 0.01)))
        high[start : start + BLOCK] = max(middle + room, float(np.quantile(before, 0.99)))
    return low, high
