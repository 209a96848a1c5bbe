"""One answer for the live grid: chart descriptions in, one binary message out, without what the browser already has.

Layout of a message: uint32 little-endian length N of the header, N bytes of JSON, padding to a multiple of 8, then the
arrays. A chart refers to an array as ``[offset, length, type]``, the offset counted from the end of the padding, the
type one of ``u1 u4 i4 f4 f8``, little-endian, aligned to 8. Values are reduced to the extremes of each pixel column;
non-finite ones travel apart and are never dropped, only counted together when they share a pixel column.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.charts.describe import Axis, Chart, Mark, Trace
from app.charts.smooth import smoothed
from app.heatmap import colour_scale, picture_of, quantise, rows_within, told_until
from monitor.runfile.zoom import LongSignal, Zoomed, zoomed
from monitor.signals import Signal

NAN, POSITIVE, NEGATIVE = 0, 1, 2
"""What a non-finite mark is: an index into ``monitor.runfile.zoom.KINDS``."""

CHART_HEAD = 34
"""Pixels of a chart beside its ``height``: its title and what is between two of them."""
CURVES = "curves."
"""Begins the name of the version of what is marked on a chart's curves."""
RAW_ROWS = 600_000
"""No window holds more cells of a heatmap than this after reduction: a screen has fewer (our judgement)."""


@dataclass(frozen=True, slots=True)
class Window:
    """What the browser asks for."""

    buckets: int = 500
    """Pixel columns of a chart."""
    start: float | None = None
    stop: float | None = None
    """Zoomed range in units of the x axis; None is open."""


@dataclass(slots=True)
class Blob:
    """Arrays on their way to the browser, each aligned to 8 bytes."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, array: np.ndarray) -> list[int | str]:
        """Append ``array`` and return its ``[offset, length, type]``."""
        code = array.dtype.str[1:]
        raw = np.ascontiguousarray(array).tobytes()
        reference: list[int | str] = [self.size, len(array) if array.ndim == 1 else array.size, code]
        raw += b"\0" * (-len(raw) % 8)
        self.parts.append(raw)
        self.size += len(raw)
        return reference


def pack(header: dict[str, Any], blob: Blob) -> bytes:
    """The message of ``header`` and the arrays it refers to."""
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    text += b" " * (-(4 + len(text)) % 8)
    return b"".join((struct.pack("<I", len(text)), text, *blob.parts))


def unpack(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and arrays of a message; the arrays of ``[offset, length, type]`` are read with ``array_at``."""
    (length,) = struct.unpack_from("<I", message)
    return json.loads(message[4 : 4 + length]), message[4 + length :]


def array_at(body: bytes, reference: Sequence[Any]) -> np.ndarray:
    """One array of a message."""
    offset, length, code = reference
    return np.frombuffer(body, dtype=f"<{code}", count=length, offset=offset)


# ---- what changed -------------------------------------------------------------------------------------------------


def word_of(parts: Iterable[object]) -> str:
    """A short word that is another when ``parts`` are."""
    return hashlib.blake2b(repr(tuple(parts)).encode(), digest_size=8).hexdigest()


def chart_version(chart: Chart, window: Window, marks: Sequence[Mark]) -> str:
    """A short word that changes when the picture of ``chart`` in ``window`` would change.

    Signals only grow, and a late value makes its signal longer: the length within the window and its ends are enough.
    """
    parts: list[object] = [chart.id, chart.title, chart.unit, chart.log, chart.x_title, window]
    if chart.kind == "profile":
        return word_of(
            parts + [(trace.name, trace.role, _read(trace.signal).value.tobytes()) for trace in chart.traces]
        )
    low, high = bounds_of(chart, window)
    for trace in chart.traces:
        inside = trace.signal.step[slice(*rows_within(trace.signal.step, *steps_of(trace, chart, window)))]
        parts += [
            trace.name,
            trace.role,
            trace.colour,
            len(inside),
            *_x_of(trace, chart, inside[[0, -1][: len(inside)]]),
        ]
        parts.append(trace.smoothing)
    if chart.kind == "heat" and chart.matrix is not None:
        matrix = chart.matrix()
        at = slice(*rows_within(matrix.step, low, told_until(matrix, high)))
        parts += [
            matrix.stat,
            matrix.names,
            len(matrix.step[at]),
            *_places(chart.axis, _ends(matrix.step[at])),
            *colour_scale(matrix, chart.scale, chart.limit),
        ]
    if chart.kind == "events":
        parts += [mark for mark in marks if (low is None or mark.step >= low) and (high is None or mark.step <= high)]
    return word_of(parts)


def curve_version(chart: Chart) -> str:
    """As ``chart_version``, of the marks on its curves: they come later than the values, and are sent without them."""
    # Not the last step of an incident that lasts: on a curve it is not shown, and it moves with every step.
    return word_of([[(mark.step, mark.severity, mark.text) for mark in trace.marks] for trace in chart.traces])


def _ends(step: np.ndarray) -> tuple[int, int]:
    return (int(step[0]), int(step[-1])) if len(step) else (0, 0)


def _places(axis: Axis | None, steps: Sequence[float]) -> list[float]:
    """Where ``steps`` stand on the x axis."""
    return axis.of(np.array(steps)).tolist() if axis else [float(step) for step in steps]


def bounds_of(chart: Chart, window: Window) -> tuple[int | None, int | None]:
    """First and last step of ``chart`` in ``window``; None is open."""
    if chart.axis:
        return chart.axis.steps(window.start, window.stop)
    low = None if window.start is None else math.floor(window.start * chart.x_per_unit)
    high = None if window.stop is None else math.ceil(window.stop * chart.x_per_unit)
    return low, high


def steps_of(trace: Trace, chart: Chart, window: Window) -> tuple[int | None, int | None]:
    """The first and the last step of ``trace`` in ``window``; None is open."""
    return trace.axis.steps(window.start, window.stop) if trace.axis else bounds_of(chart, window)


def _x_of(trace: Trace, chart: Chart, step: np.ndarray) -> np.ndarray:
    return trace.axis.of(step) if trace.axis else _x(step, chart.x_per_unit)


# ---- the message --------------------------------------------------------------------------------------------------


def extent(charts: Sequence[Chart], marks: Sequence[Mark] = (), axis: Axis | None = None) -> tuple[float, float] | None:
    """First and last x of everything that is shown, marks included; None when there are no points yet.

    What is folded away counts when there is nothing else: a derived signal is not made for its ends.
    """
    shown = [chart for chart in charts if not folded(chart)]
    return _extent(shown, marks, axis) or _extent(charts, marks, axis)


def _extent(charts: Sequence[Chart], marks: Sequence[Mark], axis: Axis | None) -> tuple[float, float] | None:
    ends: list[float] = []
    for chart in charts:
        if chart.kind == "profile":
            continue
        for trace in chart.traces:
            if len(trace.signal):
                ends += _x_of(trace, chart, np.array(_ends(trace.signal.step))).tolist()
        if chart.kind == "heat" and chart.matrix is not None and len(step := chart.matrix().step):
            ends += _places(chart.axis, _ends(step))
    ends = [end for end in ends if math.isfinite(end)]
    if ends:
        ends += _places(axis, [mark.step for mark in marks])
    return (min(ends), max(ends)) if ends else None


def build(
    charts: Sequence[Chart],
    window: Window,
    *,
    marks: Sequence[Mark] = (),
    have: dict[str, str] | None = None,
    want: set[str] | None = None,
    screen: float = math.inf,
    status: dict[str, Any] | None = None,
    axis: Axis | None = None,
) -> bytes | None:
    """The message for ``window``; None when the browser has it all.

    Args:
        charts: all charts of the view, in order.
        have: chart id (and ``layout``, ``marks``, ``status``, and ``CURVES`` with a chart's id) to the version that the
            browser has. A chart is sent with the marks on its curves; when only they changed, they are sent alone.
        want: ids of the charts in sight; None for all that are not folded away,
        screen: of which those are taken that begin within so many pixels.
        status: words for the head of the grid; sent when they changed.
        axis: what the steps of ``marks`` are turned into; None leaves them.
    """
    have = have or {}
    span = extent(charts, marks, axis)
    layout = [_slot(chart) for chart in charts]
    shown_marks = thin_marks(marks, window, span, axis)
    incidents = _places(axis, [mark.step for mark in marks if mark.kind == "incident"])
    pieces = {"layout": layout, "marks": shown_marks, "incidents": incidents, "status": status, "extent": span}
    header: dict[str, Any] = {"charts": [], "curves": {}, "versions": {}}
    for name, value in pieces.items():
        version = word_of([json.dumps(value, sort_keys=True)])
        if have.get(name) != version:
            header[name] = value
            header["versions"][name] = version
    blob, height = Blob(), 0
    for chart in charts:
        if want is None:
            if folded(chart) or height > screen:
                continue
            height += chart.height + CHART_HEAD
        elif chart.id not in want:
            continue
        version, on_curves = chart_version(chart, window, marks), f"{CURVES}{chart.id}"
        if new := have.get(chart.id) != version:
            header["charts"].append({"id": chart.id, "version": version, **_body(chart, window, blob)})
        if on_curves not in have and not any(trace.marks for trace in chart.traces):
            continue
        told = curve_version(chart)
        if have.get(on_curves) != told:
            header["versions"][on_curves] = told
            if not new:
                header["curves"][chart.id] = [_on_curve(trace, chart, window) for trace in chart.traces]
    if not header["charts"] and not header["versions"]:
        return None
    return pack(header, blob)


def folded(chart: Chart) -> bool:
    """Whether the chart's section is closed to begin with."""
    return bool(chart.section) and not chart.open


def _slot(chart: Chart) -> dict[str, Any]:
    return {
        "id": chart.id,
        "title": chart.title,
        "unit": chart.unit,
        "kind": chart.kind,
        "height": chart.height,
        "log": chart.log,
        "zero": chart.zero,
        "help": chart.help,
        "x_title": chart.x_title,
        "x_kind": chart.x_kind,
        "section": chart.section,
        "open": chart.open,
    }


def _body(chart: Chart, window: Window, blob: Blob) -> dict[str, Any]:
    match chart.kind:
        case "heat":
            return _heat_body(chart, window, blob)
        case "parts":
            return _parts_body(chart, window, blob)
        case "events":
            return {"traces": []}
        case "profile":
            whole = Window(max(1, len(chart.names)))
            traces = [_trace_body(trace, chart, whole, blob) for trace in chart.traces]
            for trace in traces:  # the last layer is not the latest value
                trace.pop("last", None), trace.pop("last_x", None)
            return {"traces": traces, "names": list(chart.names)}
        case _:
            return {"traces": [_trace_body(trace, chart, window, blob) for trace in chart.traces]}


def _trace_body(trace: Trace, chart: Chart, window: Window, blob: Blob) -> dict[str, Any]:
    low, high = steps_of(trace, chart, window)
    signal = _drawn(trace)
    seen = zoomed(signal, low, high, window.buckets)
    step, value = with_gaps(seen)
    step, value = _with_neighbours(step, value, signal, low, high)
    body: dict[str, Any] = {
        "name": trace.name,
        "colour": trace.colour,
        "role": trace.role,
        "x": blob.add(_x_of(trace, chart, step)),
        "y": blob.add(narrow(value)),
        "count": seen.count,
    }
    if len(signal):
        last = len(signal) - 1
        body["last"] = _json_number(_values(signal, last, last + 1)[0])
        body["last_x"] = float(_x_of(trace, chart, signal.step[-1:])[0])
    if trace.marks:
        body["incidents"] = _on_curve(trace, chart, window)
    if trace.smoothing:  # what it was made from is drawn behind it, and says the rest
        return body | {"every": round(len(trace.signal) / max(1, len(signal)))}
    nan, posinf, neginf = seen.nonfinite
    body |= {
        "ratio": round(seen.ratio, 2),
        "nan": nan,
        "posinf": posinf,
        "neginf": neginf,
        "nonpositive": seen.nonpositive,
    }
    if not seen.nonpositive_exact:
        body["at_least"] = True
    if len(seen.mark_step):
        at, kind, count = _x_of(trace, chart, seen.mark_step), seen.mark_kind, seen.mark_count
        body["marks"] = {"x": blob.add(at), "kind": blob.add(kind), "count": blob.add(count)}
    return body


def _drawn(trace: Trace) -> Signal | LongSignal:
    return smoothed(trace.signal, trace.smoothing, trace.restarts) if trace.smoothing else trace.signal


def _on_curve(trace: Trace, chart: Chart, window: Window) -> list[dict[str, Any]]:
    """The marks of a trace that are in sight: at the last sample until then, without a height where that has none."""
    if not trace.marks:
        return []
    low, high = steps_of(trace, chart, window)
    signal, shown = _drawn(trace), []
    for mark in trace.marks:
        row = int(np.searchsorted(signal.step, mark.step, side="right")) - 1
        if row < 0 or (low is not None and mark.step < low) or (high is not None and mark.step > high):
            continue
        value = float(_values(signal, row, row + 1)[0])
        shown.append(
            {
                "x": float(_x_of(trace, chart, np.array([mark.step]))[0]),
                "y": value if math.isfinite(value) else None,
                "step": mark.step,
                "severity": mark.severity,
                "text": mark.text[:300],
            }
        )
    return shown


def _read(signal: Signal | LongSignal) -> Signal:
    return signal.whole() if isinstance(signal, LongSignal) else signal


def _values(signal: Signal | LongSignal, start: int, stop: int) -> np.ndarray:
    """A few of the values, without reading the others."""
    if isinstance(signal, LongSignal):
        return np.array([signal.at(row) for row in range(start, stop)])
    return signal.value[start:stop]


def _json_number(value: float) -> float | str:
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"


def _x(step: np.ndarray, per_unit: float) -> np.ndarray:
    if per_unit != 1.0:
        return step.astype(np.float64) / per_unit
    fits = not len(step) or (step[0] >= -(2**31) and step[-1] < 2**31)
    return step.astype(np.int32 if fits else np.float64)


def narrow(value: np.ndarray) -> np.ndarray:
    """``value`` as float32 where nothing but digits is lost; as float64 where a value would overflow or become 0."""
    finite = np.abs(value[np.isfinite(value) & (value != 0)])
    if len(finite) and (finite.max() > 1e38 or finite.min() < 1e-37):
        return value.astype(np.float64)
    return value.astype(np.float32)


def with_gaps(seen: Zoomed) -> tuple[np.ndarray, np.ndarray]:
    """The samples to draw, with a NaN between two neighbours that a non-finite sample lies between: the line breaks."""
    if not len(seen.gap_step) or not len(seen.step):
        return seen.step, seen.value
    position = np.searchsorted(seen.step, seen.gap_step)
    first_of_gap = np.concatenate(([True], position[1:] != position[:-1]))
    gap_step, position = seen.gap_step[first_of_gap], position[first_of_gap]
    return np.insert(seen.step, position, gap_step), np.insert(seen.value, position, np.nan)


def _with_neighbours(
    step: np.ndarray, value: np.ndarray, signal: Signal | LongSignal, low: int | None, high: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """One more sample on each side of the window, so that lines reach its edges."""
    start, stop = rows_within(signal.step, low, high)
    before = (max(0, start - 1), start) if low is not None else (0, 0)
    after = (stop, min(len(signal), stop + 1)) if high is not None else (0, 0)
    pieces = (_gapped(_values(signal, *before)), value, _gapped(_values(signal, *after)))
    return np.concatenate((signal.step[slice(*before)], step, signal.step[slice(*after)])), np.concatenate(pieces)


def _gapped(value: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(value), value, np.nan)


def _parts_body(chart: Chart, window: Window, blob: Blob) -> dict[str, Any]:
    """The whole step as a line with its extremes; the parts as means over equal shares of the window."""
    whole, *parts = chart.traces
    low, high = bounds_of(chart, window)
    inside = whole.signal.step[slice(*rows_within(whole.signal.step, low, high))]
    body: dict[str, Any] = {"traces": [_trace_body(whole, chart, window, blob)]}
    if not len(inside):
        return body
    columns = int(min(window.buckets // 2, max(1, inside[-1] - inside[0] + 1), max(1, len(inside))))
    edges = np.linspace(inside[0], inside[-1] + 1, columns + 1)
    steps = np.diff(np.searchsorted(inside, np.ceil(edges).astype(np.int64)))
    filled = steps > 0
    centre = ((edges[:-1] + edges[1:] - 1) / 2)[filled]
    centre = chart.axis.of(centre) if chart.axis else centre / chart.x_per_unit
    for part in parts:
        taken = part.signal.between(low, high)
        mean = _sums(taken, edges)[filled] / steps[filled]
        body["traces"].append(
            {
                "name": part.name,
                "colour": part.colour,
                "role": "part",
                "x": blob.add(centre.astype(np.float64)),
                "y": blob.add(mean.astype(np.float32)),
                "last": _json_number(_values(part.signal, len(part.signal) - 1, len(part.signal))[0])
                if len(part.signal)
                else None,
            }
        )
    return body


def _sums(signal: Signal, edges: np.ndarray) -> np.ndarray:
    """Sum of the finite values with ``edges[i] <= step < edges[i + 1]``."""
    bounds = np.searchsorted(signal.step, np.ceil(edges).astype(np.int64))
    value = signal.value[: bounds[-1]]
    sums, filled = np.zeros(len(edges) - 1), np.diff(bounds) > 0
    if filled.any():
        sums[filled] = np.add.reduceat(np.where(np.isfinite(value), value, 0.0), bounds[:-1][filled])
    return sums


def _heat_body(chart: Chart, window: Window, blob: Blob) -> dict[str, Any]:
    assert chart.matrix is not None
    matrix = chart.matrix()
    low, high = bounds_of(chart, window)
    columns = int(min(window.buckets * 3 // 5, max(20, RAW_ROWS // max(1, len(matrix.names)))))
    seen = picture_of(matrix, chart.keep, columns, low, high)
    bottom, top = colour_scale(matrix, chart.scale, chart.limit)
    cells = quantise(seen.value, seen.nonfinite, seen.present, bottom, top, chart.scale)
    body: dict[str, Any] = {
        "names": list(seen.names),
        "edges": blob.add(chart.axis.edges(seen.edges) if chart.axis else seen.edges.astype(np.float64)),
        "cells": blob.add(cells.ravel()),
        "scale": [bottom, top],
        "scale_kind": chart.scale,
        "keep": chart.keep,
        "ratio": 1.0 if seen.at is not None else round(seen.rows / max(1, seen.value.shape[1]), 2),
        "nonfinite": seen.bad,
        "stat": matrix.stat,
        "measured": [seen.rows, seen.span] if seen.span > seen.rows else None,
    }
    if seen.at is not None:
        body["at"] = blob.add(seen.at.astype(np.float64))
    if chart.axis:  # a cell is named by its steps
        body["step_edges"] = blob.add(seen.edges.astype(np.float64))
    return body


# ---- marks --------------------------------------------------------------------------------------------------------

_MOST_LINES = 60
"""Evaluations and checkpoints are lines across the stack only while there are fewer in sight (our judgement)."""


def thin_marks(
    marks: Sequence[Mark], window: Window, span: tuple[float, float] | None, axis: Axis | None = None
) -> list[dict[str, Any]]:
    """The marks in sight, at most one per kind and pixel column, with how many it stands for and if it is a line."""
    start = window.start if window.start is not None else (span[0] if span else 0)
    stop = window.stop if window.stop is not None else (span[1] if span else 0)
    at = zip(
        _places(axis, [mark.step for mark in marks]),
        _places(axis, [mark.step if mark.last_step is None else mark.last_step for mark in marks]),
        marks,
        strict=True,
    )
    inside = [(x, last, mark) for x, last, mark in at if x <= stop and last >= start]
    kinds = [mark.kind for _, _, mark in inside]
    frequent = {kind: kinds.count(kind) > _MOST_LINES for kind in set(kinds)}
    width = max(1e-9, (stop - start) / window.buckets)
    shown: dict[tuple[object, ...], dict[str, Any]] = {}
    for x, last, mark in inside:
        alone = mark.kind in ("incident", "crash", "resume")
        place = (mark.kind, mark.key, mark.step) if alone else (mark.kind, int((x - start) / width))
        if place in shown:
            shown[place]["count"] += 1
            continue
        shown[place] = {
            "step": mark.step,
            "x": x,
            "last": None if mark.last_step is None else last,
            "kind": mark.kind,
            "text": mark.text,
            "severity": mark.severity,
            "key": mark.key,
            "count": 1,
            "line": alone or not frequent[mark.kind],
        }
    return list(shown.values())
