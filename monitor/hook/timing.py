"""Where the wall time of a step goes.

The clock is always in exactly one part, so the parts of a step add up to its wall time: in integer nanoseconds
exactly, in seconds to the rounding of a float. A pause that somebody asked for is no part of a step.

On CUDA these are host times: kernels run later than the call that started them, so the part in which the host waits
for the device (usually ``loss.item()`` or the clip) carries their time. What the device did is in ``device_time.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PARTS = ("data_wait", "forward", "backward", "optimizer", "monitor", "eval", "checkpoint", "other")

GAP = "gap"
"""Time between two events whose meaning only the next event tells: before a forward pass it was waiting for data,
before anything else it was the loop's own code (``other``)."""

PAUSED = "paused"
"""Time in which the training waits because somebody asked it to: part of no step."""

_ALWAYS = ("data_wait", "forward", "backward", "optimizer", "monitor", "other")


class StepClock:
    """Adds up the parts of one step.

    Args:
        now_ns: a monotonic clock in integer nanoseconds; an argument so that tests can turn it by hand.
    """

    __slots__ = ("_now", "_since", "_spent", "part")

    def __init__(self, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._now = now_ns
        self.part = GAP
        self._spent = dict.fromkeys((*PARTS, GAP, PAUSED), 0)
        self._since = now_ns()

    def switch(self, part: str) -> str:
        """Charge the time since the last switch to the part the clock was in, and enter ``part``.

        Returns the part it was in, to go back to.
        """
        now = self._now()
        before = self.part
        self._spent[before] += now - self._since
        self._since = now
        self.part = part
        return before

    def settle(self, meaning: str) -> None:
        """Say what the gap since the last event has been."""
        self._spent[meaning] += self._spent[GAP]
        self._spent[GAP] = 0

    def elapsed_ns(self) -> int:
        """Since the step began, at the end of the one before; without pauses."""
        return sum(self._spent.values()) - self._spent[PAUSED] + self._now() - self._since

    def restart(self) -> None:
        """Forget everything and begin a step now."""
        self._spent = dict.fromkeys(self._spent, 0)
        self.part = GAP
        self._since = self._now()

    def end_step(self) -> dict[str, int]:
        """Close the step at this instant and begin the next one in a gap; nanoseconds per part, all of ``PARTS``."""
        self.switch(GAP)
        self.settle("other")
        spent = self._spent
        self._spent = dict.fromkeys(spent, 0)
        del spent[GAP], spent[PAUSED]
        return spent


def as_signals(spent: dict[str, int]) -> dict[str, float]:
    """``step_time_s`` and its parts in seconds; eval and checkpoint only when there was one."""
    signals = {f"{part}_s": ns * 1e-9 for part, ns in spent.items() if ns or part in _ALWAYS}
    signals["step_time_s"] = sum(spent.values()) * 1e-9
    return signals
