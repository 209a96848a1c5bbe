"""The picture of a heatmap: one statistic of every layer or module by step, reduced to cells of one byte.

A cell never shows more than was measured: where a statistic is taken only every so many steps, each measured step gets
a narrow cell of its own and what lies between stays blank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from app.charts.measures import kept, negated
from monitor.runfile.downsample import HeatReduced, heat
from monitor.runfile.zoom import LongMatrix
from monitor.signals import LayerMatrix

STEPS = 250
"""Codes 0..250 of a cell are the colour scale; the rest have meanings of their own."""
ZERO, ABSENT, NONFINITE = 253, 254, 255
SCALE_SAMPLE = 200_000
"""Cells that the colour scale is taken from; the quantiles of more are no different on a screen."""
SPARSE = 1.5
"""A statistic with this many steps for each measured one, or more, is drawn with its gaps."""
NARROWEST = 0.006
"""Width of a measured step among gaps, as a share of the window: about 6 pixels (our judgement)."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a window of a heatmap shows."""

    edges: np.ndarray
    """float64[C + 1] on the x axis: column ``c`` is drawn from ``edges[c]`` to ``edges[c + 1]``."""
    value: np.ndarray
    """float32[L, C]; NaN where the cell has no finite value."""
    nonfinite: np.ndarray
    present: np.ndarray
    names: tuple[str, ...]
    rows: int
    """Measured steps in the window."""
    span: int
    """Steps from the first measured one to the last; 0 when rows stand for more steps than their own."""
    bad: int
    """Values that are not finite."""
    at: np.ndarray | None = None
    """int64[C]: the step that a column is about, -1 for a gap; None: all steps between its edges."""


def picture_of(matrix: LayerMatrix | LongMatrix, keep: str, columns: int, low: int | None, high: int | None) -> Picture:
    """The cells of ``low <= step <= high``, each with what ``keep`` names of its steps."""
    if isinstance(matrix, LongMatrix):
        return _from_levels(matrix, keep, columns, low, high)
    high = told_until(matrix, high)
    start, stop = rows_within(matrix.step, low, high)
    bad = matrix.present[start:stop] & ~np.isfinite(matrix.value[start:stop])
    if matrix.nonfinite is not None:
        bad = matrix.nonfinite[start:stop]
    rows, count = stop - start, int(bad.sum())
    span = int(matrix.step[stop - 1] - matrix.step[start]) + 1 if rows else 0
    if matrix.since is None and 0 < rows <= columns and span > SPARSE * rows:
        return _step_by_step(matrix, slice(start, stop), count, low, high)
    seen = _reduced(matrix, keep, columns, low, high)
    if matrix.since is not None:
        span = 0
        cells = _filled(seen.value, seen.nonfinite, seen.present, seen.edges, matrix)
        seen = HeatReduced(seen.edges, *cells, seen.names)
    return Picture(seen.edges - 0.5, seen.value, seen.nonfinite, seen.present, seen.names, rows, span, count)


def _from_levels(matrix: LongMatrix, keep: str, columns: int, low: int | None, high: int | None) -> Picture:
    seen = matrix.window(low, high, columns)
    bad = (seen.nan + seen.posinf + seen.neginf).T
    edges = np.append(seen.first_step, seen.last_step[-1:] + 1) - 0.5
    value = kept(seen.min, seen.max, keep).T
    return Picture(edges, value, bad > 0, seen.count.T > 0, seen.names, seen.rows, 0, int(bad.sum()))


def _reduced(matrix: LayerMatrix, keep: str, columns: int, low: int | None, high: int | None) -> HeatReduced:
    seen = heat(matrix, columns, low, high)
    if keep == "largest":
        return seen
    lowest = -heat(negated(matrix), columns, low, high).value
    return HeatReduced(seen.edges, kept(lowest, seen.value, keep), seen.nonfinite, seen.present, seen.names)


def _step_by_step(matrix: LayerMatrix, rows: slice, bad: int, low: int | None, high: int | None) -> Picture:
    """Each measured step as a narrow column round its place, with columns of nothing between."""
    step = matrix.step[rows].astype(np.float64)
    first, last = step[0] if low is None else float(low), step[-1] if high is None else float(high)
    widest = max(0.5, NARROWEST / 2 * (last - first + 1))
    gap = np.diff(step)
    half = np.minimum(widest, np.maximum(0.5, 0.4 * gap))
    left, right = step - np.append(widest, half), step + np.append(half, widest)
    edges = np.stack([left, right], axis=1).ravel()
    source = np.full(len(edges) - 1, -1)
    source[::2] = np.arange(len(step))
    wide = np.append(True, np.diff(edges) > 1e-9)  # steps that follow one another have no gap between them
    edges, source = edges[wide], source[wide[1:]]
    there = source >= 0
    own, present = matrix.value[rows][source].T, matrix.present[rows][source].T & there
    finite = np.isfinite(own)
    return Picture(
        edges,
        np.where(finite & present, own, np.float32(np.nan)),
        present & ~finite,
        present,
        matrix.names,
        len(step),
        int(step[-1] - step[0]) + 1,
        bad,
        np.where(there, matrix.step[rows][source], -1),
    )


def rows_within(step: np.ndarray, low: int | None, high: int | None, beyond: int = 0) -> tuple[int, int]:
    """First and last row (excluded) with ``low <= step <= high``, and ``beyond`` more on each side."""
    start = 0 if low is None else int(np.searchsorted(step, low, side="left"))
    stop = len(step) if high is None else int(np.searchsorted(step, high, side="right"))
    return max(0, start - beyond), min(len(step), stop + beyond)


def told_until(matrix: LayerMatrix | LongMatrix, high: int | None) -> int | None:
    """``high``, or the step of the next row when it stands for steps up to ``high`` too."""
    if high is None or matrix.since is None:
        return high
    following = int(np.searchsorted(matrix.step, high, side="right"))
    tells = following < len(matrix.step) and matrix.since[following] <= high
    return int(matrix.step[following]) if tells else high


def _filled(
    value: np.ndarray, nonfinite: np.ndarray, present: np.ndarray, edges: np.ndarray, matrix: LayerMatrix
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns of the picture in which no row ends, filled with the row that stands for their steps.

    A thinned run has fewer rows than a zoom has columns; what a row tells it tells of every step of its interval.

    Args:
        value, nonfinite, present: [L, C], see ``HeatReduced``.
        edges: int64[C + 1].
    """
    rows = np.searchsorted(matrix.step, edges[:-1])
    empty = rows == np.searchsorted(matrix.step, edges[1:])
    empty &= rows < len(matrix.step)
    rows = np.minimum(rows, len(matrix.step) - 1)
    columns = np.flatnonzero(empty & (matrix.begins[rows] < edges[1:]))
    if not len(columns):
        return value, nonfinite, present
    own, there = matrix.value[rows[columns]].T, matrix.present[rows[columns]].T
    finite = np.isfinite(own)
    value, nonfinite, present = value.copy(), nonfinite.copy(), present.copy()
    value[:, columns] = np.where(finite & there, own, np.float32(np.nan))
    nonfinite[:, columns], present[:, columns] = there & ~finite, there
    return value, nonfinite, present


# ---- colours ------------------------------------------------------------------------------------------------------


def colour_scale(matrix: LayerMatrix | LongMatrix, scale: str, limit: float | None = None) -> tuple[float, float]:
    """Both ends of the colour scale, over the whole run so that a zoom keeps the colours.

    ``log``: powers of ten, from the 1st percentile to two decades above the 90th, or to the largest value when that is
    less: an explosion gets the last colour, and what came before keeps its contrast. ``linear``: from 0 to the largest
    value, rounded up. ``signed``: the 99th percentile of the size, rounded up, on both sides of zero. The choice of
    quantiles is our judgement.

    Args:
        limit: the upper end of a linear or signed scale that is known beforehand.
    """
    if limit is not None and scale != "log":
        return (-limit if scale == "signed" else 0.0), limit
    value, present = matrix.sample() if isinstance(matrix, LongMatrix) else (matrix.value, matrix.present)
    every = max(1, value.size // SCALE_SAMPLE)
    sample, there = value[::every], present[::every]
    good = sample[there & np.isfinite(sample)].astype(np.float64)
    if scale == "signed":
        top = _rounded_up(float(np.percentile(np.abs(good), 99))) if good.size else 1.0
        return -top, top
    if scale == "linear":
        return 0.0, _rounded_up(float(good.max())) if good.size else 1.0
    good = good[good > 0]
    if not good.size:
        return -1.0, 0.0
    low, usual, high = np.log10(np.percentile(good, [1, 90, 100]))
    high = min(high, usual + 2)
    return (math.floor(low * 4) / 4, math.ceil(high * 4) / 4) if high > low else (low - 0.5, high + 0.5)


def _rounded_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten; 1 for nothing."""
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * digit for digit in (1, 2, 5, 10) if value <= power * digit * (1 + 1e-6))


def quantise(
    value: np.ndarray,
    nonfinite: np.ndarray,
    present: np.ndarray,
    bottom: float,
    top: float,
    scale: str = "log",
) -> np.ndarray:
    """Cells as uint8: 0..250 from ``bottom`` to ``top``; 253 zero on a logarithmic scale, 254 absent, 255 non-finite.

    Args:
        value: float32[L, C], NaN where a cell has no finite value; on a logarithmic scale negative values count by
            their size.
        bottom, top: the ends of the scale; for ``log`` their powers of ten.
    """
    size = np.nan_to_num(value.astype(np.float64), nan=0.0)
    level = size
    if scale == "log":
        with np.errstate(divide="ignore"):
            level = np.log10(np.abs(size))
    level = (level - bottom) / max(top - bottom, 1e-300 if scale != "log" else 1e-9) * STEPS
    code = np.clip(np.where(np.isfinite(level), level, 0), 0, STEPS).round().astype(np.uint8)
    if scale == "log":
        code[size == 0] = ZERO
    code[~present] = ABSENT
    code[nonfinite] = NONFINITE
    return code
