"""The flight recorder of a thinned stream: what it left out shortly before and after an incident, in full.

While every row is written there is nothing to record. Once it is thinned the last rows stay in memory, and
:meth:`Recorder.open` hands over those that were left out; so are the next ones, as they come. A window takes at most a
quarter of what is left of the budget, so that there is always something left for the next incident.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from monitor.runfile.queued import Row

RING_ROWS = 64
"""Rows kept in memory: what led to an incident is seldom older. Our judgement."""
RING_BYTES = 32 << 20
WINDOW_SHARE = 4
"""One window may use this part of what is left of the budget."""


@dataclass(slots=True)
class Held:
    """One row in memory."""

    row: Row
    size: int
    written: bool


class Recorder:
    """The last rows of one stream, and the window that is open.

    Args:
        budget_bytes: of all windows together.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._left = budget_bytes
        self._ring: deque[Held] = deque()
        self._held = 0
        self._until = -1
        self._allowance = 0
        self._last_written = -1

    @property
    def is_open(self) -> bool:
        """Whether rows that are left out now are written in full."""
        return self._allowance > 0

    def wrote(self, rows: Sequence[Row], size: int) -> None:
        """Rows of a window are on disk, where they take so many bytes."""
        self._left -= max(0, size - sum(map(_size, rows)))

    def ends_before(self, row: Row) -> bool:
        """Whether a window was open for all rows up to ``row``, and is not for this one."""
        assert row.step is not None
        ended = self.is_open and row.step > self._until
        if ended:
            self._allowance = 0
        return ended

    def saw(self, row: Row, chosen: bool) -> Row | None:
        """Remember a row, which the thinning has chosen or left out; the row to write in full, if it is to be."""
        held = Held(row, _size(row), chosen)
        self._ring.append(held)
        self._held += held.size
        while len(self._ring) > RING_ROWS or (self._held > RING_BYTES and len(self._ring) > 1):
            self._held -= self._ring.popleft().size
        return None if chosen or not self.is_open else self._write(held)

    def chose_last(self) -> None:
        """The last row seen was left out, and has been written after all."""
        if self._ring:
            self._ring[-1].written = True

    def open(self, until: int) -> list[Row]:
        """Begin a window up to step ``until``, or make the open one longer; the rows before it, oldest first.

        Half of what the window may use is for these, the newest first.
        """
        if not self.is_open:
            self._allowance = max(0, self._left // WINDOW_SHARE)
        self._until = max(self._until, until)
        room = self._allowance // 2
        wanted: list[Held] = []
        for held in reversed(self._ring):
            assert held.row.step is not None
            if held.written or held.row.step <= self._last_written:
                continue
            room -= held.size
            if room < 0:
                break
            wanted.append(held)
        return [self._write(held) for held in reversed(wanted)]

    def _write(self, held: Held) -> Row:
        assert held.row.step is not None
        held.written = True
        self._allowance -= held.size
        self._left -= held.size
        self._last_written = held.row.step
        return replace(held.row, stands_for=0)


def _size(row: Row) -> int:
    """Bytes on disk, to a few per cent."""
    cells = [cell for cell in row.values.values() if cell is not None]
    return 16 + sum(value.nbytes + (0 if present is None else len(present) // 8 + 1) for value, present in cells)
