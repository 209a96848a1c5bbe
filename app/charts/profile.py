"""The layers of one step side by side, in the order of depth: where along the model a statistic falls or rises."""

from __future__ import annotations

import numpy as np

from app import text
from app.charts.describe import Chart, Trace
from app.charts.measures import Choice, layer_curve
from app.heatmap import picture_of
from monitor.runfile.zoom import LongMatrix, LongSignal, Zoomed, zoom_rows
from monitor.signals import LayerMatrix, Signal

BEFORE = 50
"""Measurements before a step that its profile is held against (our judgement)."""


def telling_row(
    matrix: LayerMatrix | LongMatrix, keep: str, stretch: tuple[int, int] | None = None, layer: str | None = None
) -> int | None:
    """The row of a stretch of steps that a cell of the heatmap is about: where ``layer`` had the value that is shown.

    That is the first that is not finite, else the extreme that ``keep`` names; without a layer the last row. The last
    one until the stretch when it has none; None when there is none at all.

    Args:
        stretch: first and last step; None: the last row of all.
    """
    if stretch is None:
        return len(matrix.step) - 1 if len(matrix.step) else None
    row = int(np.searchsorted(matrix.step, stretch[1], side="right")) - 1
    curve = layer_curve(matrix, layer) if layer else None
    if curve is not None and row >= 0:
        seen = curve.zoom(*stretch, 1) if isinstance(curve, LongSignal) else _zoomed(curve, stretch)
        if len(seen.mark_step):
            row = int(np.searchsorted(matrix.step, seen.mark_step[0]))
        elif len(seen.step):
            size = {"smallest": -seen.value, "farthest": np.abs(seen.value)}.get(keep, seen.value)
            row = int(np.searchsorted(matrix.step, seen.step[np.argmax(size)]))
    return row if row >= 0 else None


def _zoomed(curve: Signal, stretch: tuple[int, int]) -> Zoomed:
    inside = curve.between(*stretch)
    return zoom_rows(inside.step, inside.value, 1)


def profile_chart(
    choice: Choice, matrix: LayerMatrix | LongMatrix, row: int | None, *, chart_id: str = "profile"
) -> Chart | None:
    """``choice`` over depth in one row of ``matrix``, and the median of those before; None for no row."""
    if row is None:
        return None
    measure = choice.measure
    traces = []
    usual = usual_before(matrix, measure.keep, row)
    if usual is not None:
        traces.append(_trace("median of the measurements before", usual, np.isfinite(usual), 9))
    value, present = values_at(matrix, row)
    traces.append(_trace(f"step {text.count(int(matrix.step[row]))}", value, present, 0))
    return Chart(
        chart_id,
        f"{measure.title} by depth",
        choice.spec.unit if choice.spec else "1",
        kind="profile",
        traces=tuple(traces),
        log=measure.scale == "log",
        zero=measure.scale == "linear",
        height=150,
        help=f"{choice.explained} Input on the left. Click a point for the curves of its layer.".strip(),
        names=matrix.names,
        x_title="",
    )


def _trace(name: str, value: np.ndarray, there: np.ndarray, colour: int) -> Trace:
    place = np.flatnonzero(there)
    return Trace(name, Signal("depth", place, value[place].astype(float)), colour)


def values_at(matrix: LayerMatrix | LongMatrix, row: int) -> tuple[np.ndarray, np.ndarray]:
    """float32[L]: what was measured in one row, and bool[L]: of which layers."""
    if not isinstance(matrix, LongMatrix):
        return matrix.value[row], matrix.present[row]
    step = int(matrix.step[row])
    seen = matrix.window(step, step, 1)
    return seen.last[0], seen.count[0] > 0


def usual_before(matrix: LayerMatrix | LongMatrix, keep: str, row: int) -> np.ndarray | None:
    """float32[L]: the median of up to ``BEFORE`` rows before ``row``; NaN for a layer without any; None for no row."""
    if row < 1:
        return None
    first, last = int(matrix.step[max(0, row - BEFORE)]), int(matrix.step[row - 1])
    if isinstance(matrix, LongMatrix):
        value = picture_of(matrix, keep, BEFORE, first, last).value.T
    else:
        rows = slice(max(0, row - BEFORE), row)
        value = np.where(matrix.present[rows] & np.isfinite(matrix.value[rows]), matrix.value[rows], np.nan)
    return np.ma.median(np.ma.masked_invalid(value), axis=0).filled(np.nan)
