"""Columns that grow: what a reader keeps of a stream, so that a poll costs only what is new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from monitor.runfile.format import MAX_STEP
from monitor.runfile.rows import Rows


class Growing:
    """A numpy array that is appended to; capacity doubles, so appending costs a constant per element."""

    __slots__ = ("_buffer", "_size")

    def __init__(self, dtype: Any, width: int | None = None):
        self._buffer = np.empty((0,) if width is None else (0, width), dtype=dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, values: np.ndarray) -> None:
        """Copy ``values`` ([n] or [n, width]) to the end; with one axis more, n is the product of the first two."""
        folded = values.ndim > self._buffer.ndim
        size = self._size + (values.shape[0] * values.shape[1] if folded else len(values))
        if size > len(self._buffer):
            larger = np.empty((max(size, 2 * len(self._buffer), 64), *self._buffer.shape[1:]), self._buffer.dtype)
            larger[: self._size] = self._buffer[: self._size]
            self._buffer = larger
        self._buffer[self._size : size].reshape(values.shape)[...] = values  # a view: the target is contiguous
        self._size = size

    def view(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A read-only view. It stays valid and unchanged when more is appended."""
        view = self._buffer[start : self._size if stop is None else min(stop, self._size)]
        view.flags.writeable = False
        return view


def frozen(array: np.ndarray) -> np.ndarray:
    """The same array, read-only."""
    array.flags.writeable = False
    return array


class Joined:
    """Arrays in several parts, end to end. While only the last part grows, only what it gained is copied."""

    def __init__(self) -> None:
        self._fixed: Any = None
        self._taken = 0
        self._arrays: list[Growing] = []

    def update(self, identity: Any, parts: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """The parts, joined array by array.

        Args:
            identity: equal to that of the call before when all parts are the same but for what the last one gained;
                None when that is not known.
        """
        lengths = [len(part[0]) for part in parts]
        fixed = (identity, lengths[:-1])
        new: Sequence[tuple[np.ndarray, ...]]
        if identity is not None and self._fixed == fixed and lengths[-1] >= self._taken:
            new = [tuple(array[self._taken :] for array in parts[-1])]
        else:
            self._arrays = [Growing(array.dtype, array.shape[1] if array.ndim > 1 else None) for array in parts[0]]
            new = parts
        for part in new:
            for whole, array in zip(self._arrays, part, strict=True):
                whole.append(array)
        self._fixed, self._taken = fixed, lengths[-1]
        return tuple(whole.view() for whole in self._arrays)


class Deferred:
    """A column whose values may wait in the file until somebody asks for them.

    What is appended meanwhile lies behind, small as it is: it must not keep what it was read from, nor load the rest.
    """

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._behind: list[Growing] = []
        """Steps, values and so on of rows that come after those that wait."""

    def take(self, add: Callable[[], None], defer: bool) -> None:
        """Call ``add``, which appends to this column: now, or with ``defer`` when :meth:`settle` is called."""
        if defer and not self._behind:
            self._waiting.append(add)
        else:
            add()

    @property
    def waits(self) -> bool:
        """Whether there are values that have not been read yet."""
        return bool(self._waiting)

    def lay_behind(self, *arrays: np.ndarray) -> None:
        """Keep the arrays ([n] or [n, L]) of some rows until :meth:`settle`."""
        if not self._behind:
            self._behind = [Growing(array.dtype, array.shape[-1] if array.ndim > 1 else None) for array in arrays]
        for kept, array in zip(self._behind, arrays, strict=True):
            kept.append(array)

    def settle(self) -> list[np.ndarray]:
        """Append what waits; returns the arrays of what lay behind it."""
        waiting, self._waiting = self._waiting, []
        for add in waiting:
            add()
        behind, self._behind = self._behind, []
        return [array.view() for array in behind]


class Column(Deferred):
    """The values of one scalar and their steps; rows without a value are not kept at all.

    As long as no row since the column's first lacks a value, the steps are the table's own, from ``start`` on.
    """

    def __init__(self, start: int):
        super().__init__()
        self.start = start
        self.value = Growing(np.float64)
        self._own_step: Growing | None = None

    def append(
        self, table_step: Growing, before: int, stop: int, values: np.ndarray, present: np.ndarray | None
    ) -> None:
        """Append the column's part of the table's rows ``before..stop``.

        Args:
            table_step: the table's steps, these rows included.
            values: float64[n], or [batches, rows] with n = batches * rows.
            present: bool[n]; None when all are.
        """
        whole = present is None or bool(present.all())
        steps = table_step.view(before, stop)
        if not whole:
            assert present is not None
            values, steps = values.reshape(-1)[present], steps[present]
        if self.waits:
            self.lay_behind(steps, values.reshape(-1))
        else:
            self._put(table_step, steps, values, whole and self.start + len(self.value) == before)

    def load(self, table_step: Growing) -> None:
        """Append what waits in the file."""
        behind = self.settle()
        if behind:
            steps, values = behind
            at = self.start + len(self.value)
            self._put(table_step, steps, values, np.array_equal(steps, table_step.view(at, at + len(steps))))

    def _put(self, table_step: Growing, steps: np.ndarray, values: np.ndarray, gapless: bool) -> None:
        """Append; ``gapless``: the steps are those of the table's rows right behind the column's last one."""
        if self._own_step is None and not gapless:
            self._own_step = Growing(np.int64)
            self._own_step.append(table_step.view(self.start, self.start + len(self.value)))
        self.value.append(values)
        if self._own_step is not None:
            self._own_step.append(steps)

    def steps(self, table_step: Growing) -> np.ndarray:
        """int64[n], the steps of ``value``."""
        if self._own_step is not None:
            return self._own_step.view()
        return table_step.view(self.start, self.start + len(self.value))


class ScalarTable:
    """The scalars or the system samples of one rank of one attempt.

    For system samples ``step`` holds the row number: they belong to times.
    """

    def __init__(self, has_step: bool = True):
        self.has_step = has_step
        self.step = Growing(np.int64)
        self.time = Growing(np.float64)
        self._columns: dict[str, Column] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names that have a value in some row, in the order in which they first had."""
        return tuple(self._columns)

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """int64[n] steps and float64[n] values of ``name``; empty when there is none."""
        column = self._columns.get(name)
        if column is None:
            return np.empty(0, np.int64), np.empty(0, np.float64)
        column.load(self.step)
        return column.steps(self.step), column.value.view()

    def append(self, rows: Rows, defer: bool = False) -> int:
        """Append rows; returns how many were refused because their step does not increase.

        Args:
            defer: leave the values in the file until they are asked for; ``rows`` must stay readable.
        """
        before = len(self.step)
        placed = rows.placed()
        if self.has_step:
            steps, keep = increasing(rows.values("step").reshape(-1), self.step, placed)
        else:
            keep = placed
            steps = np.arange(before, before + (len(rows) if keep is None else int(keep.sum())))
        self.step.append(steps)
        self.time.append(_kept(rows.values("time"), keep))
        for name in rows.names:
            if name in ("step", "time"):
                continue
            present = rows.present(name)
            if keep is not None and present is not None:
                present = present[keep]
            column = self._columns.get(name)
            if column is None:
                if present is not None and not present.any():
                    rows.whole(name, values=False)
                    continue
                column = self._columns[name] = Column(before)
            column.take(partial(self._add, column, rows, name, before, len(self.step), keep, present), defer)
        return 0 if keep is None else int((~keep).sum())

    def _add(
        self,
        column: Column,
        rows: Rows,
        name: str,
        before: int,
        stop: int,
        keep: np.ndarray | None,
        present: np.ndarray | None,
    ) -> None:
        present = _and_whole(present, rows.whole(name), keep)
        column.append(self.step, before, stop, _kept(rows.values(name), keep), present)


def _and_whole(present: np.ndarray | None, whole: np.ndarray | None, keep: np.ndarray | None) -> np.ndarray | None:
    """``present`` without the rows that are damaged."""
    if whole is None:
        return present
    whole = whole if keep is None else whole[keep]
    return whole if present is None else present & whole


def _kept(values: np.ndarray, keep: np.ndarray | None) -> np.ndarray:
    return values if keep is None else values.reshape(len(keep), *values.shape[2:])[keep]


@dataclass(frozen=True, slots=True)
class Layer:
    """One parameter tensor of the model."""

    name: str
    shape: tuple[int, ...]
    depth: int
    """Position in the model, from the input on."""


class LayerBlock:
    """Rows of per-layer statistics that share one set of layers."""

    def __init__(self, layers: tuple[Layer, ...]):
        self.layers = layers
        self.names = tuple(layer.name for layer in layers)
        self.step = Growing(np.int64)
        self.time = Growing(np.float64)
        self._stats: dict[str, LayerColumn] = {}

    @property
    def stats(self) -> tuple[str, ...]:
        """Names of the statistics."""
        return tuple(self._stats)

    def column(self, stat: str) -> LayerColumn | None:
        """The rows of one statistic; None when it was not recorded."""
        column = self._stats.get(stat)
        if column is not None:
            column.load()
        return column

    def take(self, rows: Rows, steps: np.ndarray, keep: np.ndarray | None, defer: bool) -> None:
        """Append rows, of which ``keep`` (None: all) are kept; ``steps`` are theirs."""
        self.step.append(steps)
        self.time.append(_kept(rows.values("time"), keep))
        for stat in rows.names:
            if stat in ("step", "time"):
                continue
            given = rows.present(stat)
            if given is not None and not given.any():
                rows.whole(stat, values=False)
                continue
            column = self._stats.get(stat)
            if column is None:
                column = self._stats[stat] = LayerColumn(len(self.names))
            column.take(partial(column.append, rows, stat, steps, keep), defer)


class LayerColumn(Deferred):
    """One statistic: rows in which it is missing are not kept."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.step = Growing(np.int64)
        self.value = Growing(np.float32, width)
        self._present: Growing | None = None

    def append(self, rows: Rows, stat: str, steps: np.ndarray, keep: np.ndarray | None) -> None:
        """Append the statistic's part of ``rows``, of which ``keep`` (None: all) are kept; ``steps`` are theirs."""
        given, values, present = rows.lists(stat)
        wanted = _and_whole(keep, rows.whole(stat), None)
        if given is not None or wanted is not None:
            there = np.ones(len(rows), bool) if given is None else given
            if wanted is not None:
                inside = wanted[there]
                there, values, present = (
                    there & wanted,
                    _kept(values, inside),
                    None if present is None else present[inside],
                )
            steps = rows.values("step").reshape(-1)[there]
        if self.waits:
            shape = (len(steps), self.width)
            self.lay_behind(steps, values.reshape(shape), np.ones(shape, bool) if present is None else present)
        else:
            self._put(steps, values, present)

    def load(self) -> None:
        """Append what waits in the file."""
        behind = self.settle()
        if behind:
            steps, values, present = behind
            self._put(steps, values, None if present.all() else present)

    def _put(self, steps: np.ndarray, values: np.ndarray, present: np.ndarray | None) -> None:
        if present is not None and self._present is None:
            self._present = Growing(np.bool_, self.width)
            self._present.append(np.ones((len(self.step), self.width), bool))
        self.step.append(steps)
        self.value.append(values)
        if self._present is not None:
            self._present.append(np.ones((len(steps), self.width), bool) if present is None else present)

    def present(self) -> np.ndarray:
        """bool[T, L]."""
        if self._present is not None:
            return self._present.view()
        return np.broadcast_to(np.True_, (len(self.step), self.width))


class LayerTable:
    """The layer statistics of one rank of one attempt: one block per set of layers, in the order written."""

    def __init__(self) -> None:
        self.blocks: list[LayerBlock] = []

    def append(self, rows: Rows, layers: tuple[Layer, ...], defer: bool = False) -> int:
        """Append rows; returns how many were refused because their step does not increase. ``defer`` as for scalars."""
        last = self.blocks[-1].step if self.blocks else np.empty(0, np.int64)
        steps, keep = increasing(rows.values("step").reshape(-1), last, rows.placed())
        if not self.blocks or self.blocks[-1].layers != layers:
            self.blocks.append(LayerBlock(layers))
        self.blocks[-1].take(rows, steps, keep, defer)
        return 0 if keep is None else int((~keep).sum())


def increasing(
    steps: np.ndarray, before: Growing | np.ndarray, placed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The steps that are larger than every one before them and below MAX_STEP, and bool[n] of which those are.

    None stands for all of them.

    Args:
        placed: bool[n]; the other rows are left out and not compared with.
    """
    last = before.view(max(0, len(before) - 1)) if isinstance(before, Growing) else before[-1:]
    floor = last[0] if len(last) else np.int64(-1)
    if placed is not None:
        steps = np.where(placed, steps, np.int64(-1))  # not larger than anything
    if len(steps) == 0 or (steps[0] > floor and steps[-1] < MAX_STEP and (steps[1:] > steps[:-1]).all()):
        return steps, None
    steps = np.where(steps < MAX_STEP, steps, np.int64(-1))
    highest = np.maximum.accumulate(np.concatenate([[floor], steps]))[:-1]
    keep = steps > highest
    return steps[keep], keep
