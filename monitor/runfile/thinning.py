"""Which rows of per-layer statistics are written when a run is too long for all of them.

Every row up to a budget of bytes, then every 4th step, 8th, 16th, ...: each further stride lasts until it has used an
eighth of the budget again, so the volume grows with the logarithm of the number of steps. (There is no stride of 2: a
row with its extremes is three times as large, so that would be more than all rows.) A row that is written after others
were left out carries, for every statistic that they had, the smallest and the largest finite value of each layer over
its *interval*, the steps behind the last row written up to its own, and how many values were NaN or infinite.

What is telling is written at once: the first non-finite value of a layer, and a value far outside all that its layer
has shown lately. Such rows have an allowance that regular rows earn, so that no series, however wild, defeats the
budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
LATE_SECONDS = 30.0
"""What was left out longer ago is written early, while half of the allowance is there: for who looks on, and for what a
killed process leaves behind."""
RECENT_ROWS = 32
"""What a layer has shown lately is taken from so many rows to twice as many, and not judged by with less than half."""
WIDE = 2.0
"""A value is telling when it lies outside what its layer has shown lately by this multiple of that range, about ten
standard deviations from the middle of a normal distribution..."""
WIDE_SHARE = 0.5
"""...and by this share of the largest size in it: a constant that changes in its last digit tells nothing."""

Cells = tuple[np.ndarray, np.ndarray | None]
"""float32[L], and bool[L] present (None: all)."""
_KINDS = (("nan", np.isnan), ("posinf", np.isposinf), ("neginf", np.isneginf))


class Table:
    """The values of one row: S statistics of L layers."""

    def __init__(self, values: Mapping[str, Cells]) -> None:
        self.stats = tuple(values)
        self.value = np.stack([value for value, _ in values.values()])
        """float32[S, L]."""
        finite = np.isfinite(self.value)
        self.bad: np.ndarray | None = None if finite.all() else ~finite
        """bool[S, L]: NaN and infinities; None when there are none."""
        shown = finite
        if any(present is not None for _, present in values.values()):
            everything = np.ones(self.value.shape[1], bool)
            there = np.stack([everything if present is None else present for _, present in values.values()])
            self.bad = None if self.bad is None else self.bad & there
            shown = finite & there
        self.finite = self.value if shown.all() else np.where(shown, self.value, np.float32(np.nan))
        """float32[S, L]; NaN where there is no finite value."""


class Extremes:
    """S statistics of L layers over some rows that have them all."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.rows = 0
        self.min = np.full(shape, np.nan, np.float32)
        """Smallest finite value; NaN when there is none."""
        self.max = self.min.copy()
        self.counts: dict[str, np.ndarray] = {}
        """``nan``, ``posinf``, ``neginf`` -> int64[S, L], those that occurred."""

    def add(self, table: Table) -> None:
        """Take one more row in."""
        self.rows += 1
        np.fmin(self.min, table.finite, out=self.min)
        np.fmax(self.max, table.finite, out=self.max)
        if table.bad is not None:
            for kind, test in _KINDS:
                found = test(table.value) & table.bad
                if found.any():
                    self.counts[kind] = self.counts.get(kind, 0) + found.astype(np.int64)


@dataclass(slots=True)
class Told:
    """What is known of one statistic over an interval."""

    rows: int
    min: np.ndarray
    max: np.ndarray
    counts: dict[str, np.ndarray]

    def columns(self, stat: str) -> dict[str, Cells]:
        """As a row's values: the extremes, and the counts of what there was."""
        there = np.isfinite(self.min)
        found: dict[str, Cells] = {
            f"{stat}.min": (np.where(there, self.min, np.float32(0)), there),
            f"{stat}.max": (np.where(there, self.max, np.float32(0)), there),
        }
        found.update((f"{stat}.{kind}", (count.astype(np.float32), None)) for kind, count in self.counts.items())
        return found


def _told(groups: Mapping[tuple[str, ...], Extremes]) -> dict[str, Told]:
    """By statistic what was gathered by the set of statistics that a row had."""
    found: dict[str, Told] = {}
    for stats, extremes in groups.items():
        for at, stat in enumerate(stats):
            counts = {kind: count[at] for kind, count in extremes.counts.items() if count[at].any()}
            told = found.get(stat)
            if told is None:
                found[stat] = Told(extremes.rows, extremes.min[at], extremes.max[at], counts)
                continue
            told.rows += extremes.rows
            told.min, told.max = np.fmin(told.min, extremes.min[at]), np.fmax(told.max, extremes.max[at])
            told.counts.update((kind, told.counts.get(kind, 0) + count) for kind, count in counts.items())
    return found


class Recent:
    """What rows with one set of statistics have shown lately."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._before, self._now = Extremes(shape), Extremes(shape)

    def is_news(self, table: Table) -> bool:
        """Whether some layer shows in a row what it has not shown lately; the row is taken in."""
        before, now = self._before, self._now
        news = table.bad is not None and bool((table.bad & ~self._known_bad()).any())
        if not news and before.rows + now.rows >= RECENT_ROWS // 2:
            low, high = np.fmin(before.min, now.min), np.fmax(before.max, now.max)
            value = table.finite
            with np.errstate(invalid="ignore", over="ignore"):  # a layer that has shown nothing is NaN: no news
                margin = np.maximum(WIDE * (high - low), WIDE_SHARE * np.maximum(np.abs(low), np.abs(high)))
                news = bool(((value - high > margin) | (low - value > margin)).any())
        now.add(table)
        if now.rows >= RECENT_ROWS:
            self._before, self._now = now, Extremes(now.min.shape)
        return news

    def _known_bad(self) -> np.ndarray:
        known = np.zeros(self._now.min.shape, bool)
        for extremes in (self._before, self._now):
            for count in extremes.counts.values():
                known |= count > 0
        return known


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
        self._pending: dict[tuple[str, ...], Extremes] = {}
        self._last: Row | None = None
        self._sampled: dict[str, int] = {}
        """Step of the last row chosen with a value of the statistic."""
        self._recent: dict[tuple[str, ...], Recent] = {}
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
        telling = False
        if row.values:
            table = Table(row.values)
            shape = table.value.shape
            telling = self._recent.setdefault(table.stats, Recent(shape)).is_news(table) and self._allowance >= 2
            if telling:
                self._allowance -= 2
                chosen += self.close()  # so that the telling row speaks of its own step alone
            self._pending.setdefault(table.stats, Extremes(shape)).add(table)
        self._last = row
        self.left_out += 1
        if due or telling:
            chosen += self.close()
        if due:
            self._allowance = min(TELLING_AT_ONCE, self._allowance + TELLING_PER_REGULAR)
        return chosen

    def close_early(self) -> list[Row]:
        """As :meth:`close`, at the cost of the allowance; [] when what is left of it is kept for telling rows."""
        if self._last is None or self._allowance <= TELLING_AT_ONCE / 2:
            return []
        self._allowance -= 1
        return self.close()

    def close(self) -> list[Row]:
        """The row that stands for what was left out, at the last of its steps; [] when nothing was."""
        last = self._last
        if last is None:
            return []
        assert last.step is not None
        values = dict(last.values)
        for stat, told in _told(self._pending).items():
            if told.rows > (stat in last.values):
                values.update(told.columns(stat))
        row = replace(last, values=values, stands_for=self.left_out)
        self._sampled.update(dict.fromkeys(last.values, last.step))
        self._pending, self._last, self.left_out = {}, None, 0
        return [row]
