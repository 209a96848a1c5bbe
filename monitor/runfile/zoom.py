"""A stretch of a long scalar as few points, read from a compacted run's levels: each extreme at its own step.

The cells of a level say which of them hold the extremes of a pixel column; only those are looked into, level by level,
down to the rows. So the points are samples that were recorded, as when all rows are read, and the cost follows the
pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from monitor.errors import RunError
from monitor.runfile.attempt import RankData
from monitor.runfile.cells import Cells, join
from monitor.runfile.downsample import Reduced, min_max
from monitor.runfile.levelfile import DamagedBlock, LayerLevels, Levels
from monitor.runfile.levels import Window, layer_window, level_files, within
from monitor.runfile.lineage import Piece
from monitor.runfile.reader import Run
from monitor.runfile.stability import DERIVED
from monitor.runfile.thinned import is_thinned
from monitor.signals import LAYER_CATALOGUE, Signal, unit_of

LONG_ROWS = 20_000
"""Shorter scalars are read whole: that is quick, and no level is gained."""
FEW_CELLS = 4
"""With fewer cells than this in a bucket, looking into the two with the extremes touches half of the rows anyhow."""
EXACT_ROWS = 1 << 18
"""Rows that are looked into to count the values of cells that lie on both sides of zero."""
ENDS = 64
"""Rows are looked at at both ends of a stretch, up to a cell of them: no more than so many times the cells between."""
KINDS = ("nan", "posinf", "neginf")
"""What a non-finite value can be; a mark's kind is an index into these."""


@dataclass(frozen=True, slots=True)
class Zoomed:
    """A stretch of a scalar, small enough to draw."""

    step: np.ndarray
    """int64[P], increasing: minimum and maximum of every pixel column, and the first and the last sample if finite."""
    value: np.ndarray
    """float64[P], finite."""
    count: int
    """Samples in the stretch."""
    nonfinite: tuple[int, int, int]
    """How many of them are of each of ``KINDS``."""
    nonpositive: int
    """Finite samples that are zero or less."""
    nonpositive_exact: bool
    """False: there are that many at least."""
    mark_step: np.ndarray
    """int64[M], increasing: first non-finite sample of each kind and pixel column."""
    mark_kind: np.ndarray
    """uint8[M]: index into ``KINDS``."""
    mark_count: np.ndarray
    """uint32[M]: samples that the mark stands for."""
    gap_step: np.ndarray
    """int64[G], increasing: non-finite samples, the first and the last of every pixel column among them."""

    @property
    def ratio(self) -> float:
        """Finite samples in the stretch per sample kept."""
        return (self.count - sum(self.nonfinite)) / len(self.step) if len(self.step) else 1.0


@dataclass(frozen=True, slots=True)
class AtHand:
    """The rows of an attempt without levels, such as one that goes on from a compacted one."""

    step: np.ndarray
    """int64[n]."""
    value: np.ndarray
    """float64[n]."""

    def values(self, low: int, high: int) -> tuple[np.ndarray, None]:
        """As of :class:`~monitor.runfile.levelfile.Levels`: rows ``low..high``, all of which are there."""
        return self.value[low:high], None

    def at(self, rows: np.ndarray) -> np.ndarray:
        """The values at ``rows``."""
        return self.value[rows]


Part = tuple[Levels | LayerLevels | AtHand, int, int]
"""Levels of one attempt, and which of its rows are meant."""


class LongSignal:
    """A scalar, or one layer, along the current line of a run of which an attempt is compacted. The values of that one
    are read by :meth:`whole`.

    Every row has a value: ``step`` are the rows' steps.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        step: np.ndarray,
        parts: Sequence[Part],
        read: Callable[[], Signal],
        say: Callable[[str], None],
    ):
        self._say = say
        self.name, self.unit = name, unit
        self._step = step
        self._parts, self._read = parts, read

    @property
    def step(self) -> np.ndarray:
        """int64[T]."""
        return self._step

    def __len__(self) -> int:
        return len(self.step)

    def whole(self) -> Signal:
        """All of it, read."""
        return self._read()

    def at(self, row: int) -> float:
        """One value; ``row`` counts along ``step``. NaN when it is damaged."""
        try:
            return self._at(row)
        except DamagedBlock as damage:
            self._say(str(damage))
            signal = self.whole().between(int(self.step[row]), int(self.step[row]))
            return float(signal.value[0]) if len(signal) else math.nan

    def _at(self, row: int) -> float:
        for levels, low, high in self._parts:
            if row < high - low:
                return float(levels.at(np.array([low + row]))[0])
            row -= high - low
        raise IndexError(f"row {row} beyond the last one")

    def tail(self, count: int) -> Signal:
        """The last ``count`` samples."""
        return self.between(int(self.step[-min(count, len(self))]), None)

    def between(self, first_step: int | None, last_step: int | None) -> Signal:
        """The samples with ``first_step <= step <= last_step`` (None: open), read; the others are not."""
        low = 0 if first_step is None else int(np.searchsorted(self.step, first_step, side="left"))
        high = len(self.step) if last_step is None else int(np.searchsorted(self.step, last_step, side="right"))
        try:
            pieces = [levels.values(begin, end)[0] for levels, begin, end in self._ranges(low, high)]
        except DamagedBlock as damage:
            self._say(str(damage))
            return self.whole().between(first_step, last_step)
        value = np.concatenate([np.empty(0), *pieces])
        return Signal(self.name, self.step[low : max(low, high)], value, self.unit)

    def until(self, last_step: int) -> LongSignal | Signal:
        """What lies at steps up to ``last_step``, unread."""
        left = count = int(np.searchsorted(self.step, last_step, side="right"))
        parts: list[Part] = []
        for levels, low, high in self._parts:
            parts.append((levels, low, min(high, low + left)))
            left -= parts[-1][2] - low
        read = partial(_until, self._read, last_step)
        return LongSignal(self.name, self.unit, self.step[:count], parts, read, self._say)

    def sampled(self, most: int) -> Signal:
        """Samples at even distances of the whole, and the last one: at most about ``most`` of each attempt."""
        try:
            pieces = [_sampled(levels, low, high, most) for levels, low, high in self._parts if high > low]
        except DamagedBlock as damage:
            self._say(str(damage))
            return self.whole()
        step, value = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        return Signal(self.name, step, value, self.unit)

    def zoom(self, first_step: int | None, last_step: int | None, buckets: int) -> Zoomed:
        """The samples with ``first_step <= step <= last_step`` (None: open), at most about two per bucket.

        A bucket is an equal share of the steps; a cell of a level belongs to the one that its first step is in.
        """
        if buckets < 1:
            raise ValueError(f"buckets is {buckets}; at least 1 is needed.")
        try:
            return self._zoom(first_step, last_step, buckets)
        except DamagedBlock as damage:
            self._say(str(damage))
            inside = self.whole().between(first_step, last_step)
            return zoom_rows(inside.step, inside.value, buckets)

    def _zoom(self, first_step: int | None, last_step: int | None, buckets: int) -> Zoomed:
        low = 0 if first_step is None else int(np.searchsorted(self.step, first_step, side="left"))
        high = len(self.step) if last_step is None else int(np.searchsorted(self.step, last_step, side="right"))
        ranges = self._ranges(low, max(low, high))
        size = (high - low) // buckets
        factors = [levels.factor for levels, _, _ in ranges if not isinstance(levels, AtHand)]
        if not factors or size < FEW_CELLS * max(factors):
            value = np.concatenate([np.empty(0), *(levels.values(begin, end)[0] for levels, begin, end in ranges)])
            return zoom_rows(self.step[low : max(low, high)], value, buckets)
        first, behind = int(self.step[low]), int(self.step[high - 1]) + 1
        edges = np.ceil(np.linspace(first, behind, buckets + 1)[:-1]).astype(np.int64)
        found: list[Zoomed] = []
        for levels, begin, end in ranges:
            if isinstance(levels, AtHand):
                step = levels.step[begin:end]
                share = -(-buckets * int(step[-1] + 1 - step[0]) // (behind - first))
                found.append(zoom_rows(step, levels.value[begin:end], share))
            else:
                found.append(_Part(levels, begin, end, edges, size).zoomed())
        return _joined(found)

    def _ranges(self, low: int, high: int) -> list[Part]:
        """The rows ``low..high`` (excluded), counted along ``step``, attempt by attempt."""
        ranges: list[Part] = []
        before = 0
        for levels, start, stop in self._parts:
            begin, end = (max(0, min(stop - start, at - before)) + start for at in (low, high))
            if begin < end:
                ranges.append((levels, begin, end))
            before += stop - start
        return ranges


class LongDerived(LongSignal):
    """A derived scalar of a long run: all of it is made from the whole source, once anything of it is asked for."""

    def __init__(self, name: str, run: Run):
        super().__init__(name, unit_of(name), np.empty(0, np.int64), (), partial(run.series, name), run.say_problem)

    @property
    def step(self) -> np.ndarray:
        return self.whole().step

    def between(self, first_step: int | None, last_step: int | None) -> Signal:
        return self.whole().between(first_step, last_step)

    def until(self, last_step: int) -> Signal:
        return self.between(None, last_step)

    def sampled(self, most: int) -> Signal:
        return self.whole()

    def _at(self, row: int) -> float:
        return float(self.whole().value[row])

    def _zoom(self, first_step: int | None, last_step: int | None, buckets: int) -> Zoomed:
        inside = self.between(first_step, last_step)
        return zoom_rows(inside.step, inside.value, buckets)


def _until(read: Callable[[], Signal], last_step: int) -> Signal:
    return read().between(None, last_step)


def _sampled(levels: Levels | LayerLevels | AtHand, low: int, high: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the last row of each cell of the lowest level that has at most ``most`` cells there."""
    if isinstance(levels, AtHand):
        rows = np.arange(high - 1, low - 1, (low - high) // most)[::-1]
        return levels.step[rows], levels.value[rows]
    level, unit = 0, 1
    while (high - low) // unit > most and level < levels.height:
        level, unit = level + 1, unit * levels.factor
    if not level:
        return levels.step[low:high], levels.values(low, high)[0]
    first, behind = low // unit, high // unit
    value, rows = levels.raw(level, "last")[first:behind], np.arange(first + 1, behind + 1) * unit - 1
    if not len(rows) or rows[-1] != high - 1:
        rows, value = np.append(rows, high - 1), np.append(value, levels.at(np.array([high - 1])))
    return levels.step[rows], value


def zoomed(signal: Signal | LongSignal, first_step: int | None, last_step: int | None, buckets: int) -> Zoomed:
    """As :meth:`LongSignal.zoom`, of either kind."""
    if isinstance(signal, LongSignal):
        return signal.zoom(first_step, last_step, buckets)
    inside = signal.between(first_step, last_step)
    return zoom_rows(inside.step, inside.value, buckets)


def zoom_rows(step: np.ndarray, value: np.ndarray, buckets: int) -> Zoomed:
    """Rows at hand as few points; ``step`` int64[T], ``value`` float64[T]. All of them when they are few enough."""
    reduced = min_max(step, value, buckets)
    return Zoomed(
        reduced.step,
        reduced.value,
        len(step),
        (reduced.nan_count, reduced.posinf_count, reduced.neginf_count),
        int((value <= 0).sum()) - reduced.neginf_count,
        True,
        *_thin(reduced, buckets),
        reduced.nonfinite_step,
    )


def _thin(reduced: Reduced, buckets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step, kind and count of one mark per kind and pixel column."""
    step, value = reduced.nonfinite_step, reduced.nonfinite_value
    if not len(step):
        return step, np.empty(0, np.uint8), np.empty(0, np.uint32)
    kind = np.where(np.isnan(value), 0, np.where(value > 0, 1, 2)).astype(np.uint8)
    first = min(step[0], reduced.step[0]) if len(reduced.step) else step[0]
    last = max(step[-1], reduced.step[-1]) if len(reduced.step) else step[-1]
    column = (step - first) * buckets // max(1, last - first + 1)
    _, at, count = np.unique(column * len(KINDS) + kind, return_index=True, return_counts=True)
    order = np.argsort(step[at], kind="stable")
    return step[at][order], kind[at][order], count[order].astype(np.uint32)


def drawn(run: Run, name: str) -> Signal | LongSignal:
    """A scalar along the current line, as cheaply as it can be had: long ones of compacted runs are not read."""
    if is_derived(run, name):
        return LongDerived(name, run) if _long_signal(run, DERIVED[name][0]) else run.series(name)
    return _long_signal(run, name) or run.series(name)


def superseded(run: Run, name: str) -> list[tuple[int, Signal | LongSignal]]:
    """As ``Run.superseded_by_attempt``, compacted attempts unread."""
    found: list[tuple[int, Signal | LongSignal]] = []
    for piece in run.superseded_line:
        data = run.ranks(piece.attempt).get(0)
        rows = data.scalars.step.view() if data else np.empty(0, np.int64)
        levels = _every_row(run, data, name, rows) if data else None
        if levels is None or isinstance(levels, AtHand):
            found += [one for one in run.superseded_by_attempt(name) if one[0] == piece.attempt]
            continue
        low, high = within(rows, piece)
        step, read = rows[low:high], partial(_of_attempt, run, name, piece)
        if len(step):
            signal = LongSignal(name, unit_of(name), step, [(levels, low, high)], read, run.say_problem)
            found.append((piece.attempt, signal))
    return found


def _of_attempt(run: Run, name: str, piece: Piece) -> Signal:
    return run.series(name, attempt=piece.attempt).between(piece.after + 1, piece.upto)


def is_derived(run: Run, name: str) -> bool:
    """Whether ``name`` is made from another signal: nothing of that name was recorded."""
    return name in DERIVED and name not in run.names


def _long_signal(run: Run, name: str) -> LongSignal | None:
    if (run.last_step or 0) < LONG_ROWS:
        return None
    step = run.times().step
    parts: list[Part] = []
    for piece in run.line:
        data = run.ranks(piece.attempt).get(0)
        rows = data.scalars.step.view() if data else step[:0]
        levels = _every_row(run, data, name, rows) if data else None
        if levels is None:
            return None
        parts.append((levels, *within(rows, piece)))
    whole = len(step) >= LONG_ROWS and sum(high - low for _, low, high in parts) == len(step)
    if not whole or all(isinstance(levels, AtHand) for levels, _, _ in parts):
        return None
    return LongSignal(name, unit_of(name), step, parts, partial(run.series, name), run.say_problem)


def _every_row(run: Run, data: RankData, name: str, rows: np.ndarray) -> Levels | AtHand | None:
    """A scalar of one attempt, unread where it has levels; None when a row has no value, which says nothing about its
    neighbours, or when values came later."""
    if name in data.late:
        return None
    try:
        levels = Levels(level_files(run, data, "scalars", rows), name, None)
        return levels if int(levels.raw(levels.height, "count").sum()) == len(rows) else None
    except DamagedBlock as damage:
        run.say_problem(str(damage))
        return None
    except RunError:  # there are none, or not for these rows
        step, value = data.scalars.column(name)
        return AtHand(rows, value) if len(step) == len(rows) else None


def _say_damage(run: Run, error: RunError) -> None:
    """Levels that are not there, or not for these rows, are no news; damaged ones are."""
    if isinstance(error, DamagedBlock):
        run.say_problem(str(error))


class LongMatrix:
    """One statistic of every layer of a compacted run, of which only what is asked for is read."""

    since = None
    """As of a ``LayerMatrix``: each row is of its own step."""

    def __init__(
        self,
        run: Run,
        stat: str,
        step: np.ndarray,
        names: tuple[str, ...],
        parts: Sequence[tuple[Levels, int, int]],
    ):
        spec = LAYER_CATALOGUE.get(stat)
        self.stat, self.names, self.unit = stat, names, spec.unit if spec else "1"
        self.step = step
        """int64[T]: steps of the rows, which may have other statistics."""
        self._run, self._parts = run, parts

    def window(self, first: int | None, last: int | None, points: int) -> Window:
        """As :func:`monitor.runfile.levels.layer_window`."""
        return layer_window(self._run, self.stat, first, last, points)

    def curve(self, layer: str) -> Signal | LongSignal | None:
        """One layer, without the steps it was not measured at; None for an unknown one."""
        if layer not in self.names:
            return None
        column = self.names.index(layer)
        parts = [(LayerLevels(levels, column), low, high) for levels, low, high in self._parts]
        read = partial(self._read, layer, column)
        try:
            if all(int(own.raw(own.height, "count").sum()) == len(own.step) for own, _, _ in parts):
                return LongSignal(layer, self.unit, self.step, parts, read, self._run.say_problem)
        except DamagedBlock as damage:
            self._run.say_problem(str(damage))
        return read()

    def _read(self, layer: str, column: int) -> Signal:
        try:
            pieces = [levels.layer(column, low, high) for levels, low, high in self._parts]
        except DamagedBlock as damage:
            self._run.say_problem(str(damage))
            matrix = self._run.layers(self.stat)
            there = matrix.present[:, column]
            return Signal(layer, matrix.step[there], matrix.value[there, column].astype(float), self.unit)
        value, present = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        return Signal(layer, self.step[present], value[present].astype(float), self.unit)

    def rows(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """float32[T, L] and bool[T, L]: the rows ``low..high`` along ``step``, and which values are there."""
        matrix = self._run.layers(self.stat)
        whole, present = (
            np.zeros((high - low, len(self.names)), np.float32),
            np.zeros((high - low, len(self.names)), bool),
        )
        first, last = (int(row) for row in np.searchsorted(matrix.step, self.step[[low, high - 1]] + [0, 1]))
        at = np.searchsorted(self.step[low:high], matrix.step[first:last])
        whole[at], present[at] = matrix.value[first:last], matrix.present[first:last]
        return whole, present

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Every 64th row or fewer, evenly: float32[n, L], and which values are there."""
        try:
            return self._sample()
        except DamagedBlock as damage:
            self._run.say_problem(str(damage))
            matrix = self._run.layers(self.stat)
            return matrix.value, matrix.present

    def _sample(self) -> tuple[np.ndarray, np.ndarray]:
        values, present = [], []
        for levels, low, high in self._parts:
            level, unit = 1, levels.factor
            while level < levels.height and (high - low) // unit > LONG_ROWS:
                level, unit = level + 1, unit * levels.factor
            cells = slice(low // unit, high // unit)  # the last row of each
            values.append(levels.raw(level, "last")[cells])
            present.append(levels.raw(level, "count")[cells] > 0)
        return np.concatenate(values), np.concatenate(present)


def long_matrix(run: Run, stat: str) -> LongMatrix | None:
    """One statistic along the current line, unread; None when it is short, not compacted, or its layers changed."""
    names: tuple[str, ...] | None = None
    parts: list[tuple[Levels, int, int]] = []
    steps: list[np.ndarray] = []
    for piece in run.line:
        data = run.ranks(piece.attempt).get(0)
        blocks = data.layers.blocks if data else []
        if data is None or len(blocks) != 1 or blocks[0].names != (names or blocks[0].names):
            return None
        if is_thinned(data.layers, data.dense, stat):
            return None  # a row stands for more steps than its own
        names, rows = blocks[0].names, blocks[0].step.view()
        try:
            levels = Levels(level_files(run, data, "layers", rows), stat, len(names))
        except RunError as error:
            _say_damage(run, error)
            return None
        low, high = within(rows, piece)
        parts.append((levels, low, high))
        steps.append(rows[low:high])
    if names is None or sum(map(len, steps)) * len(names) < LONG_ROWS:
        return None
    return LongMatrix(run, stat, steps[0] if len(steps) == 1 else np.concatenate(steps), names, parts)


# Cells of a stretch, and into them -----------------------------------------------------------------------------------


class _Part:
    """Rows ``low..high`` of one attempt: rows at the ends, cells of one level between them, in groups by bucket."""

    def __init__(self, levels: Levels | LayerLevels, low: int, high: int, edges: np.ndarray, size: int):
        self.levels, self.rows = levels, high - low
        self.level, unit, begin, end = _split(levels, low, high, size)
        ends = [(low, high)]
        if self.level:
            ends = [(low, begin * unit), (min(high, end * unit), high)]
        self.head = ends[0][1] - ends[0][0]
        pieces = [_rows_as_cells(levels, *ends[0])]
        first = [np.arange(*ends[0])]
        if self.level:
            pieces += [levels.cells(self.level, begin, end), _rows_as_cells(levels, *ends[1])]
            first += [np.arange(begin, end) * unit, np.arange(*ends[1])]
        self.tail = self.head + (end - begin if self.level else 0)
        """Cells ``head..tail`` are of the level; those before and behind are rows."""
        self.unit = unit
        self.cells, self.first = join(pieces), np.concatenate(first)
        at = np.searchsorted(levels.step[self.first], edges, side="left")
        self.starts = np.unique(np.append(at[at < len(self.first)], 0))
        self.group = np.repeat(np.arange(len(self.starts)), np.diff(np.append(self.starts, len(self.first))))

    def step(self, rows: np.ndarray) -> np.ndarray:
        return self.levels.step[rows]

    def zoomed(self) -> Zoomed:
        shown = self.extremes()
        marks = [self.of_kind(kind) for kind in range(len(KINDS))]
        at = self.step(np.concatenate([rows for rows, _ in marks]))
        kind_of = np.repeat(np.arange(len(KINDS), dtype=np.uint8), [len(rows) for rows, _ in marks])
        nan, posinf, neginf = (int(number.sum()) for _, number in marks)
        order = np.argsort(at, kind="stable")
        return Zoomed(
            self.step(shown),
            self.levels.at(shown),
            self.rows,
            (nan, posinf, neginf),
            *self.nonpositive(),
            at[order],
            kind_of[order],
            np.concatenate([number for _, number in marks])[order],
            np.unique(np.concatenate([at, self.step(self.last_nonfinite())])),
        )

    def extremes(self) -> np.ndarray:
        """Rows of every group's minimum and maximum, and of both ends where they are finite; sorted."""
        ends = self.first[[0]], self.first[[-1]] + self._size(len(self.first) - 1) - 1
        finite = [end for end in ends if np.isfinite(self.levels.at(end)).all()]
        return np.unique(np.concatenate([self._rows_of("min", np.fmin), self._rows_of("max", np.fmax), *finite]))

    def _size(self, cell: int) -> int:
        if not self.head <= cell < self.tail:
            return 1
        return min(self.unit, len(self.levels.step) - int(self.first[cell]))

    def _rows_of(self, name: str, best: np.ufunc) -> np.ndarray:
        values = getattr(self.cells, name)
        wanted = best.reduceat(values, self.starts)[self.group]
        chosen = self._first_of_group(values == wanted)
        target = wanted[chosen]

        def holds(level: int, index: np.ndarray, targets: np.ndarray) -> np.ndarray:
            return (self.levels.at(index) if level == 0 else self.levels.picked(level, name, index)) == targets[:, None]

        return self._descend(chosen, holds, target)

    def of_kind(self, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """First row of a kind of non-finite value in every group that has one, and how many the group has."""
        counts = getattr(self.cells, KINDS[kind])
        if not counts.any():
            return np.empty(0, np.int64), np.empty(0, np.uint32)
        sums = np.add.reduceat(counts, self.starts, dtype=np.uint32)
        chosen = self._first_of_group(counts > 0)
        return self._descend(chosen, self._has(kind), chosen), sums[self.group[chosen]]

    def last_nonfinite(self) -> np.ndarray:
        """Last non-finite row of every group that has one, and all of them among the rows at the ends."""
        bad = (self.cells.nan + self.cells.posinf + self.cells.neginf) > 0
        if not bad.any():
            return np.empty(0, np.int64)
        last = len(bad) - 1 - self._first_of_group(bad[::-1], self.group[::-1])
        rows = self._descend(np.sort(last), self._has(None), last, backwards=True)
        plain = np.ones(len(bad), bool)
        plain[self.head : self.tail] = False
        return np.concatenate([rows, self.first[bad & plain]])

    def _has(self, kind: int | None) -> Callable[[int, np.ndarray, np.ndarray], np.ndarray]:
        def holds(level: int, index: np.ndarray, _: np.ndarray) -> np.ndarray:
            if level == 0:
                value = self.levels.at(index)
                test = (np.isnan, np.isposinf, np.isneginf)[kind] if kind is not None else lambda v: ~np.isfinite(v)
                return np.asarray(test(value))
            names = KINDS if kind is None else (KINDS[kind],)
            return np.any([self.levels.picked(level, name, index) > 0 for name in names], axis=0)

        return holds

    def _first_of_group(self, mask: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
        """The first cell of every group that is in ``mask``."""
        at = np.flatnonzero(mask)
        own = (self.group if group is None else group)[at]
        return at[np.append(True, own[1:] != own[:-1])] if len(at) else at

    def _descend(
        self,
        chosen: np.ndarray,
        holds: Callable[[int, np.ndarray, np.ndarray], np.ndarray],
        targets: np.ndarray,
        backwards: bool = False,
    ) -> np.ndarray:
        """The first (last) row in each of the cells ``chosen`` (increasing) for which ``holds``."""
        inner = (chosen >= self.head) & (chosen < self.tail)
        rows = self.first[chosen]
        index, own = rows[inner] // self.unit, targets[inner]
        for level in range(self.level - 1, -1, -1):
            if not len(index):
                break
            inside = index[:, None] * self.levels.factor + np.arange(self.levels.factor)
            size = len(self.levels.step) if level == 0 else self.levels.cell_count(level)
            good = holds(level, np.minimum(inside, size - 1), own) & (inside < size)
            pick = self.levels.factor - 1 - good[:, ::-1].argmax(axis=1) if backwards else good.argmax(axis=1)
            index = np.minimum(index * self.levels.factor + pick, size - 1)
        rows[inner] = index
        return rows

    def nonpositive(self) -> tuple[int, bool]:
        """Finite values that are zero or less, and whether that is all of them."""
        cells = self.cells
        finite = cells.count - cells.nan - cells.posinf - cells.neginf
        below = int(finite[cells.max <= 0].sum())
        mixed = np.flatnonzero((cells.min <= 0) & (cells.max > 0))
        if len(mixed) * self.unit > EXACT_ROWS:
            return below + len(mixed), False
        if len(mixed):
            rows = self.first[mixed][:, None] + np.arange(self.unit)
            value = self.levels.at(np.minimum(rows, len(self.levels.step) - 1))
            below += int(((value <= 0) & np.isfinite(value) & (rows < len(self.levels.step))).sum())
        return below, True


def _split(levels: Levels | LayerLevels, low: int, high: int, size: int) -> tuple[int, int, int, int]:
    """Level, rows of its cells, and which of these lie whole within the rows ``low..high``; level 0: none is needed."""
    level, unit = 0, 1
    while (above := unit * levels.factor) <= size and above**2 <= ENDS * (high - low) and level < levels.height:
        level, unit = level + 1, above
    while level:
        begin, end = -(-low // unit), high // unit if high < len(levels.step) else -(-high // unit)
        if begin < end:
            return level, unit, begin, end
        level, unit = level - 1, unit // levels.factor
    return 0, 1, low, high


def _rows_as_cells(levels: Levels | LayerLevels, low: int, high: int) -> Cells:
    value = levels.values(low, high)[0] if high > low else np.empty(0)
    shown = np.where(np.isfinite(value), value, np.nan)
    kinds = (test(value).astype(np.uint32) for test in (np.isnan, np.isposinf, np.isneginf))
    return Cells(shown, shown, value, np.ones(len(value), np.uint32), *kinds)


def _joined(parts: Sequence[Zoomed]) -> Zoomed:
    """One stretch of stretches that follow one another."""
    nan, posinf, neginf = (sum(part.nonfinite[kind] for part in parts) for kind in range(len(KINDS)))
    return Zoomed(
        np.concatenate([part.step for part in parts]),
        np.concatenate([part.value for part in parts]),
        sum(part.count for part in parts),
        (nan, posinf, neginf),
        sum(part.nonpositive for part in parts),
        all(part.nonpositive_exact for part in parts),
        np.concatenate([part.mark_step for part in parts]),
        np.concatenate([part.mark_kind for part in parts]),
        np.concatenate([part.mark_count for part in parts]),
        np.concatenate([part.gap_step for part in parts]),
    )
