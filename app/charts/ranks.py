"""The charts of the ranks of one attempt over each other: time to the first gradient, and each one's own gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.charts.describe import Chart, Trace
from monitor.runfile.reader import Run
from monitor.signals import CATALOGUE, Signal, unit_of

MOST_CURVES = 10
"""Of more ranks those are drawn that are farthest from the others: the ones worth seeing (our judgement)."""

_CHARTS: tuple[tuple[str, str, bool], ...] = (
    ("first_gradient_s", "Time to the first gradient", False),
    ("grad_norm_local", "Gradient norm of each rank alone", True),
    ("step_time_s", "Step time", False),
)


def rank_charts(run: Run) -> list[Chart]:
    """A chart of each signal that tells ranks apart, with a curve per rank of the latest attempt."""
    if not run.line:
        return []
    attempt = run.line[-1].attempt
    charts = []
    for name, title, log in _CHARTS:
        signals = [(rank, run.series(name, attempt=attempt, rank=rank)) for rank in sorted(run.ranks(attempt))]
        signals = [(rank, signal) for rank, signal in signals if len(signal)]
        if len(signals) < 2:
            continue
        traces = tuple(
            Trace(f"rank {rank}", signal, colour) for colour, (rank, signal) in enumerate(most_apart(signals))
        )
        charts.append(
            Chart(
                name,
                title,
                unit_of(name),
                traces=traces,
                log=log,
                zero=not log,
                height=200,
                help=CATALOGUE[name].explained,
            )
        )
    return charts


def most_apart(signals: Sequence[tuple[int, Signal]]) -> list[tuple[int, Signal]]:
    """At most ``MOST_CURVES`` of the ranks, by rank: those with non-finite values and those far from the middle."""
    if len(signals) <= MOST_CURVES:
        return list(signals)
    usual = np.array([np.median(own) if len(own := _finite(signal)) else np.nan for _, signal in signals])
    far = np.abs(usual - np.nanmedian(usual)) if np.isfinite(usual).any() else np.zeros(len(usual))
    broken = [len(_finite(signal)) < len(signal) for _, signal in signals]
    order = np.argsort(np.where(broken, -np.inf, -np.nan_to_num(far)), kind="stable")
    return [signals[at] for at in sorted(order[:MOST_CURVES].tolist())]


def _finite(signal: Signal) -> np.ndarray:
    return signal.value[np.isfinite(signal.value)]
