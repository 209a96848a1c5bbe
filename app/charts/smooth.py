"""Smoothing as people know it from TensorBoard: an exponential moving average, debiased, the same for the same number.

The formula is TensorBoard's (``classicSmoothing`` of its line chart): ``s = w s + (1 - w) y``, divided by ``1 - w**n``
for the n-th value. Unlike there it begins anew after a value that is not finite and after a restart, so that no curve
tells of what a training did before it broke; of a long compacted run it takes samples at even distances, as TensorBoard
takes a thousand of every run.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from monitor.runfile.zoom import LONG_ROWS, LongSignal
from monitor.signals import Signal

MOST = 0.999
"""The heaviest weight, as TensorBoard's."""


def moving_average(value: np.ndarray, weight: float, fresh: np.ndarray) -> np.ndarray:
    """The debiased exponential moving average of ``value`` float64[T], all finite.

    Args:
        weight: of the past, in [0, 1).
        fresh: bool[T]: where it begins anew; the first is one anyway.
    """
    keep = np.where(fresh, 0.0, weight)
    keep[:1] = 0.0
    total, share = (1 - weight) * value, np.full(len(value), 1 - weight)
    # A scan: after the pass with ``back``, each entry holds the sum over the 2 * back entries up to it.
    back = 1
    while back < len(value) and keep.max() > 1e-18:
        total[back:] += keep[back:] * total[:-back]
        share[back:] += keep[back:] * share[:-back]
        keep[back:] = keep[back:] * keep[:-back]
        keep[:back] = 0.0
        back *= 2
    return total / share


def smoothed(signal: Signal | LongSignal, weight: float, restarts: tuple[int, ...] = ()) -> Signal:
    """``signal`` with its finite values smoothed; the others stay, and the average begins anew behind them.

    Args:
        restarts: steps after which a restart began.
    """
    short = signal.sampled(LONG_ROWS) if isinstance(signal, LongSignal) else signal
    finite = np.isfinite(short.value)
    value, step = short.value[finite], short.step[finite]
    if not len(value) or (value == value[0]).all():
        return short
    # How many breaks lie before each sample; where that changes, the average begins anew.
    broken = np.cumsum(~finite)[finite] + np.searchsorted(np.array(restarts, np.int64), step)
    fresh = np.diff(broken, prepend=-1) > 0
    result = short.value.copy()
    result[finite] = moving_average(value, weight, fresh)
    return replace(short, value=result)
