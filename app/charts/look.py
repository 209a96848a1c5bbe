"""How a person looks at a run: along which axis, how smooth, which metrics, pinned or not, and which attempt.

Each of these is a step from charts to charts, so that the story itself knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.charts.axes import AXES, axis_along
from app.charts.describe import Axis, Chart, Trace
from app.charts.metric_search import LONGEST_NAME, checked_pattern
from app.charts.smooth import MOST
from monitor.runfile.reader import Run

MOST_PINS = 24
"""Beyond these a pin tells nothing apart (our judgement)."""
_ALWAYS = ("events",)
"""Charts that no search leaves out and no pin goes before."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was chosen; the defaults show what was recorded, step by step."""

    axis: str = "step"
    """One of ``AXES``."""
    smoothing: float = 0.0
    """Weight of the moving average (``app.charts.smooth``)."""
    pattern: str = ""
    """Regular expression that the title or a metric of a chart has to match."""
    pins: tuple[str, ...] = ()
    """Ids of the charts that come first."""
    attempt: int | None = None
    """The attempt that is looked at; None: the run as it stands."""


def look_of(query: Mapping[str, str]) -> Look:
    """The look that an address asks for: ``axis``, ``smooth``, ``metrics``, ``pins`` (with commas), ``attempt``.

    Raises:
        ValueError: a value that is not accepted, and what is.
    """
    axis, attempt = query.get("axis") or "step", query.get("attempt") or ""
    if axis not in AXES:
        raise ValueError(f"axis is {axis[:40]!r}; accepted: {', '.join(AXES)}")
    try:
        smoothing = float(query.get("smooth") or 0.0)
    except ValueError:
        smoothing = -1.0
    if not 0 <= smoothing <= MOST:
        raise ValueError(f"smooth is {query.get('smooth', '')[:40]!r}; accepted: 0 to {MOST}")
    if attempt and not (attempt.isascii() and attempt.isdecimal() and len(attempt) <= 9):
        raise ValueError(f"attempt is {attempt[:40]!r}; the number of an attempt is accepted")
    pattern = query.get("metrics") or ""
    checked_pattern(pattern)
    pins = tuple(dict.fromkeys(pin for pin in (query.get("pins") or "").split(",") if pin))[:MOST_PINS]
    return Look(axis, smoothing, pattern, pins, int(attempt) if attempt else None)


def looked_at(charts: Sequence[Chart], run: Run, look: Look) -> list[Chart]:
    """``charts`` of ``run`` as ``look`` asks for them."""
    shown = of_attempt(charts, run, look.attempt)
    shown = smoothed_charts(shown, run, look)
    shown = along(shown, run, look.axis, look.attempt)
    return pinned(searched(shown, look.pattern), look.pins)


# ---- which attempt ------------------------------------------------------------------------------------------------


def of_attempt(charts: Sequence[Chart], run: Run, attempt: int | None) -> list[Chart]:
    """The curves of one attempt, with the run as it stands faded behind them; an unknown one changes nothing."""
    if attempt is None or attempt not in {known.number for known in run.attempts}:
        return list(charts)
    return [chart if chart.kind in ("heat", "profile") else _of_attempt(chart, run, attempt) for chart in charts]


def _of_attempt(chart: Chart, run: Run, attempt: int) -> Chart:
    own = [trace for trace in chart.traces if trace.role != "faded"]
    behind = [replace(trace, role="faded") for trace in own if trace.role in ("line", "points")]
    lines = [
        replace(trace, signal=run.series(trace.signal.name, attempt=attempt), attempt=attempt)
        for trace in own
        if trace.signal.name in run.names
    ]
    lines = [trace for trace in lines if len(trace.signal) or chart.kind == "parts"]
    # The stack of a step's parts counts from its first curve: nothing may lie before that.
    return replace(chart, traces=tuple(lines if chart.kind == "parts" else (*behind, *lines)))


# ---- how smooth ---------------------------------------------------------------------------------------------------


def smoothed_charts(charts: Sequence[Chart], run: Run, look: Look) -> list[Chart]:
    """The curves as moving averages, with what was recorded behind them."""
    if not look.smoothing:
        return list(charts)
    restarts = tuple(piece.after for piece in run.line[1:]) if look.attempt is None else ()
    return [_smoothed(chart, look.smoothing, restarts) if chart.kind == "lines" else chart for chart in charts]


def _smoothed(chart: Chart, weight: float, restarts: tuple[int, ...]) -> Chart:
    smooth = [trace for trace in chart.traces if trace.role in ("line", "points")]
    others = [trace for trace in chart.traces if trace.role not in ("line", "points")]
    raw = [replace(trace, name=f"{trace.name}, as recorded", role="raw") for trace in smooth]
    lines = [replace(trace, role="line", smoothing=weight, restarts=restarts) for trace in smooth]
    return replace(chart, traces=(*others, *raw, *lines))


# ---- along which axis ---------------------------------------------------------------------------------------------


def along(charts: Sequence[Chart], run: Run, kind: str, attempt: int | None = None) -> list[Chart]:
    """The charts on another axis than the step; steps that were taken over stand where they were made."""
    if kind == "step":
        return list(charts)
    begin = _begin(run, kind, attempt)
    axes: dict[int | None, Axis] = {}

    def axis_of(number: int | None) -> Axis:
        if number not in axes:
            found = axis_along(run, kind, number)
            axes[number] = Axis(found.step, found.x - begin)
        return axes[number]

    main = axis_of(attempt)
    if not len(main.x):
        return list(charts)
    return [
        chart
        if chart.kind == "profile"
        else replace(
            chart,
            axis=main,
            x_title=AXES[kind].title,
            x_kind=AXES[kind].kind,
            traces=tuple(_along(trace, axis_of(trace.attempt)) for trace in chart.traces),
        )
        for chart in charts
    ]


def _begin(run: Run, kind: str, attempt: int | None) -> float:
    """What the axis is counted from: the first step of all that is shown, where it is a duration."""
    if kind != "relative time":
        return 0.0
    numbers = [known.number for known in run.attempts] if attempt is None else [attempt]
    first = [float(times.value[0]) for number in numbers if len(times := run.times(attempt=number))]
    finite = [moment for moment in first if np.isfinite(moment)]
    return min(finite, default=0.0)


def _along(trace: Trace, axis: Axis) -> Trace:
    return replace(trace, axis=axis) if len(axis.x) else trace


# ---- which metrics, in which order --------------------------------------------------------------------------------


def searched(charts: Sequence[Chart], pattern: str) -> list[Chart]:
    """The charts that ``pattern`` is found in, none of them folded away."""
    if not pattern:
        return list(charts)
    wanted = checked_pattern(pattern)
    return [
        replace(chart, open=True)
        for chart in charts
        if chart.id in _ALWAYS or any(wanted.search(word[:LONGEST_NAME]) for word in _words_of(chart))
    ]


def _words_of(chart: Chart) -> list[str]:
    stat = [chart.matrix().stat] if chart.matrix is not None else []
    return [chart.title, *(trace.signal.name for trace in chart.traces), *stat]


def pinned(charts: Sequence[Chart], pins: Sequence[str]) -> list[Chart]:
    """The charts called ``pins`` first, in their order, out of the sections they lay in."""
    by_id = {chart.id: chart for chart in charts}
    first = [replace(by_id[pin], section="") for pin in pins if pin in by_id and pin not in _ALWAYS]
    taken = {chart.id for chart in first}
    head = [chart for chart in charts if chart.id in _ALWAYS]
    return [*head, *first, *(chart for chart in charts if chart.id not in taken and chart.id not in _ALWAYS)]
