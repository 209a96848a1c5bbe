"""Weights change by more than the optimizer's updates can have changed them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from monitor.diagnosis.context import when_between
from monitor.diagnosis.lasting import measured, named
from monitor.diagnosis.primitives import episodes
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, percent
from monitor.signals import LayerMatrix, Signal

LEAST_ROWS = 5
NEAR_ROWS = 3
"""Measurements on either side whose largest update stands for those of the steps between."""
GAP_STEPS = 100
"""Between two measurements that show it, for one event."""
MANY = 4
"""So many times is on purpose: weights that are pruned, reset or averaged by plan."""


def weights_overwritten(signals: Signals, *, excess: float = 3.0, least: float = 0.05) -> Verdict:
    """The norm of one tensor changes between two measurements by more than all updates between them together.

    Why it matters: something other than the optimizer writes into the weights, such as code that initialises again, a
    scale or an offset in place, a partial load, a broken write to memory. No gradient explains what comes of it.

    The norm of a sum is at most the sum of the norms, so this is exact but for one thing: the updates between two
    measurements are taken to be no longer than the longest one measured near them, times the largest rise of the
    learning rate and of that tensor's gradient between them.

    Stays silent: across a resume or a rewind; on tensors that no update moves (averaged copies); in the first ten
    steps. Information where it happens again and again, as pruning or resetting by plan does.

    Thresholds: ``excess``, multiple of what the updates can have done; ``least``, change as a share of the norm. Our
    judgement.

    Source: the triangle inequality; Dixit et al. 2021, https://arxiv.org/abs/2102.11245 (silent data corruption).
    """
    norm, update = signals.layers("weight_norm"), signals.layers("update_norm")
    assert norm is not None and update is not None  # the engine asks for them
    step, rows, others = np.intersect1d(norm.step, update.step, return_indices=True)
    if len(step) < LEAST_ROWS or norm.names != update.names:
        return Abstained(f"{count(len(step), 'measurement')} of weights and updates, at least {LEAST_ROWS} are needed")
    weights, updates = measured(norm)[rows], measured(update)[others]
    change = np.abs(np.diff(weights, axis=0))
    allowed = _allowance(signals, step, updates, norm.names)
    with np.errstate(invalid="ignore", divide="ignore"):
        over = (change > excess * allowed) & (allowed > 0) & (change > least * np.fmax(weights[:-1], weights[1:]))
    over[_gated(signals, step)] = False
    events = _events(step, over)
    times_over = len(episodes(np.flatnonzero(over.any(axis=1)), 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = change / allowed
    return [_finding(signals, norm.names, step, weights, ratio, over, event, times_over) for event in events[:MANY]]


def _allowance(signals: Signals, step: np.ndarray, updates: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """float64[T - 1, L]: what all updates after one measurement, up to the next, can have added up to."""
    longest = np.full((len(step) - 1, updates.shape[1]), np.nan)
    for row in range(len(step) - 1):
        near = updates[max(0, row - NEAR_ROWS + 1) : row + 1 + NEAR_ROWS]
        longest[row] = np.fmax.reduce(near, axis=0)
    grown = _growth(signals["lr"], step)[:, None] * _layer_growth(signals.layers("grad_norm_preclip"), step, names)
    return longest * np.diff(step)[:, None] * grown


def _growth(lr: Signal, step: np.ndarray) -> np.ndarray:
    """float64[T - 1]: highest learning rate between two measurements over the higher one at them; at least 1."""
    return np.array([_rise(lr, first, last) for first, last in pairwise(step.tolist())])


def _rise(series: Signal, first: int, last: int) -> float:
    value = series.between(int(first), int(last)).value
    if len(value) < 3 or not np.isfinite(value).all() or not max(value[0], value[-1]) > 0:
        return 1.0
    return max(1.0, float(value.max() / max(value[0], value[-1])))


def _layer_growth(matrix: LayerMatrix | None, step: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """float64[T - 1, L]: the same of each layer's gradient norm. Under Adam a longer gradient is no longer update, so
    that this allows too much there."""
    grown = np.ones((len(step) - 1, len(names)))
    if matrix is None or matrix.names != names:
        return grown
    value = np.nan_to_num(measured(matrix))
    edges = np.searchsorted(matrix.step, step, side="right") - 1
    for row, (first, last) in enumerate(pairwise(edges.tolist())):
        if 0 <= first < last:
            ends = np.maximum(value[first], value[last])
            with np.errstate(invalid="ignore", divide="ignore"):
                rise = value[first : last + 1].max(axis=0) / ends
            grown[row] = np.maximum(1.0, np.where(ends > 0, rise, 1.0))
    return grown


def _gated(signals: Signals, step: np.ndarray) -> np.ndarray:
    """bool[T - 1]: pairs in the first steps, or with a resume or a rewind between them."""
    gated = step[:-1] < 10
    for event in signals.events("resume", "rewind", "weights_changed"):
        if event.step is not None:
            gated |= (step[:-1] <= event.step + 1) & (event.step <= step[1:])
    return gated


@dataclass(frozen=True, slots=True)
class _Event:
    first: int
    """Row of the measurement before."""
    last: int
    """Row of the last measurement after which it goes on."""


def _events(step: np.ndarray, over: np.ndarray) -> list[_Event]:
    """Runs of measurements with any tensor over."""
    found: list[_Event] = []
    for row in np.flatnonzero(over.any(axis=1)).tolist():
        if found and step[row] - step[found[-1].last + 1] <= GAP_STEPS:
            found[-1] = _Event(found[-1].first, row)
        else:
            found.append(_Event(row, row))
    return found


def _finding(
    signals: Signals,
    names: tuple[str, ...],
    step: np.ndarray,
    weights: np.ndarray,
    ratio: np.ndarray,
    over: np.ndarray,
    event: _Event,
    happened: int,
) -> Finding:
    row = event.first
    columns = np.flatnonzero(over[row])
    columns = columns[np.argsort(-ratio[row, columns], kind="stable")]
    first = int(columns[0])
    before, after = float(weights[row, first]), float(weights[row + 1, first])
    start, end = int(step[row]), int(step[row + 1])
    change = number(before) if before == 0 else percent(after / before - 1)
    told = f"the norm of {names[first]} went from {number(before)} at step {start} to {number(after)} at step {end}"
    times_over = f"at least {number(float(ratio[row, first]))} times as far as all updates between them can have gone"
    return Finding(
        summary=f"Something other than the optimizer changed {named([names[c] for c in columns])}: {told} ({change}), "
        f"{times_over}",
        onset_step=when_between(signals, start, end) or start + 1,
        first_step=end,
        last_step=int(step[event.last + 1]),
        severity=Severity.WARNING if happened < MANY else Severity.INFO,
        layer=names[first],
        evidence={
            "before": before, "after": after, "excess": float(ratio[row, first]),
            "layers": [names[c] for c in columns][:20],
            "layer_reason": "it changed the furthest beyond its updates",
        },
        causes=(Cause("weights-overwritten", 0.8, supports=(told, times_over)),),
        remedy=Remedy(
            f"Go back to the last checkpoint before step {start}, and look for what writes into the weights in place: "
            "an initialisation that runs again, a clamp, a scale, a partial load_state_dict.",
            {},
            "version = weight._version  # grows with every write in place: print it around each part of the loop",
        ),
    )  # fmt: skip


RULE = Rule(
    id="weights-overwritten",
    severity=Severity.WARNING,
    needs=("layers:weight_norm", "layers:update_norm"),
    check=weights_overwritten,
    remedy="Look for what writes into the weights beside the optimizer.",
)
