"""What a training can be laid along: its steps, its tokens, the time since it began, the time of day."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.charts.describe import Axis
from monitor.runfile.reader import Run
from monitor.runfile.zoom import LONG_ROWS, LongSignal, drawn
from monitor.signals import Signal


@dataclass(frozen=True, slots=True)
class XAxis:
    """One of the axes that runs can be laid along."""

    title: str
    kind: str = "number"
    """As of a ``Chart``."""


AXES: dict[str, XAxis] = {
    "step": XAxis("optimizer step"),
    "tokens": XAxis("tokens seen"),
    "relative time": XAxis("time since the first step, pauses included", "seconds"),
    "wall time": XAxis("local time", "clock"),
}
"""By the word that the address has for each."""


def axis_along(run: Run, kind: str, attempt: int | None = None) -> Axis:
    """What the steps of ``run`` become on the axis ``kind``, which is not the step; empty when it was not recorded.

    Relative time is not yet counted from its beginning.

    Args:
        attempt: of one attempt alone; None: along the current line.
    """
    signal: Signal | LongSignal
    if kind != "tokens":
        signal = run.times(attempt=attempt)
    else:
        signal = drawn(run, "tokens") if attempt is None else run.series("tokens", attempt=attempt)
    if isinstance(signal, LongSignal):
        signal = signal.sampled(LONG_ROWS)
    every = max(1, len(signal) // LONG_ROWS)
    at = np.unique(np.append(np.arange(0, len(signal), every), max(0, len(signal) - 1))) if len(signal) else slice(0)
    step, x = signal.step[at], signal.value[at]
    finite = np.isfinite(x)
    # A clock that was set back would let the curve run backwards.
    return Axis(step[finite], np.maximum.accumulate(x[finite]) if finite.any() else x[finite])
