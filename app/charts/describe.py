"""What a live chart is made of: a description without pixels, so that one packer and one drawer serve all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from monitor.runfile.zoom import LongMatrix, LongSignal
from monitor.signals import LayerMatrix, Signal


@dataclass(frozen=True, slots=True)
class Axis:
    """What stands below a chart in place of the step: tokens, or seconds."""

    step: np.ndarray
    """int64[K], strictly increasing; between them the axis is linear, beyond them it stands still."""
    x: np.ndarray
    """float64[K], not decreasing."""

    def of(self, step: np.ndarray) -> np.ndarray:
        """float64[T]: where ``step`` int64[T] stands; NaN throughout when nothing is known."""
        if not len(self.step):
            return np.full(len(step), np.nan)
        return np.interp(step, self.step, self.x)

    def edges(self, step: np.ndarray) -> np.ndarray:
        """float64[T]: as :meth:`of`, for bounds between steps: half a step beyond either end it goes on as before."""
        if len(self.step) < 2:
            return self.of(step)
        slopes = np.diff(self.x)[[0, -1]] / np.diff(self.step)[[0, -1]]
        at = np.concatenate(([self.step[0] - 1], self.step, [self.step[-1] + 1]))
        x = np.concatenate(([self.x[0] - slopes[0]], self.x, [self.x[-1] + slopes[1]]))
        return np.interp(step, at, x)

    def steps(self, start: float | None, stop: float | None) -> tuple[int | None, int | None]:
        """First and last step that lie in ``start..stop``, at most one too many at each end; None stays open.

        Steps that share an x with an end are all in.
        """
        if not len(self.step):
            return None, None
        return self._step(start, "left", -1), self._step(stop, "right", 1)

    def _step(self, at: float | None, side: Literal["left", "right"], outwards: int) -> int | None:
        if at is None:
            return None
        index = int(np.searchsorted(self.x, at, side=side))
        if index == 0:
            return int(self.step[0]) + min(outwards, 0)
        if index == len(self.x):
            return int(self.step[-1]) + max(outwards, 0)
        low, high = index - 1, index
        share = (at - self.x[low]) / (self.x[high] - self.x[low]) if self.x[high] > self.x[low] else 0.0
        step = self.step[low] + share * (self.step[high] - self.step[low])
        return int(math.floor(step) if outwards < 0 else math.ceil(step))


@dataclass(frozen=True, slots=True)
class Trace:
    """One line of a chart."""

    name: str
    signal: Signal | LongSignal
    """``step`` is the x value times ``Chart.x_per_unit``."""
    colour: int = 0
    """Index into the theme's categorical colours."""
    role: str = "line"
    """``line``; ``points`` for a sparse series, drawn with its markers; ``limit`` for a dashed bound; ``part`` of a
    stack; ``faded`` for steps that a later attempt took over; ``raw`` for what lies faint behind its smoothed curve;
    ``parent`` for what the run that this one was forked from did until then."""
    axis: Axis | None = None
    """What the steps are turned into; None leaves them."""
    smoothing: float = 0.0
    """Weight of the moving average; 0 draws what was recorded."""
    restarts: tuple[int, ...] = ()
    """Steps after which the moving average begins anew."""
    marks: tuple[Mark, ...] = ()
    """What is shown on the curve itself."""
    attempt: int | None = None
    """The attempt that it is of; None: the current line of attempts."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart of a live grid."""

    id: str
    """``[a-z0-9_.-]+``; the same as long as the chart means the same."""
    title: str
    unit: str = "1"
    kind: str = "lines"
    """``lines``, ``parts`` (stacked shares of ``step_time_s``), ``heat`` (layers by steps), ``events``; ``profile``:
    the layers of one step side by side, on an axis of their own."""
    traces: tuple[Trace, ...] = ()
    log: bool = False
    """Whether the value axis starts out logarithmic."""
    zero: bool = False
    """Whether a linear value axis must contain zero."""
    height: int = 150
    help: str = ""
    matrix: Callable[[], LayerMatrix | LongMatrix] | None = field(default=None, repr=False)
    """For ``heat``."""
    scale: str = "log"
    """For ``heat``: ``log``, ``linear`` or ``signed``, as of a ``Measure``."""
    keep: str = "largest"
    """For ``heat``: what a cell shows of several steps, as of a ``Measure``."""
    limit: float | None = None
    """For ``heat``: the end of its scale where it is known beforehand."""
    section: str = ""
    """Heading that the chart lies folded away under; charts of one section follow one another."""
    open: bool = False
    """Whether its section is unfolded to begin with."""
    names: tuple[str, ...] = ()
    """For ``profile``: the layers, by place on the axis."""
    axis: Axis | None = None
    """For ``heat`` and ``parts``, and for what lies across the chart: what the steps are turned into."""
    x_title: str = "optimizer step"
    x_kind: str = "number"
    """``number``; ``seconds`` since the beginning; ``clock``: seconds since 1970, shown as local time."""
    x_per_unit: float = 1.0
    """Steps of a signal per unit of the x axis; 1000 for milliseconds shown as seconds."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a step, shown as a vertical line across the stack and as a sign in the events lane."""

    step: int
    kind: str
    """``incident``, ``crash``, ``resume``, ``checkpoint``, ``eval``, ``lr_change``, ``stop``, ``note``, ..."""
    text: str
    severity: str = "info"
    last_step: int | None = None
    """For an incident that lasts: the last step it was seen."""
    key: str = ""
    """For an incident: what the address calls it."""
