"""A chart of a report: lines as SVG that stretches with the page, words beside it that do not; no script, no style.

The drawing is a square of 1000 by 1000 pulled to whatever room there is; strokes keep their width, and what must keep
its shape, a label or a dot, is text or a round line end. Hence one drawing for wide, narrow and paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from app import text
from app.charts.describe import Chart, Mark, Trace
from app.frame import with_gaps
from monitor.runfile.zoom import Zoomed, zoomed

BUCKETS = 400
"""Columns that a curve is reduced to; each keeps its minimum and maximum."""
SIDE = 1000
LOG_FROM = 100.0
"""A chart whose positive values differ by more than this factor is drawn logarithmically."""
_TICKS = 5
_LARGEST = 8e307
"""Beyond it the difference of two values need not be a number any more; no pixel lies between it and the last one."""
_BAD = ("NaN", "+∞", "−∞")


def figure(chart: Chart, first: int, last: int, marks: Sequence[Mark] = ()) -> str:
    """``chart`` over the steps ``first`` to ``last`` as HTML; empty when nothing was measured there.

    Extremes are kept by the reduction; non-finite values are marks at the upper edge and a count below.
    """
    seen = [(trace, zoomed(trace.signal, first, last, BUCKETS)) for trace in chart.traces]
    seen = [(trace, part) for trace, part in seen if part.count]
    if not seen:
        return ""
    axis = _Axis.of(chart, [part for _, part in seen])
    across = _Across(first, max(last, first + 1))
    inside = [mark for mark in marks if first <= mark.step <= last]
    lines = [_grid(axis, across), *(_mark(mark, across) for mark in inside)]
    lines += [_line(trace, part, axis, across) for trace, part in seen]
    lines += [_nonfinite(part, across) for _, part in seen]
    unit = "" if chart.unit == "1" else f" ({chart.unit})"
    said = f"{chart.title}{unit} over steps {first} to {last}"
    drawing = "".join(lines)
    legend = "".join(_key(trace) for trace, _ in seen) if len(seen) > 1 else ""
    notes = [note for trace, part in seen if (note := _note(trace, part, axis, len(seen) > 1))]
    return (
        f'<figure class="curve"><figcaption><b>{_words(chart.title)}{_words(unit)}</b>{legend}</figcaption>'
        f'<div class="plot"><svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" '
        f'aria-label="{_words(said)}">{drawing}</svg>{axis.labels()}{across.labels()}</div>'
        f'<p class="x">optimizer step</p>{"".join(f"<p class=note>{_words(note)}</p>" for note in notes)}</figure>'
    )


def _words(said: str) -> str:
    return escape(text.plain(said))


@dataclass(frozen=True, slots=True)
class _Axis:
    """The vertical axis: a value's place, from 0 at the bottom to 1 at the top."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, chart: Chart, parts: Sequence[Zoomed]) -> _Axis:
        value = np.clip(np.concatenate([part.value for part in parts]), -_LARGEST, _LARGEST)
        if not len(value):
            return cls(0.0, 1.0, False)
        above = value[value > 0]
        if len(above) and (chart.log or len(above) == len(value)) and above.max() > LOG_FROM * above.min():
            low, high = math.log10(above.min()), math.log10(above.max())
            room = 0.06 * (high - low)
            return cls(low - room, high + room, True)
        low, high = float(value.min()), float(value.max())
        if chart.zero:
            low, high = min(low, 0.0), max(high, 0.0)
        size = max(abs(low), abs(high), 1e-300)
        room = 0.06 * (high - low) if high - low > 1e-9 * size else 0.05 * size
        return cls(low - (0.0 if chart.zero and low == 0 else room), high + room, False)

    def place(self, value: np.ndarray) -> np.ndarray:
        """float64[n] in [0, 1]; what a logarithm cannot show lies on the bottom."""
        if self.log:
            value = np.log10(np.maximum(value, 10.0 ** max(self.low, -307)))
        return np.clip((value / 2 - self.low / 2) / (self.high / 2 - self.low / 2), 0.0, 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """``(place, label)``."""
        if self.log:
            each = max(1, math.ceil((self.high - self.low) / _TICKS))
            whole = range(math.ceil(self.low), math.floor(self.high) + 1)
            decades = [power for power in whole if power % each == 0]
            return [((power - self.low) / (self.high - self.low), _number(10.0**power)) for power in decades]
        values = _round_values(self.low, self.high, _TICKS)
        return list(zip(self.place(np.array(values)).tolist(), map(_number, values), strict=True))

    def labels(self) -> str:
        return "".join(
            f'<span class="y" style="top:{100 * (1 - place):.2f}%">{label}</span>' for place, label in self.ticks()
        )


@dataclass(frozen=True, slots=True)
class _Across:
    """The horizontal axis: steps."""

    first: int
    last: int

    def x(self, step: np.ndarray) -> np.ndarray:
        """float64[n], in the drawing."""
        return (step - self.first) * (SIDE / (self.last - self.first))

    def ticks(self) -> list[tuple[float, str]]:
        """``(x, label)``."""
        values = [value for value in _round_values(self.first, self.last, 6) if value == int(value)]
        return [(float(self.x(np.array(value))), text.count(int(value))) for value in values]

    def labels(self) -> str:
        return "".join(
            f'<span class="t" style="left:{x / SIDE * 100:.2f}%">{label}</span>' for x, label in self.ticks()
        )


def _round_values(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within ``low..high``, about ``most`` of them."""
    rough = (high / most - low / most) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    each = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [float(f"{each * i:.12g}") for i in range(math.ceil(low / each), math.floor(high / each) + 1)]


def _number(value: float) -> str:
    if value == 0 or 1e-4 <= abs(value) < 1e4:
        return f"{value:.6g}".replace("-", "−")
    mantissa, exponent = f"{value:.4e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")


def _grid(axis: _Axis, across: _Across) -> str:
    rows = "".join(f"M0 {SIDE * (1 - place):.1f}H{SIDE}" for place, _ in axis.ticks())
    columns = "".join(f"M{x:.1f} {SIDE}v-20" for x, _ in across.ticks())
    return f'<path class="grid" d="{rows}{columns}M0 {SIDE}H{SIDE}"/>'


def _mark(mark: Mark, across: _Across) -> str:
    """A line where something happened, and a band as long as an incident lasts."""
    x = float(across.x(np.array(mark.step)))
    end = float(across.x(np.array(min(mark.last_step or mark.step, across.last))))
    kind = escape(mark.severity if mark.kind in ("incident", "crash") else "mark")
    band = f'<rect x="{x:.1f}" y="0" width="{end - x:.1f}" height="{SIDE}"/>' if end > x else ""
    words = _words(f"step {mark.step}: {mark.text}")
    return f'<g class="at {kind}"><title>{words}</title>{band}<path d="M{x:.1f} 0V{SIDE}"/></g>'


def _line(trace: Trace, part: Zoomed, axis: _Axis, across: _Across) -> str:
    step, value = with_gaps(part)
    if not len(step):
        return ""
    x = across.x(step)
    y = SIDE * (1 - axis.place(value))
    points = [f"{a:.1f} {b:.1f}" if b == b else "" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    pieces: list[str] = []
    alone = []
    for before, point, after in zip(["", *points[:-1]], points, [*points[1:], ""], strict=True):
        if point:
            pieces.append(f"{'L' if before else 'M'}{point}")
            if not before and not after:
                alone.append(point)
    dots = [point for point in points if point] if trace.role == "points" else alone
    drawn = f'<path class="{trace.role}" d="{"".join(pieces)}"/>' if pieces else ""
    drawn += f'<path class="dots" d="{"".join(f"M{point}h0" for point in dots)}"/>' if dots else ""
    return f'<g class="c{trace.colour % 10}">{drawn}</g>'


def _nonfinite(part: Zoomed, across: _Across) -> str:
    if not len(part.mark_step):
        return ""
    ticks = "".join(f"M{x:.1f} 0v60" for x in np.unique(across.x(part.mark_step)).tolist())
    return f'<path class="bad" d="{ticks}"/>'


def _key(trace: Trace) -> str:
    return f' <span class="key c{trace.colour % 10} {trace.role}">{_words(trace.name)}</span>'


def _note(trace: Trace, part: Zoomed, axis: _Axis, named: bool) -> str:
    """What of a curve is not a line: the non-finite values, the reduction, what a logarithm leaves out."""
    said = [f"{text.count(amount)} {kind}" for amount, kind in zip(part.nonfinite, _BAD, strict=True) if amount]
    if said:
        said[-1] += f", the first at step {text.count(int(part.mark_step[0]))}"
    if axis.log and part.nonpositive:
        least = "" if part.nonpositive_exact else "at least "
        said.append(f"{least}{text.count(part.nonpositive)} of zero or less, drawn at the bottom")
    if part.ratio > 1.005:
        said.append(f"reduced {part.ratio:.0f}:1, extremes kept")
    return f"{f'{trace.name}: ' if named else ''}{', '.join(said)}" if said else ""
