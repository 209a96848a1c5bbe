"""From the bytes of a segment's batches to numpy, one strided view per column over many batches at once.

pyarrow decodes batch by batch and column by column; for a million rows in batches of 64 that is 300 000 small arrays.
Batches of one layout lie at equal distances, so one numpy view reaches a column in all of them.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

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


class Rows:
    """The rows of one stretch of batches.

    Raises:
        BadMessage: the buffers are not what the schema and the number of rows ask for.
    """

    def __init__(self, data: bytes | mmap.mmap, stretch: Stretch, columns: dict[str, Place]):
        self._data, self._stretch, self._places = data, stretch, columns
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
