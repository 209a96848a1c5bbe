"""Step times as rules on speed want them: without what is meant to take long, and with their own wander."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monitor.diagnosis.primitives import MAD_TO_SD
from monitor.diagnosis.view import Signals
from monitor.signals import TIME_PARTS, Signal

WARM_UP_ROWS = 10
"""Steps of an attempt that may compile, allocate and fill caches."""
PARTS = tuple(part for part in TIME_PARTS if part not in ("eval_s", "checkpoint_s"))


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Steps that did nothing but train."""

    step: np.ndarray
    """int64[T]."""
    seconds: np.ndarray
    """float64[T], evaluation, checkpoints and the first steps left out; finite and positive."""
    waited: np.ndarray
    """float64[T]: seconds of them in which other processes had the processor; NaN where that was not recorded."""

    @property
    def own(self) -> np.ndarray:
        """float64[T]: the seconds that the step would have taken by itself, as far as that is known."""
        return self.seconds - np.clip(np.nan_to_num(self.waited), 0.0, 0.99 * self.seconds)

    def part(self, signals: Signals, name: str) -> np.ndarray:
        """float64[T]: seconds of one part of these steps; NaN where it was not recorded."""
        return at_steps(signals[name], self.step)


def at_steps(series: Signal, step: np.ndarray) -> np.ndarray:
    """float64[T]: the values at these steps; NaN where there is none."""
    if len(series) == 0:
        return np.full(len(step), np.nan)
    row = np.clip(np.searchsorted(series.step, step), 0, len(series) - 1)
    return np.where(series.step[row] == step, series.value[row], np.nan)


def step_times(signals: Signals) -> StepTimes:
    """The step times of the run, cleaned."""
    return signals.remember("step_times", lambda: _step_times(signals))


def _step_times(signals: Signals) -> StepTimes:
    time = signals["step_time_s"]
    keep = np.isfinite(time.value) & (time.value > 0)
    for name in ("eval_s", "checkpoint_s"):
        busy = signals[name]
        busy_steps = busy.step[busy.value > 0]
        keep &= ~np.isin(time.step, busy_steps) & ~np.isin(time.step, busy_steps + 1)
    starts = [time.step[0]] if len(time) else []
    starts += [event.step + 1 for event in signals.events("resume") if event.step is not None]
    for start in starts:
        keep &= (time.step < start) | (time.step >= start + WARM_UP_ROWS)
    return StepTimes(time.step[keep], time.value[keep], at_steps(signals["cpu_wait_s"], time.step[keep]))


def block_medians(value: np.ndarray, rows: int) -> np.ndarray:
    """float64[B]: medians of whole blocks of ``rows``; what is left at the end is left out."""
    whole = len(value) // rows * rows
    return np.median(value[:whole].reshape(-1, rows), axis=1)


def spread(value: np.ndarray) -> float:
    """Robust standard deviation."""
    return float(MAD_TO_SD * np.median(np.abs(value - np.median(value)))) if len(value) else 0.0
