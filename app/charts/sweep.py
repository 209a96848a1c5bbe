"""The pictures of a sweep: best so far, the trials on parallel axes, and which field decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from app import text
from trainer.sweep import Sweep, Trial
from trainer.sweep.record import STATES
from trainer.sweep.space import Choice, Range, Space

MUTED = "#7c8794"
"""Reads on both backgrounds."""
_BEST_TO_WORST = [[0.0, "#1c8ad0"], [0.5, "#8f8f8f"], [1.0, "#dd7413"]]
"""Blue to orange through grey: read on both backgrounds and with the common colour deficiencies."""
_SYMBOLS = dict(
    zip(STATES, ("circle-open", "circle", "triangle-down-open", "x", "square-open", "diamond-open"), strict=True)
)


MOST_TICKS = 12


def progress_figure(sweep: Sweep) -> go.Figure:
    """The value of each trial, by how it ended, and the best of the complete ones so far.

    A trial without a finite value stands at the upper edge with the sign of its end: it is not left out.
    """
    finite = [t.value for t in sweep.trials if t.value is not None and math.isfinite(t.value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    log = low > 0 and high / low > 50
    edge = high * 1.5 if log else high + 0.12 * ((high - low) or abs(high) or 1.0)
    figure = go.Figure()
    for state in STATES:
        trials = [trial for trial in sweep.trials if trial.state == state]
        if not trials:
            continue
        known = [trial.value is not None and math.isfinite(trial.value) for trial in trials]
        figure.add_scatter(
            x=[trial.number for trial in trials],
            y=[trial.value if fine else edge for trial, fine in zip(trials, known, strict=True)],
            mode="markers", name=state, marker={"symbol": _SYMBOLS[state], "size": 9},
            text=[_hover(trial, sweep) for trial in trials], hoverinfo="text",
        )  # fmt: skip
    step, best = best_so_far(sweep)
    if step:
        figure.add_scatter(x=step, y=best, mode="lines", line={"shape": "hv"}, name="best so far", hoverinfo="y")
    last = sweep.trials[-1].number if sweep.trials else 0
    figure.update_xaxes(title="trial", range=[-0.5, last + 0.5], dtick=max(1, last // 10), zeroline=False)
    figure.update_yaxes(title=text.plotly(str(sweep.record.get("metric"))), type="log" if log else "linear")
    figure.update_layout(
        height=320, margin={"l": 10, "r": 10, "t": 10, "b": 10}, legend={"orientation": "h", "y": 1.12}
    )
    return figure


def best_so_far(sweep: Sweep) -> tuple[list[int], list[float]]:
    """Trial number and the best value of the complete trials up to it."""
    numbers: list[int] = []
    best: list[float] = []
    better = min if sweep.minimise else max
    for trial in sweep.trials:
        if trial.result is not None:
            numbers.append(trial.number)
            best.append(better(trial.result, best[-1]) if best else trial.result)
    return numbers, best


def parallel_figure(sweep: Sweep, space: Space) -> go.Figure | None:
    """A line for each trial with a finite value, over an axis per field and one for the metric; None without any."""
    trials = [trial for trial in sweep.trials if trial.value is not None and math.isfinite(trial.value)]
    trials = [trial for trial in trials if all(name in trial.params for name in space)]
    if not trials:
        return None
    values = np.array([trial.value for trial in trials], dtype=float)
    log = values.min() > 0 and values.max() / values.min() > 50
    shown = np.log10(values) if log else values
    axes = [_axis(name, one, trials) for name, one in space.items()]
    axes.append(
        {"label": text.plotly(str(sweep.record.get("metric"))), "values": shown} | (_decades(shown) if log else {})
    )
    figure = go.Figure(
        go.Parcoords(
            dimensions=axes,
            line={"color": shown, "colorscale": _BEST_TO_WORST, "reversescale": not sweep.minimise},
            labelfont={"size": 13, "shadow": "none"},
            tickfont={"size": 11, "shadow": "none"},
            rangefont={"size": 11, "shadow": "none"},
            unselected={"line": {"color": MUTED, "opacity": 0.15}},
        )
    )
    figure.update_layout(height=340, margin={"l": 70, "r": 50, "t": 50, "b": 20})
    return figure


def importance_figure(shares: Mapping[str, float]) -> go.Figure:
    """A bar for each field."""
    names = list(shares)[::-1]
    figure = go.Figure(
        go.Bar(
            x=[shares[name] for name in names], y=[text.plotly(name) for name in names], orientation="h",
            text=[text.number(shares[name], 2) for name in names], hoverinfo="skip",
        )
    )  # fmt: skip
    figure.update_xaxes(range=[0, 1.1], showgrid=False)
    figure.update_layout(height=60 + 34 * len(names), margin={"l": 10, "r": 10, "t": 10, "b": 10})
    return figure


def _hover(trial: Trial, sweep: Sweep) -> str:
    lines = [f"trial {trial.number}, {trial.state}: {text.number(trial.value)}"]
    lines += [f"{text.plotly(name)} = {text.plotly(_said(value))}" for name, value in trial.params.items()]
    return "<br>".join(lines + ([text.plotly(trial.reason)] if trial.reason else []))


def _said(value: Any) -> str:
    return text.number(value) if isinstance(value, float) else "none" if value is None else str(value)


def _axis(name: str, one: Range | Choice, trials: Sequence[Trial]) -> dict[str, Any]:
    label = text.plotly(name.rpartition(".")[2])
    given = [trial.params[name] for trial in trials]
    if isinstance(one, Choice):
        places = {repr(value): place for place, value in enumerate(one.values)}
        ticks = {"tickvals": list(places.values()), "ticktext": [text.plotly(_said(value), 24) for value in one.values]}
        return {"label": label, "values": [places.get(repr(value), 0) for value in given]} | ticks
    numbers = np.array(given, dtype=float)
    if not one.log:
        inside = range(int(one.low), int(one.high) + 1)
        ticks = {"tickvals": list(inside)} if one.whole and len(inside) <= MOST_TICKS else {}
        return {"label": label, "values": numbers, "range": [one.low, one.high]} | ticks
    ends = np.log10([one.low, one.high])
    return {"label": label, "values": np.log10(numbers), "range": ends.tolist()} | _decades(ends)


def _decades(exponents: Any) -> dict[str, Any]:
    """Ticks of a logarithmic axis, which Plotly does not have for parallel axes: its ends and the decades between."""
    low, high = float(np.min(exponents)), float(np.max(exponents))
    inner = [float(e) for e in range(math.ceil(low + 0.15), math.floor(high - 0.15) + 1)]
    places = [low, *inner, high]
    return {"tickvals": places, "ticktext": [text.number(10**place, 2) for place in places]}
