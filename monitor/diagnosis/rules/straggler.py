"""One rank is slower than the others, which wait for it."""

from __future__ import annotations

import math

import numpy as np

from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, percent
from monitor.signals import Signal

LEAST_STEPS = 30
WINDOW = 100
"""Common steps that are judged together; a rank may become slow in the middle of a run."""


def straggler(signals: Signals, *, slower: float = 0.1, z: float = 4.0) -> Verdict:
    """One rank has its first gradient ready later than the others, in far too many steps for chance.

    Why it matters: a synchronous step takes as long as its slowest rank. The step time is the same on all of them, and
    the time spent in communication is long on the innocent ones, so neither says who it is.

    Stays silent: on ranks that take turns being last; on less than ``slower``. Abstains where the time to the first
    gradient was not recorded on two ranks or more.

    Thresholds: ``slower``, relative excess of its median over that of the others, over windows of 100 steps that they
    have in common; ``z``, standard deviations by which it is last more often than one in so many ranks.

    Source: design notes F35, measured with a planted sleep (distributed.md); NVRx; pytscope (binomial persistence).
    """
    if len(signals.ranks) < 2:
        return None
    times = {rank: signals.of_rank(rank)["first_gradient_s"] for rank in signals.ranks}
    times = {rank: series for rank, series in times.items() if len(series)}
    step, value = _common(list(times.values()))
    if len(times) < 2 or len(step) < LEAST_STEPS:
        return Abstained(
            f"the time to the first gradient is known of {count(len(times), 'rank')} in "
            f"{count(len(step), 'common step')}",
            ("first_gradient_s",),
        )
    ranks = list(times)
    for begin in range(0, max(1, len(step) - LEAST_STEPS + 1), WINDOW):
        window = slice(begin, begin + WINDOW)
        column = _late(value[window], slower, z)
        if column is not None:
            return _finding(ranks[column], step, value, begin, column)
    return None


def _common(series: list[Signal]) -> tuple[np.ndarray, np.ndarray]:
    """(int64[T], float64[T, R]): the steps that all have, and their values."""
    if not series:
        return np.zeros(0, np.int64), np.zeros((0, 0))
    step = series[0].step
    for other in series[1:]:
        step = np.intersect1d(step, other.step)
    value = np.stack([one.value[np.searchsorted(one.step, step)] for one in series], axis=1)
    keep = np.isfinite(value).all(axis=1)
    return step[keep], value[keep]


def _late(value: np.ndarray, slower: float, z: float) -> int | None:
    if len(value) < LEAST_STEPS:
        return None
    ranks = value.shape[1]
    last = np.bincount(value.argmax(axis=1), minlength=ranks)
    column = int(last.argmax())
    chance = 1 / ranks
    beyond = (last[column] - chance * len(value)) / math.sqrt(len(value) * chance * (1 - chance))
    others = float(np.median(np.delete(value, column, axis=1)))
    late = float(np.median(value[:, column]))
    return column if beyond > z and late > (1 + slower) * others else None


def _finding(rank: int, step: np.ndarray, value: np.ndarray, begin: int, column: int) -> Finding:
    late = float(np.median(value[begin:, column]))
    others = float(np.median(np.delete(value[begin:], column, axis=1)))
    share = float((value[begin:].argmax(axis=1) == column).mean())
    return Finding(
        summary=f"Rank {rank} is the last one ready in {100 * share:.0f} % of the steps: {1000 * late:.3g} ms to its "
        f"first gradient, the others {1000 * others:.3g} ms ({percent(late / others - 1)})",
        onset_step=int(step[begin]),
        first_step=int(step[min(begin + WINDOW, len(step)) - 1]),
        last_step=int(step[-1]),
        severity=Severity.WARNING,
        rank=rank,
        evidence={"seconds": late, "others_s": others, "last_share": share},
        causes=(Cause("slow-rank", 0.8, supports=(f"rank {rank} is late by itself, before any communication",)),),
        remedy=Remedy(
            f"Look at the host and the device of rank {rank}: clocks, temperature, other processes, its data; "
            "exchange or "
            "leave out the node.",
        ),
    )


RULE = Rule(
    id="straggler",
    severity=Severity.WARNING,
    needs=(),
    check=straggler,
    remedy="Look at the slow rank's host.",
)
