"""Whether a short series rises as a whole, though it scatters (Mann 1945, https://doi.org/10.2307/1907187)."""

from __future__ import annotations

import numpy as np

TREND_Z = 2.33
"""Of Mann and Kendall's test, one-sided at 1 %."""
TREND_LEAST = 6
"""Fewest values of which the test can tell a rise, each of them being above all before it."""


def rises(value: np.ndarray) -> bool:
    """Whether more later values lie above earlier ones than chance explains. Each is held against each."""
    rows = len(value)
    if rows < TREND_LEAST:
        return False
    score = sum(int(np.sign(value[row + 1 :] - value[row]).sum()) for row in range(rows))
    return bool(score - 1 >= TREND_Z * np.sqrt(rows * (rows - 1) * (2 * rows + 5) / 18))


def level_around(value: np.ndarray, row: int) -> float:
    """Median of the five values around a row."""
    return float(np.median(value[max(0, row - 2) : row + 3]))
