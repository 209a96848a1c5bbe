"""The levels of a compacted stream on disk: cells of 64 rows, of 64 * 64 rows, and so on, mapped like the stream.

A level file is made from its compact file and says so in its seal. It is never the only copy of anything: without it,
or when it does not fit, the rows themselves are reduced.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.blocks import BLOCK_BYTES, blocks_of
from monitor.runfile.cells import NAMES, Cells, join, merge, reduce_values
from monitor.runfile.columns import number_array
from monitor.runfile.compacted import MAGIC, compact_file, file_blocks, file_crc, write_batches
from monitor.runfile.framing import BadMessage, Incomplete, Message, parse_message, parse_schema
from monitor.runfile.tables import LayerBlock, LayerTable, ScalarTable

FACTOR = 64
"""Rows of a cell of the first level, and cells of one level in a cell of the next."""
LEVEL_STREAMS = ("scalars", "layers")
CHUNK_VALUES = 1 << 22
"""Values that are reduced at once while a level file is written."""

_STATS = ("min", "max", "last")


def level_file(run_dir: Path, stream: str, attempt: int, rank: int) -> Path:
    """Where the levels of a compacted stream lie."""
    return compact_file(run_dir, stream, attempt, rank).with_suffix(".levels.arrow")


# Writing -----------------------------------------------------------------------------------------------------------


def write_levels(run_dir: Path, stream: str, attempt: int, rank: int, table: ScalarTable | LayerTable) -> Path | None:
    """Write the levels of a compact file from the rows that are in it.

    Returns None when there is nothing to gain: too few rows, no compact file, or more columns than a file can hold.
    """
    source = compact_file(run_dir, stream, attempt, rank)
    target = level_file(run_dir, stream, attempt, rank)
    step, time = _rows(table)
    if len(step) <= FACTOR or not source.exists() or _is_current(target, source):
        return None
    if f"{file_crc(source):08x}" != _source(source)["crc32"]:
        raise RunError(f"{source}: not what its seal says; its levels are not written.")
    if isinstance(table, LayerTable):
        levels = {stat: _levels_of(_layer_chunks(table.blocks[0], stat)) for stat in table.blocks[0].stats}
        width, layers = len(table.blocks[0].names), [asdict(layer) for layer in table.blocks[0].layers]
        if width == 0:
            return None
    else:
        levels = {name: _levels_of(_scalar_chunks(table, name)) for name in table.names}
        width, layers = None, []
    schema = _schema(stream, list(levels), width, layers)
    batches = [
        _batch(schema, step, time, FACTOR ** (k + 1), {n: c[k] for n, c in levels.items()}) for k in _heights(step)
    ]
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        write_batches(temporary, schema, iter(batches))
        seal = {
            "file": target.name,
            "rows": len(step),
            "batches": len(batches),
            "factor": FACTOR,
            "bytes": temporary.stat().st_size,
            "crc32": f"{file_crc(temporary):08x}",
            "blocks": file_blocks(temporary),
            "source": _source(source),
        }
        target.with_name(target.name + fmt.SEAL_SUFFIX).unlink(missing_ok=True)
        temporary.replace(target)
    except BadMessage:
        return None  # thousands of columns: the batch's metadata would be larger than a reader takes
    finally:
        temporary.unlink(missing_ok=True)
    fmt.atomic_write_json(target.with_name(target.name + fmt.SEAL_SUFFIX), seal)
    return target


def _rows(table: ScalarTable | LayerTable) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(table, LayerTable):
        if len(table.blocks) != 1:
            return np.empty(0, np.int64), np.empty(0)
        return table.blocks[0].step.view(), table.blocks[0].time.view()
    return table.step.view(), table.time.view()


def _source(path: Path) -> dict[str, Any]:
    """What a level file's seal says of the compact file it was made from."""
    seal = fmt.load_json(path.with_name(path.name + fmt.SEAL_SUFFIX))
    return {key: seal.get(key) for key in ("file", "bytes", "crc32")}


def _is_current(target: Path, source: Path) -> bool:
    try:
        seal = fmt.load_json(target.with_name(target.name + fmt.SEAL_SUFFIX))
        return seal.get("source") == _source(source) and target.stat().st_size == seal.get("bytes")
    except (RunError, OSError):
        return False


def _heights(step: np.ndarray) -> range:
    """0 for the first level, and so on until one has no more than FACTOR cells."""
    cells, height = -(-len(step) // FACTOR), 1
    while cells > FACTOR:
        cells, height = -(-cells // FACTOR), height + 1
    return range(height)


def _levels_of(chunks: Iterator[tuple[np.ndarray, np.ndarray | None]]) -> list[Cells]:
    """The cells of every level from the values in chunks of whole cells (the last chunk aside)."""
    first = [reduce_values(value, present, np.arange(0, len(value), FACTOR)) for value, present in chunks]
    levels = [join(first)]
    while len(levels[-1]) > FACTOR:
        levels.append(merge(levels[-1], np.arange(0, len(levels[-1]), FACTOR)))
    return levels


def _chunk_rows(width: int) -> int:
    return max(1, CHUNK_VALUES // (FACTOR * width)) * FACTOR


def _scalar_chunks(table: ScalarTable, name: str) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    rows = table.step.view()
    step, value = table.column(name)
    size = _chunk_rows(1)
    for start in range(0, len(rows), size):
        yield laid_out(rows[start : start + size], step, value, None)


def _layer_chunks(block: LayerBlock, stat: str) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    rows, column = block.step.view(), block.column(stat)
    assert column is not None
    size = _chunk_rows(len(block.names))
    for start in range(0, len(rows), size):
        yield laid_out(rows[start : start + size], column.step.view(), column.value.view(), column.present())


def laid_out(
    rows: np.ndarray, step: np.ndarray, value: np.ndarray, present: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The values at the steps ``rows`` and which of them are there (None: all)."""
    low, high = np.searchsorted(step, [rows[0], rows[-1] + 1])
    value, own = value[low:high], None if present is None else present[low:high]
    if high - low == len(rows):
        return value, own
    shape = (len(rows), *value.shape[1:])
    full, there = np.zeros(shape, value.dtype), np.zeros(shape, bool)
    where = np.searchsorted(rows, step[low:high])
    full[where], there[where] = value, True if own is None else own
    return full, there


def _cell_type(width: int | None) -> pa.DataType:
    value, count = (pa.float64(), pa.uint32()) if width is None else (pa.float32(), pa.uint32())
    wide = {name: value if name in _STATS else count for name in NAMES}
    if width is not None:
        wide = {name: pa.list_(kind, width) for name, kind in wide.items()}
    return pa.struct([pa.field(name, kind) for name, kind in wide.items()])


def _ends_type(kind: pa.DataType) -> pa.DataType:
    return pa.struct([pa.field("first", kind), pa.field("last", kind)])


def _schema(stream: str, names: list[str], width: int | None, layers: list[dict[str, Any]]) -> pa.Schema:
    ends = [pa.field("step", _ends_type(pa.int64())), pa.field("time", _ends_type(pa.float64()))]
    record: dict[str, Any] = {
        "kind": f"{stream}-levels",
        "format": {"major": fmt.FORMAT_MAJOR, "minor": fmt.FORMAT_MINOR},
    }
    record |= {"factor": FACTOR, **({"layers": layers} if layers else {})}
    columns = [pa.field(name, _cell_type(width)) for name in names]
    return pa.schema([*ends, *columns], metadata={fmt.METADATA_KEY: json.dumps(record).encode()})


def _batch(
    schema: pa.Schema, step: np.ndarray, time: np.ndarray, size: int, columns: Mapping[str, Cells]
) -> pa.RecordBatch:
    """One level: a row per cell of ``size`` rows."""
    first = np.arange(0, len(step), size)
    last = np.minimum(first + size, len(step)) - 1
    ends = [
        pa.StructArray.from_arrays([number_array(rows[first]), number_array(rows[last])], names=["first", "last"])
        for rows in (step, time)
    ]
    return pa.record_batch([*ends, *(_cell_array(cells) for cells in columns.values())], schema=schema)


def _cell_array(cells: Cells) -> pa.Array:
    arrays: list[pa.Array] = []
    for name in NAMES:
        values = getattr(cells, name)
        there = None
        if name in _STATS:
            # Without a finite value there is no extreme, and without a value no last one: null, as everywhere.
            there = cells.count > (0 if name == "last" else cells.nan + cells.posinf + cells.neginf)
        flat = number_array(values.reshape(-1), None if there is None else there.reshape(-1))
        wide = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim > 1 else flat
        arrays.append(wide)
    return pa.StructArray.from_arrays(arrays, names=list(NAMES))


# Reading -----------------------------------------------------------------------------------------------------------


class DamagedBlock(RunError):
    """What was asked for is not as it was written."""


class Mapped:
    """An Arrow IPC file, mapped; a column that is not asked for is never read, and what is read is checked.

    Its table of contents is not trusted: the batches are taken in the order in which they lie.

    Raises:
        RunError: it is a link, no Arrow file, not as large as its seal says, or the seal holds no checksums.
        DamagedBlock: what describes its batches is not as it was written.
    """

    def __init__(self, run_dir: Path, path: Path):
        if not fmt.is_real_folder(run_dir, path.parent):
            raise RunError(f"{path.parent}: not a real folder.")
        self.path = path
        self.seal = fmt.load_json(path.with_name(path.name + fmt.SEAL_SUFFIX))
        try:
            fd = fmt.open_inside(path)
            try:
                self._data = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
            finally:
                os.close(fd)
            size = len(self._data)
            if size != self.seal.get("bytes"):
                raise RunError(f"{path}: {size} bytes; its seal says {self.seal.get('bytes')}.")
            blocks = blocks_of(self.seal, size)
            if blocks is None:
                raise RunError(f"{path}: its seal holds no checksums of its blocks.")
            self._blocks = blocks
            for message in _messages(self._data):
                self._check(message.start, message.metadata_end)
            whole = pa.py_buffer(self._data)
            self._address = whole.address
            with pa.ipc.open_stream(whole.slice(len(MAGIC))) as reader:
                self.schema: pa.Schema = reader.schema
                self._batches: list[pa.RecordBatch] = list(reader)
        except (ValueError, StopIteration, Incomplete, pa.ArrowException) as error:
            raise DamagedBlock(f"{path}: cannot be mapped ({error}).") from None
        except OSError as error:
            raise RunError(f"{path}: cannot be mapped ({error}).") from None

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def batch(self, index: int) -> pa.RecordBatch:
        """Batch ``index``, its buffers checked to be as long as its rows need."""
        batch = self._batches[index]
        try:
            batch.validate()
        except pa.ArrowException as error:
            raise RunError(f"{self.path}: batch {index} cannot be read ({error}).") from None
        return batch

    def numbers(self, array: pa.Array, low: int, high: int) -> np.ndarray:
        """A view of elements ``low..high``; where one is null it means nothing."""
        dtype = np.dtype(array.type.to_pandas_dtype())
        first = (array.offset + low) * dtype.itemsize
        return np.frombuffer(
            self._checked(array.buffers()[1], first, (high - low) * dtype.itemsize), dtype, high - low, first
        )

    def lists(self, column: pa.Array, given: np.ndarray, low: int, high: int, width: int) -> tuple[int, int]:
        """(first, behind the last) element of the lists of rows ``low..high``, ``given`` those that are there.

        Raises:
            DamagedBlock: they are not of ``width`` elements each, one behind the other.
        """
        ends = self.numbers(column.offsets, low, high + 1)
        wanted = np.concatenate([[0], np.cumsum(given)]) * width + ends[0]
        if not np.array_equal(ends, wanted) or not 0 <= ends[0] <= ends[-1] <= len(column.values):
            raise DamagedBlock(f"{self.path}: lists of another length than {width}.")
        return int(ends[0]), int(ends[-1])

    def picked(self, array: pa.Array, index: np.ndarray) -> np.ndarray:
        """The elements ``index`` (int64, any shape) alone, and only their blocks checked; null: it means nothing."""
        dtype = np.dtype(array.type.to_pandas_dtype())
        buffer, size = array.buffers()[1], dtype.itemsize
        begin = buffer.address - self._address + array.offset * size
        blocks = ((begin + index * size) // BLOCK_BYTES).reshape(-1)
        changes = np.append(True, blocks[1:] != blocks[:-1])[: len(blocks)]  # they hardly ever go back
        for block in dict.fromkeys(blocks[changes].tolist()):
            self._check(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
        return np.frombuffer(buffer, dtype, len(array), array.offset * size)[index]

    def valid(self, array: pa.Array, low: int, high: int) -> np.ndarray:
        """bool[high - low]: which elements are not null."""
        bits = array.buffers()[0]
        if bits is None:
            return np.broadcast_to(np.True_, high - low)
        first, last = array.offset + low, array.offset + high
        begin, size = first // 8, (last + 7) // 8 - first // 8
        packed = np.frombuffer(self._checked(bits, begin, size), np.uint8, size, begin)
        return np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + high - low].astype(bool)

    def _checked(self, buffer: pa.Buffer, first: int, size: int) -> pa.Buffer:
        """``buffer`` itself when its ``size`` bytes from ``first`` on are as written."""
        at = buffer.address - self._address + first
        self._check(at, at + size)
        return buffer

    def _check(self, start: int, stop: int) -> None:
        damage = self._blocks.damaged(self._data, start, stop)
        if damage:
            raise DamagedBlock(f"{self.path}, byte {damage[0][0]}: the block is damaged (its crc32 differs).")

    def field(self, name: str, kind: pa.DataType) -> int:
        """Index of the column ``name``.

        Raises:
            RunError: there is none of this type.
        """
        index = self.schema.get_field_index(name)
        if index < 0 or self.schema.field(index).type != kind:
            raise RunError(f"{self.path}: no column {name!r} of type {kind}.")
        return index


class LevelFiles:
    """The compact file of a stream and its levels, mapped: what all columns share.

    Args:
        step: the steps of the stream's rows as the reader has them.

    Raises:
        RunError: there are none, or they do not fit the compact file or the rows.
    """

    def __init__(self, run_dir: Path, stream: str, attempt: int, rank: int, step: np.ndarray):
        self.step = step
        self.rows = Mapped(run_dir, compact_file(run_dir, stream, attempt, rank))
        self.cells = Mapped(run_dir, level_file(run_dir, stream, attempt, rank))
        seal, factor = self.cells.seal, self.cells.seal.get("factor")
        if seal.get("source") != {key: self.rows.seal.get(key) for key in ("file", "bytes", "crc32")}:
            raise RunError(f"{self.cells.path}: made from another compact file.")
        if not isinstance(factor, int) or not 2 <= factor <= 1 << 16 or seal.get("rows") != len(step):
            raise RunError(f"{self.cells.path}: not about the rows that are there.")
        if factor != _written_factor(self.cells.schema):
            raise RunError(f"{self.cells.path}: its seal is about another factor.")
        self.factor: int = factor
        self.height = len(self.cells)
        if self.height < 1:
            raise RunError(f"{self.cells.path}: holds no level.")
        for level in range(1, self.height + 1):
            if self.cells.batch(level - 1).num_rows != -(-len(step) // factor**level):
                raise RunError(f"{self.cells.path}: level {level} has another number of cells.")
        counts = [self.rows.batch(index).num_rows for index in range(len(self.rows))]
        if sum(counts) != len(step):
            raise RunError(f"{self.rows.path}: not about the rows that are there.")
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        """First row of every batch of the compact file, and their number."""


class Levels:
    """The levels of one column of a compacted stream, and its rows as level 0.

    Args:
        width: number of layers; None for a scalar.

    Raises:
        RunError: there is no such column.
    """

    def __init__(self, files: LevelFiles, name: str, width: int | None):
        self.step, self.factor = files.step, files.factor
        self.height = files.height
        """Number of levels above the rows."""
        self._rows, self._file, self._starts = files.rows, files.cells, files.starts
        self._width = width
        self._row_column = self._rows.field(name, pa.float64() if width is None else pa.list_(pa.float32()))
        self._column = self._file.field(name, _cell_type(width))

    def values(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows ``low..high`` (excluded) and which of their values are there (None: all)."""
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        first = int(np.searchsorted(self._starts, low, side="right")) - 1
        for index in range(first, len(self._starts) - 1):
            start, stop = int(self._starts[index]), int(self._starts[index + 1])
            if start >= high:
                break
            if stop == start:
                continue
            column = self._rows.batch(index).column(self._row_column)
            parts.append(self._rows_numpy(column, max(low, start) - start, min(high, stop) - start))
        value, present = (
            np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for arrays in zip(*parts, strict=True)
        )
        return value, None if present.all() else present

    def cells(self, level: int, low: int, high: int) -> Cells:
        """Cells ``low..high`` (excluded) of a level from 1 on."""
        column = self._file.batch(level - 1).column(self._column)
        found = {name: self._numpy(self._file, column.field(index), low, high) for index, name in enumerate(NAMES)}
        nan = np.float64(np.nan) if self._width is None else np.float32(np.nan)
        return Cells(
            **{
                name: np.where(present, value, nan) if name in _STATS and not present.all() else value
                for name, (value, present) in found.items()
            }
        )

    def raw(self, level: int, kind: str) -> np.ndarray:
        """One field of all cells of a level from 1 on: [n] or [n, L]. Where an extreme or last value is null, it means
        nothing."""
        column = self._file.batch(level - 1).column(self._column).field(NAMES.index(kind))
        if self._width is None:
            return self._file.numbers(column, 0, len(column))
        return self._file.numbers(column.values, 0, len(column) * self._width).reshape(len(column), self._width)

    def picked(self, level: int, kind: str, index: np.ndarray, layer: int = 0) -> np.ndarray:
        """One field of the cells ``index`` (int64, any shape) of a level, of a scalar or one layer; as :meth:`raw`."""
        column = self._file.batch(level - 1).column(self._column).field(NAMES.index(kind))
        if self._width is not None:
            index, column = (column.offset + index) * self._width + layer, column.values
        return self._file.picked(column, index)

    def cell_count(self, level: int) -> int:
        """Cells of a level from 1 on."""
        return self._file.batch(level - 1).num_rows

    def at(self, rows: np.ndarray, layer: int = 0) -> np.ndarray:
        """The values of a scalar or of one layer at ``rows`` (int64, any shape, not decreasing), float64.

        Where one is null it means nothing.
        """
        flat = rows.reshape(-1)
        found = np.empty(len(flat))
        bounds = np.searchsorted(flat, self._starts).tolist()
        for index in range(len(self._starts) - 1):
            low, high = bounds[index], bounds[index + 1]
            if low < high:
                column = self._rows.batch(index).column(self._row_column)
                places = flat[low:high] - self._starts[index]
                if self._width is not None:
                    first, column = self._rows.picked(column.offsets, places).astype(np.int64), column.values
                    if len(column) == 0:
                        found[low:high] = np.nan
                        continue
                    places = np.clip(first + layer, 0, len(column) - 1)  # of a null list they are of the next one
                found[low:high] = self._rows.picked(column, places)
        return found.reshape(rows.shape)

    def layer(self, index: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``low..high`` of one layer, float32, and which are there; the other layers are not copied."""
        value = np.zeros(high - low, np.float32)
        present = np.zeros(high - low, bool)
        for batch, (start, stop) in enumerate(zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)):
            first, last = max(low, start), min(high, stop)
            if first < last:
                column = self._rows.batch(batch).column(self._row_column)
                own, there = self._rows_numpy(column, first - start, last - start)
                value[first - low : last - low] = own[:, index]
                present[first - low : last - low] = there[:, index]
        return value, present

    def _rows_numpy(self, column: pa.Array, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`_numpy`, of the compact file, where a null list has no elements."""
        file, width = self._rows, self._width
        if width is None:
            return self._numpy(file, column, low, high)
        given = file.valid(column, low, high)
        first, last = file.lists(column, given, low, high, width)
        value = file.numbers(column.values, first, last).reshape(-1, width)
        present = file.valid(column.values, first, last).reshape(-1, width)
        if len(value) == high - low:
            return value, present
        shape = (high - low, width)
        all_value, all_present = np.zeros(shape, np.float32), np.zeros(shape, bool)
        all_value[given], all_present[given] = value, present
        return all_value, all_present

    def _numpy(self, file: Mapped, column: pa.Array, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``low..high`` of an array of numbers or lists of numbers, and which are there: [n] or [n, L]."""
        given = file.valid(column, low, high)
        if self._width is None:
            return file.numbers(column, low, high), given
        child, shape = column.values, (high - low, self._width)
        low, high = (column.offset + low) * self._width, (column.offset + high) * self._width
        there = file.valid(child, low, high).reshape(shape)
        whole = given.strides == (0,) and there.strides == (0, 0)  # nothing is absent: one True for all
        return file.numbers(child, low, high).reshape(shape), there if whole else there & given[:, None]


class LayerLevels:
    """One layer of a statistic's levels, as if it were a scalar's."""

    def __init__(self, levels: Levels, layer: int):
        self.step, self.factor, self.height = levels.step, levels.factor, levels.height
        self._levels, self._layer = levels, layer

    def raw(self, level: int, kind: str) -> np.ndarray:
        return self._levels.raw(level, kind)[:, self._layer]

    def picked(self, level: int, kind: str, index: np.ndarray) -> np.ndarray:
        return self._levels.picked(level, kind, index, self._layer)

    def cell_count(self, level: int) -> int:
        return self._levels.cell_count(level)

    def at(self, rows: np.ndarray) -> np.ndarray:
        return self._levels.at(rows, self._layer)

    def values(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray | None]:
        value, present = self._levels.layer(self._layer, low, high)
        return value.astype(np.float64), None if present.all() else present

    def cells(self, level: int, low: int, high: int) -> Cells:
        every = self._levels.cells(level, low, high)
        return Cells(**{name: getattr(every, name)[:, self._layer] for name in NAMES})


def _messages(data: mmap.mmap) -> Iterator[Message]:
    """The schema and the batches of an Arrow IPC file, each held against its own bounds.

    Raises:
        BadMessage, Incomplete: one is none.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise BadMessage("not an Arrow file")
    message: Message | None = parse_schema(data, len(MAGIC))
    while message is not None:
        yield message
        message = parse_message(data, message.end)


def _written_factor(schema: pa.Schema) -> Any:
    try:
        return json.loads((schema.metadata or {}).get(fmt.METADATA_KEY, b"{}")).get("factor")
    except (ValueError, AttributeError, RecursionError):
        return None
