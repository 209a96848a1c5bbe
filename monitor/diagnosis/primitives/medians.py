"""Medians and scales that the primitives share."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence

import numpy as np

MAD_TO_SD = 1.4826
"""Standard deviation of a normal sample per unit of its median absolute deviation."""


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
