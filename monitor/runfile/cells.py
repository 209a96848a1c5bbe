"""Many values as few: the smallest and the largest finite one, the last one, and how many of each kind there were.

A cell of cells is the cell of all their values, so levels of any height can be made from one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True, slots=True)
class Cells:
    """n cells of one scalar (arrays [n]) or of one statistic of L layers (arrays [n, L])."""

    min: np.ndarray
    """Smallest finite value; NaN when there is none."""
    max: np.ndarray
    """Largest finite value; NaN when there is none."""
    last: np.ndarray
    """Last value, whatever it is; NaN without meaning where ``count`` is 0."""
    count: np.ndarray
    """uint32: values, the non-finite ones included. What is absent is not counted."""
    nan: np.ndarray
    """uint32: how many of them are NaN."""
    posinf: np.ndarray
    neginf: np.ndarray

    def __len__(self) -> int:
        return len(self.count)

    def rows(self, low: int, high: int) -> Cells:
        """Cells ``low..high`` (excluded)."""
        return Cells(*(getattr(self, name)[low:high] for name in NAMES))


NAMES = tuple(field.name for field in fields(Cells))


def reduce_values(value: np.ndarray, present: np.ndarray | None, starts: np.ndarray) -> Cells:
    """The cells of consecutive groups of values.

    Args:
        value: float64[n] or float32[n, L], n at least 1.
        present: bool of the same shape; None: all are there.
        starts: int64[g], strictly increasing from 0: where each group begins.
    """
    there = np.broadcast_to(np.True_, value.shape) if present is None else present
    finite = np.isfinite(value)
    whole = bool(finite.all())
    if present is not None and not present.all():
        finite, whole = finite & present, False
    shown = value if whole else np.where(finite, value, value.dtype.type(np.nan))
    if present is None:
        sizes = np.diff(np.append(starts, len(value))).astype(np.uint32)
        count = np.broadcast_to(sizes.reshape(-1, *[1] * (value.ndim - 1)), (len(starts), *value.shape[1:]))
    else:
        count = _sums(there, starts)
    nan, posinf, neginf = (
        np.zeros(count.shape, np.uint32) if whole else _sums(kind(value) & there, starts)
        for kind in (np.isnan, np.isposinf, np.isneginf)
    )
    last = _last(value, None if present is None else there, starts)
    return Cells(np.fmin.reduceat(shown, starts), np.fmax.reduceat(shown, starts), last, count, nan, posinf, neginf)


def merge(cells: Cells, starts: np.ndarray) -> Cells:
    """Consecutive groups of cells as one cell each; ``starts`` as for :func:`reduce_values`."""
    last = _last(cells.last, cells.count > 0, starts)
    sums = [_sums(getattr(cells, name), starts) for name in ("count", "nan", "posinf", "neginf")]
    return Cells(np.fmin.reduceat(cells.min, starts), np.fmax.reduceat(cells.max, starts), last, *sums)


def join(parts: Sequence[Cells]) -> Cells:
    """Cells end to end."""
    return Cells(*(np.concatenate([getattr(part, name) for part in parts]) for name in NAMES))


def _sums(counts: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(counts, starts, dtype=np.uint32)


def _last(value: np.ndarray, there: np.ndarray | None, starts: np.ndarray) -> np.ndarray:
    """The last value that is there of every group; NaN where none is."""
    if there is None:
        return value[np.append(starts[1:], len(value)) - 1]
    order = np.arange(len(value)).reshape(-1, *[1] * (value.ndim - 1))
    at = np.maximum.reduceat(np.where(there, order, -1), starts)
    found = np.take_along_axis(value, np.maximum(at, 0), axis=0)
    return np.where(at >= 0, found, value.dtype.type(np.nan))
