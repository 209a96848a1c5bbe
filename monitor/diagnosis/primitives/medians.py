"""Medians and scales that the primitives share."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from heapq import heappush, heappushpop

import numpy as np

MAD_TO_SD = 1.4826
"""Standard deviation of a normal sample per unit of its median absolute deviation."""
CHUNK = 1 << 16
"""Windows whose medians are taken at once."""


def median_of_sorted(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def expanding_median(value: np.ndarray, *, stride: int = 16) -> np.ndarray:
    """float64[T]: median of every ``stride``-th finite positive value so far; -inf before the first.

    The typical level of the run up to each row. Only every ``stride``-th row is used: at 200 000 rows that keeps the
    sorted list short.
    """
    result = np.full(len(value), -math.inf)
    ordered: list[float] = []
    for row in range(0, len(value), stride):
        x = float(value[row])
        if math.isfinite(x) and x > 0:
            insort(ordered, x)
        if ordered:
            result[row : row + stride] = median_of_sorted(ordered)
    return result


def running_median(value: np.ndarray) -> np.ndarray:
    """float64[T]: median of all values up to each row, which must not be NaN."""
    result = np.empty(len(value))
    lower: list[float] = []  # negated: the largest of the lower half comes first
    upper: list[float] = []  # as many, or one less
    for row, x in enumerate(value.tolist()):
        if len(lower) == len(upper):
            heappush(lower, -heappushpop(upper, x))
            result[row] = -lower[0]
        else:
            heappush(upper, -heappushpop(lower, -x))
            result[row] = 0.5 * (upper[0] - lower[0])
    return result


def window_medians(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """float64[n]: median of each ``value[low:high]``; NaN where that is empty or holds a NaN.

    Args:
        low, high: int64[n]; no window is long, since all are laid out side by side.
    """
    result = np.full(len(low), np.nan)
    rows = np.flatnonzero(high > low)
    for start in range(0, len(rows), CHUNK):
        own = rows[start : start + CHUNK]
        size = high[own] - low[own]
        at = low[own, None] + np.arange(size.max())
        inside = at < high[own, None]
        laid = np.where(inside, value[np.minimum(at, len(value) - 1)], np.inf)
        broken = np.isnan(laid).any(axis=1)
        laid.sort(axis=1)
        middle = np.take_along_axis(laid, np.stack([(size - 1) // 2, size // 2], axis=1), axis=1)
        result[own] = np.where(broken, np.nan, middle.mean(axis=1))
    return result
