"""Which rows of per-layer statistics are written when a run is too long for all of them.

Every row up to a budget of bytes, then every 4th step, 8th, 16th, ...: each further stride lasts until it has used an
eighth of the budget again, so the volume grows with the logarithm of the number of steps. (There is no stride of 2: a
row with its extremes is three times as large, so that would be more than all rows.) A row that is written after others
were left out carries, for every statistic that they had, the smallest and the largest finite value of each layer over
its *interval*, the steps behind the last row written up to its own, and how many values were NaN or infinite.

What is telling is written at once: the first non-finite value of a layer, and a value far outside all that its layer
has shown in the last two strides. Such rows have an allowance that regular rows earn, so that no series, however wild,
defeats the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from monitor.runfile.queued import Row

DEFAULT_BUDGET_BYTES = 256 << 20
"""Of each stream of one attempt and rank. Six statistics of 150 tensors are 3.6 kB a step: 70 000 steps in full, and
a million steps in about 450 MB instead of 3.6 GB. Our judgement."""
FIRST_STRIDE = 4
MAX_STRIDE = 1 << 20
OCTAVE_SHARE = 8
"""Each stride beyond the first may use this part of the budget."""
TELLING_AT_ONCE = 16.0
TELLING_PER_REGULAR = 0.5
"""Rows beside the regular ones: so many in a row, and so many more for each regular row."""
WIDE = 4.0
"""A value is telling when it lies outside what its layer has shown lately by this multiple of that range..."""
WIDE_SHARE = 0.5
"""...and by this share of the largest size in it: a constant that changes in its last digit tells nothing."""

Cells = tuple[np.ndarray, np.ndarray | None]
"""float32[L], and bool[L] present (None: all)."""


class Extremes:
    """One statistic of L layers over some rows."""

    def __init__(self, width: int) -> None:
        self.rows = 0
        self.min = np.full(width, np.nan, np.float32)
        """Smallest finite value; NaN when there is none."""
        self.max = self.min.copy()
        self.counts: dict[str, np.ndarray] = {}
        """``nan``, ``posinf``, ``neginf`` -> int64[L], those that occurred."""

    def add(self, value: np.ndarray, present: np.ndarray | None) -> None:
        """Take one more row in."""
        self.rows += 1
        finite = np.isfinite(value)
        if not finite.all():
            for kind, test in (("nan", np.isnan), ("posinf", np.isposinf), ("neginf", np.isneginf)):
                found = test(value) if present is None else test(value) & present
                if found.any():
                    self.counts[kind] = self.counts.get(kind, 0) + found.astype(np.int64)
        if present is not None:
            finite = finite & present
        shown = value if finite.all() else np.where(finite, value, np.float32(np.nan))
        np.fmin(self.min, shown, out=self.min)
        np.fmax(self.max, shown, out=self.max)

    def columns(self, stat: str) -> dict[str, Cells]:
        """As a row's values: the extremes, and the counts of what there was."""
        there = np.isfinite(self.min)
        found: dict[str, Cells] = {
            f"{stat}.min": (np.where(there, self.min, np.float32(0)), there),
            f"{stat}.max": (np.where(there, self.max, np.float32(0)), there),
        }
        found.update((f"{stat}.{kind}", (count.astype(np.float32), None)) for kind, count in self.counts.items())
        return found

    def has_bad(self) -> np.ndarray | bool:
        """bool[L]: layers with a non-finite value; False when there is none."""
        bad: np.ndarray | bool = False
        for count in self.counts.values():
            bad = bad | (count > 0)
        return bad


class Thinning:
    """Chooses the rows of one stream. Not for several threads.

    Args:
        budget_bytes: written in full rate; at least 1.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.stride = 1
        """Steps from one regular row to the next."""
        self.left_out = 0
        """Rows since the last one that was chosen."""
        self._octave = max(1, budget_bytes // OCTAVE_SHARE)
        self._limit = budget_bytes
        self._spent = 0
        self._forget(None)

    def _forget(self, layout: Any) -> None:
        self._layout = layout
        self._pending: dict[str, Extremes] = {}
        self._last: Row | None = None
        self._sampled: dict[str, int] = {}
        """Step of the last row chosen with a value of the statistic."""
        self._recent: tuple[dict[str, Extremes], dict[str, Extremes]] = ({}, {})
        """What was shown before the last regular row, back to the one before it, and since."""
        self._allowance = TELLING_AT_ONCE

    def wrote(self, size: int) -> bool:
        """So many bytes were written; True when the stride has become larger by that."""
        self._spent += size
        if self._spent < self._limit or self.stride >= MAX_STRIDE:
            return False
        self.stride = FIRST_STRIDE if self.stride == 1 else 2 * self.stride
        self._limit = self._spent + self._octave
        return True

    def take(self, row: Row) -> list[Row]:
        """The rows to write now that ``row`` has come: none, it, or it and what was left out before it."""
        chosen: list[Row] = []
        if row.layout is not self._layout and row.layout != self._layout:
            chosen = self.close()
            self._forget(row.layout)
        if self.stride == 1:
            return [*chosen, row]
        assert row.step is not None
        due = any(row.step - self._sampled.get(stat, -self.stride) >= self.stride for stat in row.values)
        telling = self._tells(row.values) and self._allowance >= 2
        if telling:
            self._allowance -= 2
            chosen += self.close()  # so that the telling row speaks of its own step alone
        if due or telling:
            chosen.append(self._close_with(row))
        else:
            self._leave_out(row)
        if due:
            self._allowance = min(TELLING_AT_ONCE, self._allowance + TELLING_PER_REGULAR)
            self._recent = (self._recent[1], {})
        return chosen

    def close(self) -> list[Row]:
        """What was left out as a row at the last of its steps; [] when nothing was."""
        last = self._last
        if last is None:
            return []
        values = dict(last.values)
        for stat, extremes in self._pending.items():
            if extremes.rows > 1 or stat not in values:
                values.update(extremes.columns(stat))
        return [self._chosen(last, values, self.left_out)]

    def _close_with(self, row: Row) -> Row:
        values = dict(row.values)
        for stat, extremes in self._pending.items():
            if stat in row.values:
                extremes.add(*row.values[stat])
            values.update(extremes.columns(stat))
        return self._chosen(row, values, self.left_out + 1)

    def _chosen(self, row: Row, values: dict[str, Cells], stands_for: int) -> Row:
        assert row.step is not None
        self._sampled.update(dict.fromkeys(row.values, row.step))
        self._pending, self._last, self.left_out = {}, None, 0
        return replace(row, values=values, stands_for=stands_for)

    def _leave_out(self, row: Row) -> None:
        for stat, cells in row.values.items():
            _add(self._pending, stat, cells)
        self._last = row
        self.left_out += 1

    def _tells(self, values: Mapping[str, Cells]) -> bool:
        """Whether some layer shows what it has not shown lately; remembers the row."""
        tells = False
        for stat, cells in values.items():
            tells = tells or _is_news(*cells, *(kept[stat] for kept in self._recent if stat in kept))
            _add(self._recent[1], stat, cells)
        return tells


def _add(extremes: dict[str, Extremes], stat: str, cells: Cells) -> None:
    if stat not in extremes:
        extremes[stat] = Extremes(len(cells[0]))
    extremes[stat].add(*cells)


def _is_news(value: np.ndarray, present: np.ndarray | None, *recent: Extremes) -> bool:
    there = True if present is None else present
    finite = np.isfinite(value)
    if not finite.all():
        known: np.ndarray | bool = False
        for extremes in recent:
            known = known | extremes.has_bad()
        if np.any(~finite & there & ~np.asarray(known)):
            return True
    if not recent:
        return False
    low, high = recent[0].min, recent[0].max
    for extremes in recent[1:]:
        low, high = np.fmin(low, extremes.min), np.fmax(high, extremes.max)
    with np.errstate(invalid="ignore", over="ignore"):  # a layer that has shown nothing is NaN, and compares False
        margin = np.maximum(WIDE * (high - low), WIDE_SHARE * np.maximum(np.abs(low), np.abs(high)))
        outside = (value - high > margin) | (low - value > margin)
    return bool(np.any(outside & finite & there))
