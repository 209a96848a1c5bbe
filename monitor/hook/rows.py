"""Rows of ended steps on their way to the writer.

The row of the step just ended stays open for ``mon.log`` until the next step begins, or for half a second: then a
thread takes it, so that a reader sees it while a long evaluation runs. Behind it wait the rows whose values have not
arrived from the device yet. Rows leave in the order of their steps.

What makes a row and hands it on runs once a step, and the step has pushed it out of the caches: for one row it takes
several times what it takes for each of a few. So plain rows leave in groups, or when the thread looks, a quarter of a
second later at most. A row that may be the sign of something does not wait for others.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from monitor.guard import contained
from monitor.hook.probe import Reading, Stat
from monitor.hook.transfer import HostRead

LINGER_S = 0.5
MOST_WAITING = 4
"""Rows that may wait for the device. A fifth waits for the first: steps cannot run away from their measurements."""

GROUP = 4
"""Rows that leave together: an outlier of the loss or a norm may be seen three steps later, as on a device it is."""


class Writer(Protocol):
    """The part of ``monitor.runfile.writer.RankWriter`` that rows go to."""

    def scalars(self, step: int, time: float, values: dict[str, float]) -> None: ...
    def layers(self, step: int, time: float, stats: dict[str, Any]) -> None: ...
    def modules(self, step: int, time: float, stats: dict[str, Any]) -> None: ...
    def event(self, kind: str, step: int | None = None, **fields: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Arriving:
    """Values of one row on their way from the device."""

    read: HostRead
    names: list[str]
    """Of the single values, which come after the tensors of ``readings``."""
    readings: Sequence[Reading] = ()


@dataclass(slots=True)
class Row:
    """One ended step."""

    step: int
    time: float
    """Unix seconds at the end of the step."""
    values: dict[str, float]
    """What is known on the host."""
    arriving: list[Arriving] = field(default_factory=list)
    lr_names: Sequence[str] = ()
    """The learning rates among the values."""
    scaled: bool = False
    """The loop uses a GradScaler: ``skipped_steps`` is 1 when this step was certainly skipped."""
    urgent: bool = False
    """Does not wait for others to leave with: something is wrong in it, or was lately."""
    layers: dict[str, Stat] = field(default_factory=dict)
    """Statistics per layer, once they have arrived."""
    modules: dict[str, Stat] = field(default_factory=dict)
    """And per module."""

    def ready(self) -> bool:
        return all(arriving.read.ready() for arriving in self.arriving)


class Rows:
    """The queue between the loop and the writer.

    Args:
        finish: called with a row whose values have all been merged, in order of steps; may add derived values.
    """

    def __init__(
        self,
        writer: Writer,
        finish: Callable[[Row], None],
        *,
        linger_s: float = LINGER_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._writer = writer
        self._finish = finish
        self._linger_s = linger_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._waiting: deque[Row] = deque()
        self._open: Row | None = None
        self._open_until = 0.0

    def end_step(self, row: Row) -> None:
        """A step has ended; its row is open from now on."""
        with self._lock:
            self._close_open()
            self._open = row
            self._open_until = self._monotonic() + self._linger_s
            self._send_group()

    def step_begins(self) -> None:
        """The next step has begun: what is logged from now on is not the open row's."""
        with self._lock:
            self._close_open()
            self._send_group()

    def log(self, values: dict[str, float], device: dict[str, Tensor]) -> bool:
        """Add to the open row; False when there is none any more."""
        with self._lock:
            row = self._open
            if row is None:
                return False
            row.values.update(values)
            if device:
                row.arriving.append(Arriving(HostRead(list(device.values())), list(device)))
            return True

    def tend(self) -> None:
        """Called by a thread now and then: take a row that has been open for long, send what has arrived."""
        with self._lock:
            if self._open is not None and self._monotonic() >= self._open_until:
                self._close_open()
            self._send()

    def drain(self) -> None:
        """Send everything, waiting for the device if need be."""
        with self._lock:
            self._close_open()
            self._send(wait_for_device=True)

    def _close_open(self) -> None:
        if self._open is not None:
            self._waiting.append(self._open)
            self._open = None

    def _send_group(self) -> None:
        waiting = self._waiting
        if len(waiting) >= GROUP or (waiting and any(row.urgent for row in waiting)):
            self._send()

    def _send(self, wait_for_device: bool = False) -> None:
        waiting = self._waiting
        while waiting and (wait_for_device or len(waiting) > MOST_WAITING or waiting[0].ready()):
            with contained("rows of the run"):
                self._write(waiting.popleft())

    def _write(self, row: Row) -> None:
        layers = row.layers
        modules = row.modules
        for arriving in row.arriving:
            arrays = arriving.read.arrays()
            at = 0
            for reading in arriving.readings:
                decoded = reading.decode(arrays[at : at + len(reading.tensors)])
                at += len(reading.tensors)
                row.values.update(decoded.scalars)
                layers.update(decoded.layers)
                modules.update(decoded.modules)
            for name, array in zip(arriving.names, arrays[at:], strict=True):
                row.values[name] = array.item()
        self._finish(row)
        self._writer.scalars(row.step, row.time, row.values)
        if layers:
            self._writer.layers(row.step, row.time, layers)
        if modules:
            self._writer.modules(row.step, row.time, modules)
