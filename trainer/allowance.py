"""How much of the training's time samples of the landscape may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class Allowance:
    """A share of the time since the beginning, for work of several kinds that nobody waits for.

    A piece of work that would go beyond the share, judged by what the last one of its kind cost, is left out; the next
    time it is asked for there is room again. The first of its kind is let in as long as the share is not spent.

    Args:
        share: of the time, in (0, 1]; 1 lets everything in.
        clock: seconds.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._clock = share, clock
        self._began = clock()
        self._spent = 0.0
        self._cost: dict[str, float] = {}
        """Of the last of each kind; the kind that was done last is the last key."""

    def in_turn(self, kinds: Sequence[str]) -> list[str]:
        """The kinds, the one first that has waited longest."""
        done = list(self._cost)
        return sorted(kinds, key=lambda kind: done.index(kind) if kind in done else -1)

    def affords(self, kind: str) -> bool:
        """Whether there is room for one more of that kind."""
        return self._share >= 1 or self._spent + self._cost.get(kind, 0.0) <= self._share * (
            self._clock() - self._began
        )

    @contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Count the time of the block."""
        began = self._clock()
        try:
            yield
        finally:
            cost = self._clock() - began
            self._cost.pop(kind, None)
            self._cost[kind] = cost
            self._spent += cost
