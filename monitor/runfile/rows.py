"""From the bytes of a segment's batches to numpy, one strided view per column over many batches at once.

pyarrow decodes batch by batch and column by column; for a million rows in batches of 64 that is 300 000 small arrays.
Batches of one layout lie at equal distances, so one numpy view reaches a column in all of them.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from monitor.runfile.blocks import Blocks, elements
from monitor.runfile.framing import BadMessage, Stretch

_I64 = struct.Struct("<q")
LISTS_AT_ONCE = 1 << 16
"""Lists whose places are looked at together; bounds the memory that it takes."""


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
    """Elements of a list that is there; None for a plain column."""
    offsets: int | None = None
    """Index of the offsets of lists of which a null one has no elements; None for other columns."""


def places(schema: pa.Schema, width: int = 0) -> dict[str, Place]:
    """The places of all columns, by name; plain columns of eight bytes and lists of float32 only.

    Args:
        width: elements of every list that is there.
    """
    found: dict[str, Place] = {}
    node = buffer = 0
    for field in schema:
        if pa.types.is_fixed_size_list(field.type):
            found[field.name] = Place(node, buffer, buffer + 1, buffer + 2, np.float32, field.type.list_size)
            node, buffer = node + 2, buffer + 3
        elif pa.types.is_list(field.type):
            found[field.name] = Place(node, buffer, buffer + 2, buffer + 3, np.float32, width, buffer + 1)
            node, buffer = node + 2, buffer + 4
        else:
            dtype = np.int64 if field.type == pa.int64() else np.float64
            found[field.name] = Place(node, buffer, buffer, buffer + 1, dtype, None)
            node, buffer = node + 1, buffer + 2
    return found


def _buffers_of(place: Place) -> int:
    if place.width is None:
        return 2
    return 3 if place.offsets is None else 4


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
        self._given: dict[str, np.ndarray | None] = {}  # what the check has unpacked, until it is asked for once
        message = stretch.message
        self._body = message.metadata_end - message.start
        if message.nodes != sum(1 if place.width is None else 2 for place in columns.values()):
            raise BadMessage(f"{message.nodes} columns are declared; the schema has another number")
        if len(message.buffers) != sum(_buffers_of(place) for place in columns.values()):
            raise BadMessage(f"{len(message.buffers)} buffers are declared; the schema asks for another number")
        for name, place in columns.items():
            self._check(name, place)
        if unchecked is None:
            self._check_lists()

    def _check(self, name: str, place: Place) -> None:
        rows, buffers = self._stretch.message.rows, self._stretch.message.buffers
        elements = self._lists(place) * (place.width or 1)
        wanted = elements * np.dtype(place.dtype).itemsize
        if buffers[place.data][1] < wanted:
            raise BadMessage(f"column {name!r} has {buffers[place.data][1]} bytes; {rows} rows need {wanted}")
        for index, bits in ((place.validity, rows), (place.inner_validity, elements)):
            if 0 < buffers[index][1] < (bits + 7) // 8:
                raise BadMessage(f"column {name!r} has {buffers[index][1]} bytes to tell which of {bits} are there")
        if place.offsets is None:
            return
        if buffers[place.offsets][1] < 4 * (rows + 1):
            raise BadMessage(f"column {name!r} has {buffers[place.offsets][1]} bytes for the ends of {rows} lists")

    def _lists(self, place: Place) -> int:
        """Lists of a column whose elements are in one batch, or its rows."""
        message = self._stretch.message
        if place.offsets is None or not place.width:
            return message.rows
        elements = _I64.unpack_from(self._data, message.nodes_at + 16 * (place.node + 1))[0]
        lists = elements // place.width
        if elements % place.width or not 0 <= lists <= message.rows:
            raise BadMessage(f"{elements} elements in {message.rows} lists of {place.width}")
        return int(lists)

    def _check_lists(self) -> None:
        names = [name for name, place in self._places.items() if place.offsets is not None]
        at_once = max(1, LISTS_AT_ONCE // max(1, len(self)))  # of small batches all columns: numpy's calls are the cost
        for first in range(0, len(names), at_once):
            regular = self._regular(names[first : first + at_once])
            if regular is not None:
                name = names[first + int(regular.all(axis=1).argmin())]
                raise BadMessage(f"column {name!r} has lists of another length than {self._places[name].width}")

    def _regular(self, names: list[str]) -> np.ndarray | None:
        """bool[k, n]: rows of k columns whose list is where it must be: behind those before it, of L elements or null.

        None: all are.
        """
        stretch, rows = self._stretch, self._stretch.message.rows
        shape = (len(names), stretch.count, rows + 1)
        ends, wanted = np.empty(shape, np.int32), np.zeros(shape, np.int64)
        elements = np.empty((len(names), 1, 1), np.int64)
        body, buffers = stretch.start + self._body, stretch.message.buffers
        for at, name in enumerate(names):
            place, given = self._places[name], self.present(name)
            if self._unchecked is None:
                self._given[name] = given
            assert place.offsets is not None and place.width is not None
            wanted[at, :, 1:] = place.width if given is None else given.reshape(-1, rows) * place.width
            offset = body + buffers[place.offsets][0]
            ends[at] = np.ndarray(shape[1:], np.int32, self._data, offset, (stretch.size, 4))
            elements[at] = self._lists(place) * place.width
        wanted.cumsum(axis=2, out=wanted)
        right = (ends == wanted) & (wanted[:, :, -1:] == elements)
        return None if right.all() else (right[:, :, 1:] & right[:, :, :-1]).reshape(len(names), -1)

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
        """[batches, rows] or [batches, rows, L], a view into the file's bytes. Where absent, it means nothing.

        Of lists of which a null one has no elements: [batches, lists that are there, L].
        """
        place, stretch = self._places[name], self._stretch
        size = np.dtype(place.dtype).itemsize
        offset = stretch.start + self._body + stretch.message.buffers[place.data][0]
        shape: tuple[int, ...] = (stretch.count, self._lists(place))
        strides: tuple[int, ...] = (stretch.size, size)
        if place.width is not None:
            shape, strides = (*shape, place.width), (stretch.size, size * place.width, size)
        return np.ndarray(shape, place.dtype, self._data, offset, strides)

    def present(self, name: str, inner: bool = False) -> np.ndarray | None:
        """bool[n], or bool[n, L] for the elements of lists when ``inner``; None: all are there.

        The elements are those of :meth:`values`.
        """
        if not inner and name in self._given:
            return self._given.pop(name)
        place, stretch = self._places[name], self._stretch
        index = place.inner_validity if inner else place.validity
        at, length = stretch.message.buffers[index]
        if length == 0:
            return None
        bits = self._lists(place) * (place.width or 1) if inner else stretch.message.rows
        offset = stretch.start + self._body + at
        packed = np.ndarray((stretch.count, (bits + 7) // 8), np.uint8, self._data, offset, (stretch.size, 1))
        there = np.unpackbits(packed, axis=1, count=bits, bitorder="little").view(np.bool_)
        if inner and place.width:
            return there.reshape(-1, place.width)
        return there.reshape(-1)

    def lists(self, name: str) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
        """The lists that are there: bool[n] in which rows (None: in all), their values, bool[m, L] of the elements.

        m is the number of rows that have one. The values are [m, L] or a view of as many, [batches, rows, L]; None for
        the elements: all are there.
        """
        given, values, present = self.present(name), self.values(name), self.present(name, inner=True)
        if given is None:
            return None, values, present
        width = values.shape[-1]
        if self._places[name].offsets is None:
            values = values.reshape(-1, width)[given]
            return given, values, None if present is None else present[given]
        if int(given.sum()) != values.shape[0] * values.shape[1]:  # what tells is damaged; whole() says so
            return np.zeros(len(self), bool), np.empty((0, width), np.float32), None
        return given, values, present

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
        first_bad, why = None, "the block's crc32 differs"
        size = np.dtype(place.dtype).itemsize * (place.width or 1)
        looked_at = {place.validity, place.inner_validity, place.data} if values else {place.validity}
        for index in sorted(looked_at):
            at, length = self._stretch.message.buffers[index]
            damage = self._unchecked.blocks.damaged(self._unchecked.data, start + at, start + at + length)
            if not damage:
                continue
            first_bad = max(damage[0][0], start + at) if first_bad is None else first_bad
            if place.offsets is not None and index == place.validity:
                good[:] = False  # which row a list belongs to follows from all the rows before it
            elif place.offsets is not None and index == place.data:
                there = self.present(name)
                lists = elements(damage, start + at, size, self._lists(place))
                given = np.ones(rows, bool) if there is None else there
                good[given] &= lists if len(lists) == given.sum() else False
            elif index == place.data:
                good &= elements(damage, start + at, size, rows)
            elif index == place.validity:
                good &= np.repeat(elements(damage, start + at, 1, -(-rows // 8)), 8)[:rows]
            else:
                good[:] = False  # which elements of lists are there: a byte of these is about rows in part
        if values and place.offsets is not None:
            regular = self._regular([name])
            if regular is not None:
                good &= regular[0]
                offsets = start + self._stretch.message.buffers[place.offsets][0]
                if first_bad is None:
                    first_bad, why = offsets, f"lists of another length than {place.width}"
        if first_bad is None:
            return None
        lost = rows - int(good.sum())
        self._unchecked.report(first_bad, f"{lost} rows of {name!r} are damaged ({why}); left out")
        return good

    def placed(self) -> np.ndarray | None:
        """bool[n]: the rows whose step and time are as they were written; None: all. The others belong nowhere."""
        fixed = [self.whole(name) for name in ("step", "time") if name in self._places]
        damaged = [whole for whole in fixed if whole is not None]
        return np.logical_and.reduce(damaged) if damaged else None
