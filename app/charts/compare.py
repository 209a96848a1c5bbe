"""The charts of several runs laid over each other: a colour per run, one axis for all, with their forks and incidents.

Long runs are read through their levels, so that a comparison costs the same however long its runs are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from app import text
from app.charts.axes import AXES, axis_along
from app.charts.describe import Axis, Chart, Mark, Trace
from app.charts.measures import LAYER_MEASURES, is_sparse
from app.charts.metric_search import LONGEST_NAME, checked_pattern
from monitor.runfile.reader import Run
from monitor.runfile.zoom import LongSignal, drawn
from monitor.signals import Signal, spec_of, unit_of

MOST_CHARTS = 24
"""More would be scrolled past (our judgement); the search narrows them down."""
SHOWN = (
    "train_loss", "val_loss", "grad_norm_preclip", "update_to_weight_ratio", "lr", "loss_scale", "val_accuracy",
    "tokens_per_s", "step_time_s",
)  # fmt: skip
"""What is shown of all metrics until some are searched for."""
_FROM_ZERO = {"lr", "tokens_per_s", "step_time_s"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of a comparison."""

    run: Run
    label: str
    """Its name, with the id where another one has the same."""
    colour: int
    """Index into the theme's categorical colours: its place in the comparison."""
    marks: tuple[Mark, ...] = ()
    """Its incidents."""
    parent: Run | None = None
    """What it was forked from, where that can be read and is no part of the comparison itself."""
    fork_step: int | None = None
    """Last step of the parent that it goes on from."""


# ---- which metrics ------------------------------------------------------------------------------------------------


def metrics_of(runs: Iterable[Run], pattern: str = "") -> list[str]:
    """The metrics that any of ``runs`` has: the usual ones without a pattern, else those it is found in, by name.

    Raises:
        ValueError: as :func:`checked_pattern`.
    """
    names = {name for run in runs for name in run.names}
    if not pattern:
        return [name for name in SHOWN if name in names] or sorted(names)
    wanted = checked_pattern(pattern)
    return sorted(name for name in names if wanted.search(name[:LONGEST_NAME]))


# ---- along which axis ---------------------------------------------------------------------------------------------


def axis_of(entry: Entry, kind: str) -> Axis | None:
    """What the steps of a run become on the axis ``kind`` of ``AXES``; None for the step itself.

    Empty when the run has not recorded it. Relative time of a fork counts from where its parent began.
    """
    if kind == "step":
        return None
    axis = axis_along(entry.run, kind)
    if kind != "relative time" or not len(axis.x):
        return axis
    spent = 0.0
    if entry.parent is not None and entry.fork_step is not None:
        before = parent_axis(entry, kind)
        at = before.of(np.array([entry.fork_step])) if before is not None and len(before.x) else np.zeros(1)
        spent = float(at[0])
    return Axis(axis.step, axis.x - axis.x[0] + spent)


def parent_axis(entry: Entry, kind: str) -> Axis | None:
    """The same of the run that it was forked from."""
    if kind == "step" or entry.parent is None:
        return None
    axis = axis_along(entry.parent, kind)
    return Axis(axis.step, axis.x - axis.x[0]) if kind == "relative time" and len(axis.x) else axis


# ---- the charts ---------------------------------------------------------------------------------------------------


def compare_charts(
    entries: Sequence[Entry], *, axis: str = "step", smoothing: float = 0.0, pattern: str = "", log: bool = False
) -> list[Chart]:
    """One chart per metric, with a curve of each run that has it.

    Args:
        axis: one of ``AXES``.
        smoothing: weight of the moving average (``app.charts.smooth``); what was recorded lies faint behind it.
        pattern: which metrics; see :func:`metrics_of`.
        log: whether all value axes are logarithmic; else those are for which it is usual.

    Raises:
        ValueError: as :func:`checked_pattern`.
    """
    axes = [(axis_of(entry, axis), parent_axis(entry, axis)) for entry in entries]
    charts = []
    for name in metrics_of((entry.run for entry in entries), pattern)[:MOST_CHARTS]:
        beneath: list[Trace] = []
        lines: list[Trace] = []
        for entry, (own, before) in zip(entries, axes, strict=True):
            if name in entry.run.names and (own is None or len(own.x)):
                _add_traces(entry, name, (own, before), smoothing, beneath, lines)
        measure = LAYER_MEASURES.get(name)
        spec = spec_of(name)
        charts.append(
            Chart(
                chart_id(name),
                text.plain(name, 120),
                unit_of(name),
                traces=(*beneath, *lines),
                log=log or name == "loss_scale" or bool(measure and measure.scale == "log"),
                zero=name in _FROM_ZERO,
                height=230 if name in ("train_loss", "val_loss") else 170,
                help=spec.explained if spec else "",
                x_title=AXES[axis].title,
                x_kind=AXES[axis].kind,
            )
        )
    return charts


def _add_traces(
    entry: Entry, name: str, axes: tuple[Axis | None, Axis | None], smoothing: float, beneath: list[Trace],
    lines: list[Trace],
) -> None:  # fmt: skip
    signal = drawn(entry.run, name)
    if not len(signal):
        return
    own, before = axes
    if entry.parent is not None and entry.fork_step is not None and (before is None or len(before.x)):
        earlier = _until(drawn(entry.parent, name), entry.fork_step)
        if len(earlier):
            beneath.append(Trace(f"{entry.label}, before the fork", earlier, entry.colour, "parent", before))
    role = "points" if is_sparse(signal) else "line"
    if smoothing > 0:
        beneath.append(Trace(f"{entry.label}, as recorded", signal, entry.colour, "raw", own))
        role = "line"
    restarts = tuple(piece.after for piece in entry.run.line[1:])
    lines.append(Trace(entry.label, signal, entry.colour, role, own, smoothing, restarts, entry.marks))


def _until(signal: Signal | LongSignal, step: int) -> Signal | LongSignal:
    return signal.until(step) if isinstance(signal, LongSignal) else signal.between(None, step)


def chart_id(name: str) -> str:
    """The name of a metric as the id of its chart: itself where that is plain and short, else a digest."""
    if re.fullmatch(r"[a-z0-9_]{1,60}", name):
        return name
    return f"x.{hashlib.blake2b(name.encode('utf-8', 'replace'), digest_size=12).hexdigest()}"
