"""One rank is slower than the others, which wait for it."""

from __future__ import annotations

import math

import numpy as np

from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.timing import at_steps
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, percent
from monitor.signals import Signal

LEAST_STEPS = 20
PERSISTS = 0.9
"""How often a slow rank is the last one ready, for the sum of evidence."""
LOOK_EVERY = 10
"""Rows from one look at the excess to the next, while the evidence is there."""
LOOK_BACK = 100
"""Rows of which the excess is judged at most: a rank that is always last by a little may become slow later."""


def straggler(signals: Signals, *, slower: float = 0.1, h: float = 9.0) -> Verdict:
    """One rank has its first gradient ready later than the others, in far too many steps for chance.

    Why it matters: a synchronous step takes as long as its slowest rank. The step time is the same on all of them, and
    the time spent in communication is long on the innocent ones, so neither says who it is.

    Stays silent: on ranks that take turns being last; on less than ``slower``. Information where the rank would be no
    slower by itself: other processes of its host had the processor. Abstains where the time to the first gradient was
    not recorded on two ranks or more.

    Thresholds: ``slower``, relative excess of its median over that of the others since it began; ``h``, evidence in
    natural logarithms: how much likelier it is for a rank that is last nine times in ten to be last that often than for
    one among equals, summed up from where that begins (17 times running of two ranks, 7 of eight). False alarms by
    chance alone are exp(9) measurements apart.

    Source: design notes F35, measured with a planted sleep (distributed.md); NVRx; one-sided CUSUM, Page 1954,
    https://doi.org/10.1093/biomet/41.1-2.100.
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
    ranks, last = list(times), value.argmax(axis=1)
    found = [_late(value, last, column, slower, h) for column in range(len(ranks))]
    known = [(told, begin, column) for column, (begin, told) in enumerate(found) if told is not None]
    if not known:
        return None
    told, begin, column = min(known)
    waited = np.stack([np.nan_to_num(at_steps(signals.of_rank(rank)["cpu_wait_s"], step)) for rank in ranks], axis=1)
    own = np.maximum(value - waited, 0.0)[begin:]
    slow = np.median(own[:, column]) > (1 + slower) * np.median(np.delete(own, column, axis=1))
    cause = (
        Cause("slow-rank", 0.8, (f"rank {ranks[column]} is late by itself, before any communication",))
        if slow
        else Cause("busy-host", 0.9, (_without_processor(waited[begin:], column),))
    )
    return _finding(ranks[column], step, value, begin, told, column, cause)


def _without_processor(waited: np.ndarray, column: int) -> str:
    late, others = float(np.median(waited[:, column])), float(np.median(np.delete(waited, column, axis=1)))
    return f"{1000 * late:.3g} ms of a step it was ready to run and had no processor, the others {1000 * others:.3g} ms"


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


def _late(value: np.ndarray, last: np.ndarray, column: int, slower: float, h: float) -> tuple[int, int | None]:
    """(row where it begins, row at which it is certain) of the rank in ``column`` being last; None: it is not."""
    ranks = value.shape[1]
    gain, loss = math.log(PERSISTS * ranks), math.log((1 - PERSISTS) / (1 - 1 / ranks))
    total = np.concatenate([[0.0], np.cumsum(np.where(last == column, gain, loss))])
    certain = np.flatnonzero(total - np.minimum.accumulate(total) > h)
    for row in certain[::LOOK_EVERY].tolist():
        begin = row - 1 - int(np.argmin(total[:row][::-1]))  # the last of equal minima
        begin = max(begin, row - LOOK_BACK)
        stretch = value[begin:row]
        if np.median(stretch[:, column]) > (1 + slower) * np.median(np.delete(stretch, column, axis=1)):
            return begin, row - 1
    return 0, None


def _finding(
    rank: int, step: np.ndarray, value: np.ndarray, begin: int, told: int, column: int, cause: Cause
) -> Finding:
    late = float(np.median(value[begin:, column]))
    others = float(np.median(np.delete(value[begin:], column, axis=1)))
    share = float((value[begin:].argmax(axis=1) == column).mean())
    return Finding(
        summary=f"Rank {rank} is the last one ready in {100 * share:.0f} % of the steps: {1000 * late:.3g} ms to its "
        f"first gradient, the others {1000 * others:.3g} ms ({percent(late / others - 1)})",
        onset_step=int(step[begin]),
        first_step=int(step[told]),
        last_step=int(step[-1]),
        severity=Severity.INFO if cause.id == "busy-host" else Severity.WARNING,
        rank=rank,
        evidence={"seconds": late, "others_s": others, "last_share": share},
        causes=(cause,),
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
