"""How much of the training's time samples of the landscape may take."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

BEYOND = 1.25
"""Our judgement: of 7 to 11 products of one search, some more than the last one took."""


class Allowance:
    """A share of the time since the beginning, for work of several kinds that nobody waits for.

    A piece of work that would go beyond the share, judged by the dearer of the last two of its kind, waits until there
    is room; one that takes longer all the same should end when ``longest`` is over. The kind of the largest weight
    comes before the others until it has had its part: out of turn they must leave room for one of it.

    Args:
        share: of the time, in (0, 1]; 1 lets everything in.
        weights: the kinds, and what part each may have when they want more than there is.
        expected: seconds that the first one of a kind will take.
        clock: seconds.
    """

    def __init__(
        self,
        share: float,
        weights: Mapping[str, float],
        expected: Callable[[str], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share, self._weights, self._expected, self._clock = share, weights, expected, clock
        self._began = clock()
        self._spent = dict.fromkeys(weights, 0.0)
        self._last: dict[str, deque[float]] = {kind: deque(maxlen=2) for kind in weights}

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    @property
    def room(self) -> float:
        """Seconds that may be spent now; negative when more than the share was."""
        return math.inf if self._share >= 1 else self._share * self.elapsed - sum(self._spent.values())

    @property
    def longest(self) -> float:
        """Seconds after which a piece that begins now would have brought the share to ``BEYOND`` times itself."""
        return self.room + (BEYOND - 1) * self._share * self.elapsed

    def _cost(self, kind: str) -> float:
        return max(self._last[kind], default=0.0) or self._expected(kind)

    def next_of(self, kinds: Sequence[str]) -> str | None:
        """The one whose turn it is: which has had least by its weight, this one counted. None of none."""
        return min(kinds, key=lambda kind: (self._spent[kind] + self._cost(kind)) / self._weights[kind], default=None)

    def affords(self, kind: str) -> bool:
        """Whether there is room for one more of that kind."""
        weightiest = max(self._weights, key=self._weights.__getitem__)
        kept = self._cost(weightiest) if self.next_of([kind, weightiest]) != kind else 0.0
        return self._cost(kind) + kept <= self.room

    @contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Count the time of the block."""
        began = self._clock()
        try:
            yield
        finally:
            cost = self._clock() - began
            self._last[kind].append(cost)
            self._spent[kind] += cost
