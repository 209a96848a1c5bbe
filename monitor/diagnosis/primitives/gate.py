"""Primitive G: where the situation changes, so that old levels no longer apply."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def restarts(lr: np.ndarray, *, factor: float = 2.0, headroom: float = 1.1) -> np.ndarray:
    """int64[N]: rows at which the learning rate jumps up by more than ``factor`` to a height it has held before.

    A jump to a height that was never reached (above ``headroom`` times the highest so far) is not a restart: it is
    what a wrong learning rate looks like, and is left to the rules. Values <= 0 and non-finite ones are looked through.
    """
    rows = np.flatnonzero(np.isfinite(lr) & (lr > 0))
    if len(rows) < 2:
        return np.zeros(0, np.int64)
    x = lr[rows]
    highest = np.maximum.accumulate(x)[:-1]
    return rows[1:][(x[1:] > factor * x[:-1]) & (x[1:] <= headroom * highest)]


def jumps_to_new_height(lr: np.ndarray, *, factor: float = 2.0, headroom: float = 1.1) -> np.ndarray:
    """int64[N]: rows at which the learning rate jumps up by more than ``factor`` to a height never held before."""
    rows = np.flatnonzero(np.isfinite(lr) & (lr > 0))
    if len(rows) < 2:
        return np.zeros(0, np.int64)
    x = lr[rows]
    highest = np.maximum.accumulate(x)[:-1]
    return rows[1:][(x[1:] > factor * x[:-1]) & (x[1:] > headroom * highest)]


def warmup_rows(lr: np.ndarray, *, tolerance: float = 1e-6) -> int:
    """Number of leading rows over which the learning rate only rises; 0 when it starts at its first height.

    Rows still rising at the end of a prefix count, so the answer for a prefix is the smaller of the prefix's length
    and the answer for the whole.
    """
    if len(lr) < 2:
        return len(lr)
    rising = lr[1:] > lr[:-1] * (1 + tolerance)
    falls = np.flatnonzero(~rising)
    first = int(falls[0]) if len(falls) else len(rising)
    return first + 1 if first else 0


def steady_then_changed(value: np.ndarray, *, steady: int = 20, factor: float = 1.25) -> np.ndarray:
    """int64[N]: rows at which a quantity that was exactly constant for ``steady`` rows changes by more than ``factor``.

    Meant for tokens per step: a change of batch size or sequence length, never the jitter of variable lengths.
    """
    if len(value) <= steady:
        return np.zeros(0, np.int64)
    changed = np.concatenate([[True], value[1:] != value[:-1]])
    last_change = np.maximum.accumulate(np.where(changed, np.arange(len(value)), 0))
    rows = np.flatnonzero(changed[1:]) + 1
    rows = rows[rows - last_change[rows - 1] >= steady]
    ratio = value[rows] / np.where(value[rows - 1] == 0, np.nan, value[rows - 1])
    return rows[(ratio > factor) | (ratio < 1 / factor)]


def rows_at(step: np.ndarray, marks: Iterable[int]) -> np.ndarray:
    """int64[N]: for each mark the first row at or after it; marks beyond the end are dropped."""
    rows = np.searchsorted(step, np.array(sorted(marks), np.int64), side="left")
    return np.unique(rows[rows < len(step)])


def marked(count: int, rows: Iterable[int]) -> np.ndarray:
    """bool[T]: whether each of ``count`` rows is among ``rows``."""
    marks = np.zeros(count, bool)
    marks[[row for row in rows if 0 <= row < count]] = True
    return marks
