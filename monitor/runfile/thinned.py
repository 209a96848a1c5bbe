"""Per-layer rows as they are to be read: dense windows put in, and what thinned rows tell of the steps left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np

from monitor.runfile import format as fmt
from monitor.runfile.tables import Growing, LayerBlock, LayerTable, frozen
from monitor.signals import LayerMatrix

LayerPart = tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]
"""Layer names, steps, values [n, L], present [n, L]."""

_COUNTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nan": np.isnan,
    "posinf": np.isposinf,
    "neginf": np.isneginf,
}


@dataclass(frozen=True, slots=True)
class Extents:
    """One statistic of L layers over T intervals of steps, which follow one another and do not overlap.

    A row that was written after others were left out tells of ``since <= step <= step``; any other of its step alone.
    Rows of dense windows are not among these: what they hold is in the extremes already.
    """

    names: tuple[str, ...]
    step: np.ndarray
    """int64[T]."""
    since: np.ndarray
    """int64[T]: first step of the interval."""
    value: np.ndarray
    """float32[T, L] at ``step``."""
    present: np.ndarray
    """bool[T, L]: False where nothing was measured at ``step``."""
    min: np.ndarray
    """float32[T, L]: smallest finite value of the interval; NaN when there is none."""
    max: np.ndarray
    nan: np.ndarray
    """uint32[T, L]: how many values of the interval are NaN."""
    posinf: np.ndarray
    neginf: np.ndarray

    @property
    def nonfinite(self) -> np.ndarray:
        """uint32[T, L]: how many values of the interval are NaN or infinite."""
        return self.nan + self.posinf + self.neginf

    def rows(self, chosen: np.ndarray | slice) -> Extents:
        """Some of the rows."""
        return Extents(self.names, **{name: getattr(self, name)[chosen] for name in _ARRAYS})


_ARRAYS = tuple(field.name for field in fields(Extents) if field.name != "names")


def is_thinned(table: LayerTable, dense: LayerTable, stat: str) -> bool:
    """Whether rows of the statistic were left out, or a dense window has some."""
    names = {f"{stat}.{kind}" for kind in fmt.EXTREMES}
    return bool(dense.blocks) or any(not names.isdisjoint(block.stats) for block in table.blocks)


def samples(table: LayerTable, dense: LayerTable, stat: str) -> Iterator[LayerPart]:
    """The rows of one statistic in which it was measured, block by block, with those of dense windows among them."""
    for block, first, last in _spans(table, dense):
        parts = [part for part in (_column(block, stat),) if part is not None]
        if block not in dense.blocks:
            parts += _dense_rows(dense, block.names, stat, first, last)
        if parts:
            step, value, present = parts[0] if len(parts) == 1 else _merged(parts)
            yield block.names, step, value, present


def _spans(table: LayerTable, dense: LayerTable) -> Iterator[tuple[LayerBlock, int, int]]:
    """The blocks, and for each the steps (first included, last excluded) whose dense rows belong to it."""
    blocks = [block for block in table.blocks if len(block.step)] or dense.blocks
    begins = [int(block.step.view(0, 1)[0]) for block in blocks]
    ends = [*begins[1:], np.iinfo(np.int64).max]
    for at, block in enumerate(blocks):
        yield block, begins[at] if at else -1, ends[at]


def _column(block: LayerBlock, stat: str, begin: int = -1) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Steps, values and presence of the rows from step ``begin`` on."""
    column = block.column(stat)
    if column is None:
        return None
    step = column.step.view()
    low = int(np.searchsorted(step, begin))
    return step[low:], column.value.view(low), column.present()[low:]


def _dense_rows(
    dense: LayerTable, names: tuple[str, ...], stat: str, first: int, last: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Steps, values and presence of dense rows about the layers ``names`` with ``first <= step < last``."""
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for block in dense.blocks:
        arrays = _column(block, stat) if block.names == names else None
        if arrays is None:
            continue
        low, high = np.searchsorted(arrays[0], [first, last])
        if high > low:
            step, value, present = arrays
            found.append((step[low:high], value[low:high], present[low:high]))
    return found


def _merged(parts: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """The rows of several parts by step; of a step that several have, the row of the first."""
    step = np.concatenate([part[0] for part in parts])
    step, chosen = np.unique(step, return_index=True)
    return frozen(step), *(frozen(np.concatenate(arrays)[chosen]) for arrays in list(zip(*parts, strict=True))[1:])


# Extremes ----------------------------------------------------------------------------------------------------------


def extents(table: LayerTable, stat: str, after: int = -1, begin: int = -1) -> Iterator[Extents]:
    """What is known of one statistic at every step behind ``after``, block by block: the rows from ``begin`` on.

    The last block is given even without rows: a dense window may have some.
    """
    before = after
    for block in table.blocks:
        if not len(block.step):
            continue
        last = int(block.step.view()[-1])
        found = _block_extents(block, stat, before, begin)
        if found is not None and (len(found.step) or block is table.blocks[-1]):
            yield found
        before = last


def _block_extents(block: LayerBlock, stat: str, before: int, begin: int) -> Extents | None:
    columns = {kind: _column(block, f"{stat}.{kind}" if kind else stat, begin) for kind in ("", *fmt.EXTREMES)}
    every = [column[0] for column in columns.values() if column is not None]
    if not every:
        return None
    step = every[0]
    for other in every[1:]:
        step = step if np.array_equal(step, other) else np.union1d(step, other)
    width = len(block.names)
    value, present, _ = _laid_out(columns[""], step, width)
    bad = ~np.isfinite(value)
    whole = not bool((bad & present).any())
    finite = present & ~bad
    own = np.where(finite, value, np.float32(np.nan))
    least, least_there, thinned = _laid_out(columns["min"], step, width)
    most, most_there, more = _laid_out(columns["max"], step, width)
    thinned = thinned | more
    low = np.where(thinned[:, None], np.where(least_there, least, np.float32(np.nan)), own)
    high = np.where(thinned[:, None], np.where(most_there, most, np.float32(np.nan)), own)
    counts: dict[str, np.ndarray] = {}
    for kind, test in _COUNTS.items():
        if columns[kind] is None and (whole or not bad.any()):
            counts[kind] = np.zeros(value.shape, np.uint32)
            continue
        counted, there, given = _laid_out(columns[kind], step, width)
        usable = there & np.isfinite(counted) & (counted > 0)  # a file may hold anything
        told = np.minimum(np.where(usable, counted, 0), 2**31).astype(np.uint32)
        counts[kind] = np.where((thinned | given)[:, None], told, (present & test(value)).astype(np.uint32))
    rows = block.step.view()
    at = np.searchsorted(rows, step)
    previous = np.where(at > 0, rows[np.maximum(at - 1, 0)], before)
    since = np.where(thinned, np.minimum(previous + 1, step), step)
    return Extents(block.names, step, since, value, present, low, high, **counts)


def _laid_out(
    column: tuple[np.ndarray, np.ndarray, np.ndarray] | None, rows: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values float32[n, L] at the steps ``rows``, which are there bool[n, L], and the rows with any bool[n]."""
    if column is None:
        return np.zeros((len(rows), width), np.float32), np.zeros((len(rows), width), bool), np.zeros(len(rows), bool)
    step, value, present = column
    if len(step) == len(rows):
        return value, present, np.ones(len(rows), bool)
    full, there, given = (
        np.zeros((len(rows), width), np.float32),
        np.zeros((len(rows), width), bool),
        np.isin(rows, step),
    )
    full[given], there[given] = value, present
    return full, there, given


def with_windows(found: Extents, dense: LayerTable, stat: str, first: int, last: int) -> Extents:
    """``found`` and the rows of dense windows with ``first <= step < last``, by step.

    What a window has at its own step is not told again by the interval in which that step lies: this one keeps an
    extreme or a non-finite value only when it is its own row's or of steps that are in no window.
    """
    lowest = min([first, *found.since[:1].tolist()])
    full = _dense_rows(dense, found.names, stat, lowest, last)
    if not full:
        return found
    step, value, present = full[0] if len(full) == 1 else _merged(full)
    new = ~np.isin(step, found.step)
    window = _own(found.names, step[new], value[new], present[new])
    found = _told_once(found, window)
    window = window.rows(window.step >= first)
    order = np.argsort(np.concatenate([found.step, window.step]), kind="stable")
    pairs = {name: (getattr(found, name), getattr(window, name)) for name in _ARRAYS}
    return Extents(found.names, **{name: np.concatenate(pair)[order] for name, pair in pairs.items()})


def peaks(stat: str, found: Extents, unit: str) -> LayerMatrix:
    """The largest value of every interval; NaN or infinite where any value of it was."""
    bad = found.nonfinite
    infinite = np.where(found.posinf > 0, np.float32(np.inf), np.float32(-np.inf))
    value = np.where(bad > 0, np.where(found.nan > 0, np.float32(np.nan), infinite), found.max)
    present = (bad > 0) | np.isfinite(found.max)
    value = np.where(present, value, np.float32(0))
    arrays = [frozen(array) for array in (found.step.view(), value, present, found.since.view(), bad)]
    return LayerMatrix(stat, arrays[0], found.names, arrays[1], arrays[2], unit, arrays[3], arrays[4])


def _own(names: tuple[str, ...], step: np.ndarray, value: np.ndarray, present: np.ndarray) -> Extents:
    """Rows that speak of their own steps alone."""
    shown = np.where(present & np.isfinite(value), value, np.float32(np.nan))
    counts = {kind: (present & test(value)).astype(np.uint32) for kind, test in _COUNTS.items()}
    return Extents(names, step, step, value, present, shown, shown, **counts)


def _told_once(found: Extents, windows: Extents) -> Extents:
    """``found`` without what ``windows``, rows at other steps, tell themselves."""
    low, high = np.searchsorted(windows.step, found.since), np.searchsorted(windows.step, found.step)
    own = _own(found.names, found.step, found.value, found.present)
    arrays = {name: getattr(found, name).copy() for name in ("since", "min", "max", *_COUNTS)}
    for row in np.flatnonzero(high > low).tolist():
        inside = windows.rows(slice(low[row], high[row]))
        told_high = found.max[row] <= np.fmax.reduce(inside.max, axis=0)
        told_low = found.min[row] >= np.fmin.reduce(inside.min, axis=0)
        arrays["max"][row] = np.where(told_high, own.max[row], found.max[row])
        arrays["min"][row] = np.where(told_low, own.min[row], found.min[row])
        rest = np.zeros(len(found.names), np.uint32)
        for kind in _COUNTS:
            count = arrays[kind][row]
            count -= np.minimum(count, getattr(inside, kind).sum(axis=0, dtype=np.uint32))
            rest += count - np.minimum(count, getattr(own, kind)[row])
        # Where an end of the interval is the row's own or nobody's, no other step is needed to explain it.
        told_high |= ~(found.max[row] > own.max[row]) & np.isfinite(own.max[row]) | np.isnan(found.max[row])
        told_low |= ~(found.min[row] < own.min[row]) & np.isfinite(own.min[row]) | np.isnan(found.min[row])
        if told_high.all() and told_low.all() and not rest.any():
            arrays["since"][row] = found.step[row]
    return replace(found, **arrays)


def within(found: Extents, after: int, upto: int | None) -> Extents:
    """The intervals that end at ``after < step <= upto`` (None: open)."""
    low = int(np.searchsorted(found.step, after, side="right"))
    high = len(found.step) if upto is None else int(np.searchsorted(found.step, upto, side="right"))
    part = found.rows(slice(low, high))
    return replace(part, since=np.maximum(part.since, after + 1))


def end_to_end(parts: Sequence[LayerMatrix]) -> LayerMatrix:
    """Matrices with ``since`` and ``nonfinite``, of intervals one after the other, as one; of all their layers."""
    if len(parts) == 1:
        return parts[0]
    places = {name: index for index, name in enumerate(dict.fromkeys(name for part in parts for name in part.names))}
    names, columns = tuple(places), [[places[name] for name in part.names] for part in parts]
    rows = sum(len(part.step) for part in parts)
    value, present = np.zeros((rows, len(names)), np.float32), np.zeros((rows, len(names)), bool)
    nonfinite = np.zeros((rows, len(names)), np.uint32)
    at = 0
    for part, own in zip(parts, columns, strict=True):
        place = np.ix_(range(at, at + len(part.step)), own)
        value[place], present[place] = part.value, part.present
        nonfinite[place] = 0 if part.nonfinite is None else part.nonfinite
        at += len(part.step)
    step, since = (np.concatenate(steps) for steps in zip(*((part.step, part.begins) for part in parts), strict=True))
    arrays = [frozen(array) for array in (step, value, present, since, nonfinite)]
    return LayerMatrix(parts[0].stat, arrays[0], names, arrays[1], arrays[2], parts[0].unit, arrays[3], arrays[4])


# Following ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one attempt that a line has: ``after < step <= upto`` (None: open)."""

    after: int
    upto: int | None
    table: LayerTable
    dense: LayerTable

    def parts(self, stat: str, windows: bool, begin: int = -1) -> list[Extents]:
        """The intervals block by block, those that end at ``begin`` or later."""
        parts = list(extents(self.table, stat, self.after, begin))
        if windows and parts:
            begins = [begin, *(int(part.step[-1]) + 1 for part in parts[:-1]), np.iinfo(np.int64).max]
            parts = [
                with_windows(part, self.dense, stat, first, last)
                for part, (first, last) in zip(parts, pairwise(begins), strict=True)
            ]
        return [within(part, self.after, self.upto) for part in parts]

    def counts(self) -> tuple[int, int]:
        """How many rows have been read."""
        return _rows(self.table), _rows(self.dense)

    def first_new(self, counts: tuple[int, int]) -> int:
        """The first step of which more may be known than when so many rows had been read."""
        new = [
            step
            for table, count in zip((self.table, self.dense), counts, strict=True)
            for step in _step_at(table, count)
        ]
        return min(new, default=np.iinfo(np.int64).max)


def _rows(table: LayerTable) -> int:
    return sum(len(block.step) for block in table.blocks)


def _step_at(table: LayerTable, row: int) -> list[int]:
    """The step of the table's row number ``row``; [] when there are no more than that."""
    for block in table.blocks:
        if row < len(block.step):
            return [int(block.step.view()[row])]
        row -= len(block.step)
    return []


class Peaks:
    """The peaks of one statistic along a line of attempts; what was read before is not worked on again."""

    def __init__(self) -> None:
        self._identity: Any = None
        self._counts: list[tuple[int, int]] = []
        self._names: tuple[str, ...] = ()
        self._arrays: list[Growing] = []

    def update(self, identity: Any, stat: str, unit: str, sources: Sequence[Source]) -> LayerMatrix | None:
        """The peaks as far as the sources have been read; None without any row.

        Args:
            identity: equal to that of the call before while the sources are the same.
        """
        counts = [source.counts() for source in sources]
        known = identity == self._identity and counts[:-1] == self._counts[:-1] and bool(self._arrays)
        begin = sources[-1].first_new(self._counts[-1]) if known else -1
        growing = [sources[-1]] if known else sources
        parts = [peaks(stat, part, unit) for source in growing for part in source.parts(stat, True, begin)]
        if known and any(part.names != self._names for part in parts):
            self._identity = None
            return self.update(identity, stat, unit, sources)
        self._identity, self._counts = identity, counts
        if not known:
            if not parts:
                return None
            whole = end_to_end(parts)
            self._names, self._arrays = whole.names, []
            self._append(whole)
            return self._matrix(stat, unit)
        self._cut(begin)
        for part in parts:
            self._append(part)
        return self._matrix(stat, unit)

    def _cut(self, begin: int) -> None:
        """Keep the rows before step ``begin``; arrays given away keep theirs."""
        low = int(np.searchsorted(self._arrays[0].view(), begin))
        if low == len(self._arrays[0]):
            return
        kept, self._arrays = [array.view(0, low) for array in self._arrays], []
        self._append_arrays(kept)

    def _append(self, part: LayerMatrix) -> None:
        assert part.nonfinite is not None
        self._append_arrays([part.step, part.begins, part.value, part.present, part.nonfinite])

    def _append_arrays(self, arrays: Sequence[np.ndarray]) -> None:
        if not self._arrays:
            self._arrays = [Growing(array.dtype, array.shape[1] if array.ndim > 1 else None) for array in arrays]
        for whole, array in zip(self._arrays, arrays, strict=True):
            whole.append(array)

    def _matrix(self, stat: str, unit: str) -> LayerMatrix:
        step, since, value, present, nonfinite = (array.view() for array in self._arrays)
        return LayerMatrix(stat, step, self._names, value, present, unit, since, nonfinite)
