"""The layers of a run: what each statistic is along the depth of the model at one step, and one layer's own curves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app import text
from app.charts.describe import Chart, Trace
from app.charts.measures import Choice, choices, is_sparse, layer_curve, matrix_of
from app.charts.profile import profile_chart, telling_row, values_at
from monitor.runfile.reader import Run

PROFILED = (
    ("layers", "grad_norm_preclip"), ("layers", "update_to_weight_ratio"), ("modules", "dead_units_share"),
    ("modules", "saturated_units_share"), ("modules", "attention_logit_max"), ("modules", "attention_logit_bound"),
    ("modules", "attention_entropy_min"), ("modules", "attention_entropy_mean"), ("modules", "activation_rms"),
    ("modules", "activation_zero_share"), ("layers", "grad_zero_share"), ("layers", "weight_norm"),
)  # fmt: skip
"""What is shown over depth, in reading order."""


def profiled(run: Run) -> list[Choice]:
    """What ``run`` has of ``PROFILED``."""
    there = {(choice.stream, choice.stat): choice for choice in choices(run)}
    return [there[key] for key in PROFILED if key in there]


def layer_charts(run: Run, at: tuple[int, int] | None = None, layer: str | None = None) -> list[Chart]:
    """The profiles over depth, and before them every statistic of ``layer`` over steps.

    Args:
        at: first and last step of a stretch; None: the last step that each statistic was measured at.
        layer: of a parameter also what was measured of the module that it is in.
    """
    charts = own_curves(run, layer) if layer else []
    for choice in profiled(run):
        matrix = matrix_of(run, choice)
        chart = profile_chart(
            choice, matrix, telling_row(matrix, choice.measure.keep, at, layer), chart_id=f"profile.{choice.key}"
        )
        if chart is not None:
            charts.append(chart)
    return charts


def own_curves(run: Run, layer: str) -> list[Chart]:
    """One chart for every statistic of ``layer``."""
    charts = []
    for choice in choices(run):
        matrix, measure = matrix_of(run, choice), choice.measure
        name = next((name for name in reversed(matrix.names) if belongs(layer, name, choice.stream)), None)
        curve = layer_curve(matrix, name) if name is not None else None
        if name is None or curve is None or not len(curve):
            continue
        role = "points" if is_sparse(curve) else "line"
        charts.append(
            Chart(
                f"curve.{choice.key}",
                f"{measure.title} of {name}",
                choice.spec.unit if choice.spec else "1",
                traces=(Trace(name, curve, 5 if choice.stream == "layers" else 2, role),),
                log=measure.scale == "log",
                zero=measure.scale != "log",
                height=120,
                help=choice.explained,
                section=text.plain(layer, 120),
                open=True,
            )
        )
    return charts


def belongs(layer: str, name: str, stream: str) -> bool:
    """Whether what was measured of ``name`` is about ``layer``: itself, or the module that holds the parameter."""
    return name == layer or (stream == "modules" and layer.startswith(f"{name}."))


@dataclass(frozen=True, slots=True)
class Measured:
    """What the statistics of one stream were at one step, layer by layer."""

    names: tuple[str, ...]
    columns: dict[str, np.ndarray]
    """Title of a statistic to float64[L]; NaN where it was not measured or not a number."""
    steps: dict[str, int]
    """Title to the step that it was measured at."""


def measured_at(run: Run, stream: str, at: tuple[int, int] | None = None) -> Measured:
    """Every statistic of ``layers`` or ``modules`` where it was last measured until ``at``; for a table."""
    names: dict[str, None] = {}
    found: list[tuple[str, int, dict[str, float]]] = []
    for choice in choices(run):
        if choice.stream != stream:
            continue
        matrix = matrix_of(run, choice)
        row = telling_row(matrix, choice.measure.keep, at)
        if row is None:
            continue
        value, there = values_at(matrix, row)
        names.update(dict.fromkeys(matrix.names))
        own = {name: float(value[place]) for place, name in enumerate(matrix.names) if there[place]}
        found.append((choice.measure.title, int(matrix.step[row]), own))
    columns = {title: np.array([own.get(name, np.nan) for name in names]) for title, _, own in found}
    return Measured(tuple(names), columns, {title: step for title, step, _ in found})
