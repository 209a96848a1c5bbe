"""Fewer points for the screen without losing an extreme or a non-finite value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monitor.signals import LayerMatrix


@dataclass(frozen=True, slots=True)
class Reduced:
    """A series made small enough to draw.

    ``step``/``value`` hold finite samples only: the minimum and the maximum of every bucket and the first and last
    sample of the range. Non-finite samples stand beside them, every one.
    """

    step: np.ndarray
    """int64[P], increasing."""
    value: np.ndarray
    """float64[P], finite."""
    ratio: float
    """Finite samples in the range per sample kept; 1 when nothing was left out."""
    nonfinite_step: np.ndarray
    """int64[Q]."""
    nonfinite_value: np.ndarray
    """float64[Q]: NaN, inf or -inf."""
    nan_count: int
    posinf_count: int
    neginf_count: int


def min_max(
    step: np.ndarray, value: np.ndarray, buckets: int, first: int | None = None, last: int | None = None
) -> Reduced:
    """Reduce a series to at most ``2 * buckets + 2`` finite samples plus all the non-finite ones.

    A bucket is an equal share of the step range ``first..last`` (both included; None: the series' own ends), because a
    column of pixels is one. A series that is small enough comes back whole.

    Args:
        step: int64[T], strictly increasing.
        value: float64[T].
        buckets: at least 1; the width of the chart in pixels is a good choice.
    """
    if buckets < 1:
        raise ValueError(f"buckets is {buckets}; at least 1 is needed.")
    step, value = _within(step, value, first, last)
    finite = np.isfinite(value)
    if finite.all():
        bad_step, bad = step[:0], value[:0]
    else:
        bad_step, bad = step[~finite], value[~finite]
        step, value = step[finite], value[finite]
    kept = _extremes(step, value, buckets)
    shown = step[kept]
    return Reduced(
        step=shown,
        value=value[kept],
        ratio=len(step) / len(shown) if len(shown) else 1.0,
        nonfinite_step=bad_step,
        nonfinite_value=bad,
        nan_count=int(np.isnan(bad).sum()),
        posinf_count=int(np.isposinf(bad).sum()),
        neginf_count=int(np.isneginf(bad).sum()),
    )


def _within(step: np.ndarray, value: np.ndarray, first: int | None, last: int | None) -> tuple[np.ndarray, np.ndarray]:
    low = 0 if first is None else int(np.searchsorted(step, first, side="left"))
    high = len(step) if last is None else int(np.searchsorted(step, last, side="right"))
    return step[low:high], value[low:high]


def bucket_starts(step: np.ndarray, buckets: int) -> np.ndarray:
    """Index of the first sample of every non-empty bucket when the step range is cut into ``buckets`` equal parts."""
    edges = np.linspace(step[0], step[-1] + 1, buckets + 1)[:-1]
    # As integers: against floats, numpy would convert all the steps.
    return np.unique(np.searchsorted(step, np.ceil(edges).astype(np.int64), side="left"))


def _extremes(step: np.ndarray, value: np.ndarray, buckets: int) -> np.ndarray:
    """Sorted indices of each bucket's minimum and maximum and of both ends; all indices when that is not fewer."""
    if len(step) <= 2 * buckets + 2:
        return np.arange(len(step))
    starts = bucket_starts(step, buckets)
    samples = np.diff(starts, append=len(step))
    kept = [np.array([0, len(step) - 1])]
    for extreme in (np.minimum, np.maximum):
        equal = np.flatnonzero(value == np.repeat(extreme.reduceat(value, starts), samples))
        kept.append(equal[np.searchsorted(equal, starts)])  # the first one of each bucket
    return np.unique(np.concatenate(kept))


@dataclass(frozen=True, slots=True)
class HeatReduced:
    """A layer x step picture of one statistic."""

    edges: np.ndarray
    """int64[C + 1]: column ``c`` covers ``edges[c] <= step < edges[c + 1]``."""
    value: np.ndarray
    """float32[L, C]: largest finite value in the cell; NaN where the cell has no finite value."""
    nonfinite: np.ndarray
    """bool[L, C]: the cell holds a NaN or an infinity."""
    present: np.ndarray
    """bool[L, C]: anything at all was measured in the cell."""
    names: tuple[str, ...] = ()
    """L layer names in depth order."""


def heat(matrix: LayerMatrix, columns: int, first: int | None = None, last: int | None = None) -> HeatReduced:
    """Reduce ``matrix`` to at most ``columns`` columns of equal step width over ``first..last`` (both included)."""
    if columns < 1:
        raise ValueError(f"columns is {columns}; at least 1 is needed.")
    low = 0 if first is None else int(np.searchsorted(matrix.step, first, side="left"))
    high = len(matrix.step) if last is None else int(np.searchsorted(matrix.step, last, side="right"))
    step = matrix.step[low:high]
    layers = len(matrix.names)
    if len(step) == 0:
        none = np.zeros((layers, 0), dtype=bool)
        return HeatReduced(np.zeros(1, np.int64), none.astype(np.float32), none, none, matrix.names)
    columns = min(columns, int(step[-1] - step[0]) + 1)
    edges = np.ceil(np.linspace(step[0], step[-1] + 1, columns + 1)).astype(np.int64)
    starts = np.searchsorted(step, edges[:-1], side="left")
    stops = np.append(starts[1:], len(step))

    value, present = matrix.value[low:high], matrix.present[low:high]
    whole = present.strides[0] == 0 and bool(present[:1].all())  # one True for all: nothing is absent
    largest = np.full((columns, layers), np.nan, dtype=np.float32)
    nonfinite, measured = np.zeros((columns, layers), bool), np.zeros((columns, layers), bool)
    for column, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        if start == stop:
            continue
        cells, there = value[start:stop], present[start:stop]
        peak = cells.max(axis=0)
        if whole and np.isfinite(peak).all() and np.isfinite(cells.min(axis=0)).all():  # as nearly always
            largest[column], measured[column] = peak, True
            continue
        finite = np.isfinite(cells) & there
        peak = np.where(finite, cells, np.float32(-np.inf)).max(axis=0)
        largest[column] = np.where(finite.any(axis=0), peak, np.float32(np.nan))
        nonfinite[column] = (there & ~finite).any(axis=0)
        measured[column] = there.any(axis=0)
    return HeatReduced(edges, largest.T, nonfinite.T, measured.T, matrix.names)
