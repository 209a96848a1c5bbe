"""One chart of a live view as CSV: every value that was recorded in the window, not what was drawn of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.charts.describe import Chart, Trace
from app.charts.measures import whole_matrix
from app.charts.smooth import smoothed
from app.frame import Window, bounds_of, steps_of
from app.heatmap import rows_within
from monitor.runfile.zoom import LongSignal
from monitor.signals import Signal

MOST_CELLS = 50_000_000
"""More are refused: they would take gigabytes (our judgement)."""
ROWS_AT_ONCE = 5_000
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Table:
    """The values of one chart."""

    title: str
    heads: Sequence[str]
    fixed: Sequence[np.ndarray]
    """The columns that every row has a value in."""
    cells: Sequence[tuple[np.ndarray, np.ndarray]]
    """For each further column bool[T], which rows have a value, and these values."""


def table_of(charts: Sequence[Chart], chart_id: str, window: Window) -> Table:
    """The chart called ``chart_id`` in ``window``.

    Raises:
        ValueError: there is none, it has no values, or the window holds more than ``MOST_CELLS``.
    """
    chart = next((one for one in charts if one.id == chart_id), None)
    if chart is None or chart.kind == "events":
        with_values = ", ".join(one.id for one in charts[:40] if one.kind != "events")
        raise ValueError(f"chart is {chart_id[:80]!r}; accepted in this view: {with_values}")
    if chart.kind == "heat":
        return _matrix_table(chart, window)
    series = [(trace, _inside(trace, chart, window)) for trace in chart.traces]
    steps = [signal.step for _, signal in series if len(signal)]
    step = np.unique(np.concatenate(steps)) if steps else np.empty(0, np.int64)
    _check_size(len(step) * (1 + len(series)))
    cells = []
    for _, signal in series:
        there = np.zeros(len(step), bool)
        there[np.searchsorted(step, signal.step)] = True
        cells.append((there, signal.value))
    heads, fixed = _fixed(chart, step)
    return Table(chart.title, [*heads, *(trace.name for trace, _ in series)], fixed, cells)


def _fixed(chart: Chart, step: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    if chart.kind == "profile":
        return ["depth", "layer"], [step, np.array([chart.names[place] for place in step.tolist()], object)]
    if chart.x_per_unit != 1.0:
        return [chart.x_title], [step / chart.x_per_unit]
    if chart.axis is None:
        return ["step"], [step]
    # Of the line as it stands: what a later attempt took over has its own axis, and is told by its step.
    return ["step", chart.x_title], [step, chart.axis.of(step)]


def _inside(trace: Trace, chart: Chart, window: Window) -> Signal:
    signal = trace.signal
    if trace.smoothing:
        signal = smoothed(signal, trace.smoothing, trace.restarts)
    whole = signal.whole() if isinstance(signal, LongSignal) else signal
    if chart.kind == "profile":
        return whole
    return whole.between(*steps_of(trace, chart, window))


def _matrix_table(chart: Chart, window: Window) -> Table:
    assert chart.matrix is not None
    matrix = chart.matrix()
    low, high = rows_within(matrix.step, *bounds_of(chart, window))
    _check_size((high - low) * len(matrix.names))
    step, value, present = whole_matrix(matrix, low, high)
    cells = [(present[:, place], value[present[:, place], place]) for place in range(len(matrix.names))]
    return Table(chart.title, ["step", *matrix.names], [step], cells)


def _check_size(cells: int) -> None:
    if cells > MOST_CELLS:
        raise ValueError(
            f"The window holds {cells} values; at most {MOST_CELLS} are accepted. Zoom in, or take them from the run "
            "with monitor.open_run(...).frame()"
        )


def lines(table: Table) -> Iterator[str]:
    """The file, piece by piece; a value that was not recorded is an empty field, a non-finite one NaN, inf or -inf."""
    yield _written([[_plain(head) for head in table.heads]])
    places = [np.cumsum(there) for there, _ in table.cells]
    for first in range(0, len(table.fixed[0]), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        columns = [
            [_plain(value) if isinstance(value, str) else repr(value) for value in column[rows].tolist()]
            for column in table.fixed
        ]
        for (there, value), place in zip(table.cells, places, strict=True):
            own = there[rows]
            texts = iter([_number(one) for one in value[place[rows][own] - 1].tolist()])
            columns.append([next(texts) if has else "" for has in own.tolist()])
        yield _written(zip(*columns, strict=True))


def _number(value: float) -> str:
    return "NaN" if value != value else repr(value)


def _plain(text: str) -> str:
    """A name from outside as a spreadsheet must take it: as text, never as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _written(rows: Iterable[Sequence[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
