"""What the phases of a step take on a CUDA device, where host times say only when the host waited.

An event is recorded on the current stream where a phase begins; nothing waits for any. When the step's row is taken,
its values have been copied behind the last of these events, so that they have passed; one that has not leaves the
step's device times out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from monitor.hook.probe import Decoded, Reading

MOST_MARKS = 256
"""Events of one step; one with more micro-steps than that has no device times."""


class Event(Protocol):
    """The part of ``torch.cuda.Event`` that is used."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end_event: Any) -> float: ...


def timing_event() -> Event:
    """A CUDA event that can be compared with others."""
    return torch.cuda.Event(enable_timing=True)


class DeviceClock:
    """Marks where phases begin on the device.

    Args:
        event: makes an event with timing; an argument so that tests can turn its clock by hand.
    """

    def __init__(self, event: Callable[[], Event] = timing_event) -> None:
        self._event = event
        self._marks: list[tuple[str | None, Event]] = []
        self.part: str | None = None
        """``forward``, ``backward`` or ``optimizer``; None between them."""

    def mark(self, part: str | None) -> None:
        """From here on the stream's work is that of ``part``."""
        if part != self.part and len(self._marks) <= MOST_MARKS:
            event = self._event()
            event.record()
            self._marks.append((part, event))
        self.part = part

    def end_step(self) -> Reading | None:
        """The step's device times, to be decoded when its row is taken; None when nothing was marked."""
        self.mark(None)
        marks, self._marks = self._marks, []
        if not marks or len(marks) > MOST_MARKS:
            return None

        def decode(_arrays: list[np.ndarray]) -> Decoded:
            if not all(event.query() for _, event in marks):
                return Decoded()
            spent: dict[str, float] = {}
            for (part, begin), (_, end) in itertools.pairwise(marks):
                if part is not None:
                    name = f"{part}_device_s"
                    spent[name] = spent.get(name, 0.0) + begin.elapsed_time(end) * 1e-3
            return Decoded(spent)

        return Reading((), decode)
