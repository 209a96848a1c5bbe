"""From the bytes of a segment's batches to numpy, one strided view per column over many batches at once.

pyarrow decodes batch by batch and column by column; for a million rows in batches of 64 that is 300 000 small arrays.
Batches of one layout lie at equal distances, so one numpy view reaches a column in all of them.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from monitor.runfile.blocks import Blocks, elements
from monitor.runfile.framing import BadMessage, Stretch


@dataclass(frozen=True, slots=True)
class Place:
    """Where a column of a schema is found in a batch of it."""

    node: int
    """Index of its (rows, nulls) pair."""
    validity: int
    """Index of its validity buffer."""
    inner_validity: int
    """The same of the elements of a list; equal to ``validity`` for a plain column."""
    data: int
    dtype: type
    width: int | None
    """Elements of a FixedSizeList; None for a plain column."""


def places(schema: pa.Schema) -> dict[str, Place]:
    """The places of all columns, by name; plain columns of eight bytes and FixedSizeList<float32> only."""
    found: dict[str, Place] = {}
    node = buffer = 0
    for field in schema:
        if pa.types.is_fixed_size_list(field.type):
            found[field.name] = Place(node, buffer, buffer + 1, buffer + 2, np.float32, field.type.list_size)
            node, buffer = node + 2, buffer + 3
        else:
            dtype = np.int64 if field.type == pa.int64() else np.float64
            found[field.name] = Place(node, buffer, buffer, buffer + 1, dtype, None)
            node, buffer = node + 1, buffer + 2
    return found


@dataclass(frozen=True, slots=True)
class Unchecked:
    """How rows are checked whose batches were not, when they are looked at."""

    data: mmap.mmap
    blocks: Blocks
    report: Callable[[int, str], None]
    """Called with byte offset and what is wrong."""


class Rows:
    """The rows of one stretch of batches.

    Args:
        unchecked: the batches' bodies have not been held against their checksums; of one batch only. None: they have.

    Raises:
        BadMessage: the buffers are not what the schema and the number of rows ask for.
    """

    def __init__(
        self,
        data: bytes | mmap.mmap,
        stretch: Stretch,
        columns: dict[str, Place],
        unchecked: Unchecked | None = None,
    ):
        assert unchecked is None or stretch.count == 1
        self._data, self._stretch, self._places, self._unchecked = data, stretch, columns, unchecked
        message = stretch.message
        self._body = message.metadata_end - message.start
        if message.nodes != sum(1 if place.width is None else 2 for place in columns.values()):
            raise BadMessage(f"{message.nodes} columns are declared; the schema has another number")
        if len(message.buffers) != sum(2 if place.width is None else 3 for place in columns.values()):
            raise BadMessage(f"{len(message.buffers)} buffers are declared; the schema asks for another number")
        for name, place in columns.items():
            self._check(name, place)

    def _check(self, name: str, place: Place) -> None:
        rows, buffers = self._stretch.message.rows, self._stretch.message.buffers
        elements = rows * (place.width or 1)
        wanted = elements * np.dtype(place.dtype).itemsize
        if buffers[place.data][1] < wanted:
            raise BadMessage(f"column {name!r} has {buffers[place.data][1]} bytes; {rows} rows need {wanted}")
        for index, bits in ((place.validity, rows), (place.inner_validity, elements)):
            if 0 < buffers[index][1] < (bits + 7) // 8:
                raise BadMessage(f"column {name!r} has {buffers[index][1]} bytes to tell which of {bits} are there")

    def __len__(self) -> int:
        return self._stretch.rows

    @property
    def mapped(self) -> bool:
        """Whether the rows lie in a mapped file, so that what is not asked for need not be read."""
        return isinstance(self._data, mmap.mmap)

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in the schema's order."""
        return tuple(self._places)

    def values(self, name: str) -> np.ndarray:
        """[batches, rows] or [batches, rows, L], a view into the file's bytes. Where absent, it means nothing."""
        place, stretch = self._places[name], self._stretch
        size = np.dtype(place.dtype).itemsize
        offset = stretch.start + self._body + stretch.message.buffers[place.data][0]
        shape: tuple[int, ...] = (stretch.count, stretch.message.rows)
        strides: tuple[int, ...] = (stretch.size, size)
        if place.width is not None:
            shape, strides = (*shape, place.width), (stretch.size, size * place.width, size)
        return np.ndarray(shape, place.dtype, self._data, offset, strides)

    def present(self, name: str, inner: bool = False) -> np.ndarray | None:
        """bool[n], or bool[n, L] for the elements of lists when ``inner``; None: all are there."""
        place, stretch = self._places[name], self._stretch
        index = place.inner_validity if inner else place.validity
        at, length = stretch.message.buffers[index]
        if length == 0:
            return None
        rows = stretch.message.rows
        bits = rows * (place.width or 1) if inner else rows
        offset = stretch.start + self._body + at
        packed = np.ndarray((stretch.count, (bits + 7) // 8), np.uint8, self._data, offset, (stretch.size, 1))
        there = np.unpackbits(packed, axis=1, count=bits, bitorder="little").view(np.bool_)
        return there.reshape(stretch.rows, place.width) if inner and place.width else there.reshape(-1)

    def whole(self, name: str, values: bool = True) -> np.ndarray | None:
        """bool[n]: the rows whose bytes of this column are as they were written; None: all. Says so when some are not.

        A row that is not whole must be taken for absent: its value, or whether there is one, is anybody's guess.

        Args:
            values: without, only what tells which rows have a value is checked.
        """
        if self._unchecked is None:
            return None
        place, rows = self._places[name], len(self)
        start = self._stretch.start + self._body
        good = np.ones(rows, bool)
        first_bad = None
        size = np.dtype(place.dtype).itemsize * (place.width or 1)
        for index in sorted({place.validity, place.inner_validity, place.data} if values else {place.validity}):
            at, length = self._stretch.message.buffers[index]
            damage = self._unchecked.blocks.damaged(self._unchecked.data, start + at, start + at + length)
            if not damage:
                continue
            first_bad = max(damage[0][0], start + at) if first_bad is None else first_bad
            if index == place.data:
                good &= elements(damage, start + at, size, rows)
            elif index == place.validity:
                good &= np.repeat(elements(damage, start + at, 1, -(-rows // 8)), 8)[:rows]
            else:
                good[:] = False  # which elements of lists are there: a byte of these is about rows in part
        if first_bad is None:
            return None
        lost = rows - int(good.sum())
        self._unchecked.report(first_bad, f"{lost} rows of {name!r} are damaged (the block's crc32 differs); left out")
        return good

    def placed(self) -> np.ndarray | None:
        """bool[n]: the rows whose step and time are as they were written; None: all. The others belong nowhere."""
        fixed = [self.whole(name) for name in ("step", "time") if name in self._places]
        damaged = [whole for whole in fixed if whole is not None]
        return np.logical_and.reduce(damaged) if damaged else None
