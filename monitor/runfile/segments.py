"""Following the segments of one stream: what was appended since last time, checked, and nothing else."""

from __future__ import annotations

import mmap
import os
import re
import weakref
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.framing import CONTINUATION, BadMessage, Incomplete, Stretch, parse_schema, scan
from monitor.runfile.rows import Place, Rows, places
from monitor.runfile.tables import Layer

CHUNK = 32 << 20
"""Bytes read at once; bounds the memory that a poll takes beside what it keeps."""

CRC_BUFFER = 256 << 10

MAX_MAPPED = 256
"""Segments mapped at the same time; further ones are read. Python keeps a descriptor for every one."""

_MAPPED: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

SCHEMA_GUESS = 64 << 10
"""Bytes read first for a schema; more only when it says that it is longer."""

MAX_LAYER_MARKS = 20 * fmt.MAX_LAYERS
"""Brackets and commas in the JSON of the layers: bounds what it becomes in memory."""

_SEGMENT = re.compile(rf"({'|'.join((*fmt.STREAMS, 'events'))})-([0-9]{{6}})\.(?:arrows|jsonl)")

Report = Callable[[Path, int, str], None]
"""Called with file, byte offset and what is wrong."""


@dataclass(slots=True)
class Tail:
    """Where the reading of one stream stands."""

    folder: Path
    stream: str
    index: int = 0
    """Number of the segment being read."""
    offset: int = 0
    """Bytes of it that are dealt with."""
    schema: pa.Schema | None = None
    columns: dict[str, Place] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    """What the rows of a layers segment are about."""
    schema_bytes: bytes = b""
    seed: int = 0
    given_up: bool = False
    """The segment is refused; nothing more is read of it."""
    seal_seen: bool = False
    last_known: int = -1
    """Largest number seen in the folder's listing; tells a missing segment from the end."""

    @property
    def path(self) -> Path:
        return self.folder / fmt.segment_name(self.stream, self.index)

    def next_segment(self) -> None:
        self.index += 1
        self.offset = 0
        self.schema, self.columns, self.layers, self.schema_bytes, self.seed = None, {}, (), b"", 0
        self.given_up = self.seal_seen = False

    def next_exists(self) -> bool:
        return os.path.lexists(self.folder / fmt.segment_name(self.stream, self.index + 1))


def tails(folder: Path) -> dict[str, Tail]:
    """One tail per stream of a rank's folder, at its beginning."""
    found = {stream: Tail(folder, stream) for stream in (*fmt.STREAMS, "events")}
    for stream, number in _listed(folder):
        found[stream].last_known = max(found[stream].last_known, number)
    return found


def _listed(folder: Path) -> list[tuple[str, int]]:
    """Stream and number of the segments in a rank's folder."""
    try:
        with os.scandir(folder) as entries:
            matches = [_SEGMENT.fullmatch(entry.name) for entry in entries]
    except OSError:
        return []  # not there, or not ours to read: each file says so by itself
    return [(match[1], int(match[2])) for match in matches if match is not None]


def _numbers(folder: Path, stream: str) -> list[int]:
    return [number for own, number in _listed(folder) if own == stream]


def poll_rows(tail: Tail, final: bool, report: Report) -> Iterator[Rows]:
    """The rows of scalars, layers or system appended since the last call, in pieces of one layout.

    The pieces are views into what was read; ``tail`` holds the schema of the one just given.
    """
    for data, stretch, offset in _poll(tail, final, report):
        try:
            yield Rows(data, stretch, tail.columns)
        except BadMessage as error:
            report(tail.path, offset, f"{stretch.rows} rows cannot be decoded: {error}")


def poll_tables(tail: Tail, final: bool, report: Report) -> Iterator[pa.Table]:
    """The rows of landscape appended since the last call, decoded by pyarrow: texts and lists, and never many."""
    for data, stretch, offset in _poll(tail, final, report):
        source = pa.BufferReader(pa.py_buffer(tail.schema_bytes + data[stretch.start : stretch.stop]))
        try:
            table = pa.ipc.open_stream(source).read_all()
            table.validate(full=True)
        except (pa.ArrowException, ValueError, OSError, StopIteration) as error:
            report(tail.path, offset, f"{stretch.rows} rows cannot be decoded: {_first_line(error)}")
        else:
            yield table


def _poll(tail: Tail, final: bool, report: Report) -> Iterator[tuple[bytes | mmap.mmap, Stretch, int]]:
    """(bytes, where whole batches are in them, offset of these in the file) of what was appended.

    Args:
        tail: is moved forward.
        final: the writer is gone; what is torn now stays torn.
        report: told about what is refused.
    """
    while True:
        # Asked before reading: what is appended to this segment before the next one begins must not be missed.
        followed = tail.next_exists()
        over = final or followed or tail.index < tail.last_known
        yield from _poll_segment(tail, over, report)
        if not _go_on(tail, over, followed, report):
            return


def _go_on(tail: Tail, over: bool, followed: bool, report: Report) -> bool:
    """Hold a finished segment against its seal and move to the next one; False when there is none."""
    if over and not tail.seal_seen and not tail.given_up:
        tail.seal_seen = True
        _check_seal(tail, report)
    if followed:
        tail.next_segment()
        return True
    if tail.index >= tail.last_known:
        return False
    missing = tail.index + 1
    there = [number for number in _numbers(tail.folder, tail.stream) if number > tail.index]
    tail.index = min(there, default=tail.last_known + 1) - 1
    report(tail.folder / fmt.segment_name(tail.stream, missing), 0, f"missing, up to number {tail.index}")
    tail.next_segment()
    return tail.index <= tail.last_known


def _check_seal(tail: Tail, report: Report) -> None:
    """A segment may have lost its end at a place where a batch ends; only its seal knows."""
    try:
        seal = fmt.load_json(tail.path.with_name(tail.path.name + fmt.SEAL_SUFFIX))
        size = os.lstat(tail.path).st_size
    except (RunError, OSError):
        return
    if isinstance(seal.get("bytes"), int) and seal["bytes"] != size:
        report(tail.path, size, f"the file has {size} bytes; it had {seal['bytes']} when it was finished")
    elif tail.offset < size:
        report(tail.path, tail.offset, f"the last {size - tail.offset} bytes of the finished file cannot be read")


def _opened(tail: Tail, report: Report) -> int | None:
    """A descriptor of the segment; None while there is none, and for good once it has turned out not to be ours."""
    if tail.given_up:
        return None
    try:
        return fmt.open_inside(tail.path)
    except FileNotFoundError:
        return None
    except RunError as error:
        tail.given_up = True
        report(tail.path, 0, str(error))
        return None


def _poll_segment(tail: Tail, final: bool, report: Report) -> Iterator[tuple[bytes | mmap.mmap, Stretch, int]]:
    fd = _opened(tail, report)
    if fd is None:
        return
    try:
        size = os.fstat(fd).st_size
        if (
            _size_is_good(tail, size, report)
            and size > tail.offset
            and (tail.schema is not None or _read_schema(tail, fd, size, report))
        ):
            sealed = _map_sealed(tail, fd, size)
            if sealed is None:
                yield from _read_batches(tail, fd, size, final, report)
            else:
                yield from _mapped_batches(tail, *sealed, report)
    except OSError as error:
        report(tail.path, tail.offset, f"cannot be read: {error.strerror}")
    finally:
        os.close(fd)


def _size_is_good(tail: Tail, size: int, report: Report) -> bool:
    if size < tail.offset:
        report(tail.path, size, f"the file has shrunk from {tail.offset} bytes; nothing more is read of it")
    elif size > fmt.MAX_SEGMENT_BYTES:
        report(tail.path, tail.offset, f"{size} bytes; at most {fmt.MAX_SEGMENT_BYTES} are read of a segment")
    else:
        return True
    tail.given_up = True
    return False


def _read_schema(tail: Tail, fd: int, size: int, report: Report) -> bool:
    try:
        try:
            data = os.pread(fd, SCHEMA_GUESS, 0)
            message = parse_schema(data)
        except Incomplete as more:
            if more.needed > size:
                if data[:size].find(CONTINUATION, 4) < 0:
                    return False  # still being written, or torn
                raise BadMessage("its schema's declared size goes beyond the batches behind it") from None
            data = os.pread(fd, more.needed, 0)
            message = parse_schema(data)
        head = data[: message.end]
        schema = pa.ipc.read_schema(pa.py_buffer(head))
        wrong = check_schema(schema, tail.stream)
    except (BadMessage, pa.ArrowException, ValueError, OSError) as error:  # ValueError: names that are not UTF-8
        wrong = _first_line(error)
    if wrong:
        tail.given_up = True
        report(tail.path, 0, f"the segment cannot be read: {wrong}")
        return False
    tail.schema, tail.schema_bytes, tail.seed, tail.offset = schema, head, zlib.crc32(head), len(head)
    tail.layers = layers_of(schema) or ()
    tail.columns = places(schema, len(tail.layers)) if tail.stream != "landscape" else {}
    return True


def _map_sealed(tail: Tail, fd: int, size: int) -> tuple[mmap.mmap, bool] | None:
    """The segment mapped, when it will not change any more and nothing of it has been read yet.

    Also whether it is byte for byte what was sealed.
    """
    if tail.offset != len(tail.schema_bytes) or tail.stream == "landscape" or len(_MAPPED) >= MAX_MAPPED:
        return None
    try:
        seal = fmt.load_json(tail.path.with_name(tail.path.name + fmt.SEAL_SUFFIX))
        if seal.get("bytes") != size:
            return None
        unchanged = seal.get("crc32") == f"{_crc32(fd):08x}"
        data = mmap.mmap(fd, size, prot=mmap.PROT_READ)
    except (RunError, OSError, ValueError):  # no seal, or a file system that maps nothing: it is read instead
        return None
    _MAPPED.add(data)
    return data, unchanged


def _crc32(fd: int) -> int:
    """CRC-32 of a whole file, through a buffer that stays in the processor's cache: faster than a map."""
    crc, at, buffer = 0, 0, bytearray(CRC_BUFFER)
    view = memoryview(buffer)
    while count := os.preadv(fd, [buffer], at):
        crc, at = zlib.crc32(view[:count], crc), at + count
    return crc


def _mapped_batches(
    tail: Tail, data: mmap.mmap, checked: bool, report: Report
) -> Iterator[tuple[mmap.mmap, Stretch, int]]:
    """All batches of a sealed segment; they are checked one by one only when the whole is not what was sealed."""
    found = scan(data, tail.seed, final=True, begin=tail.offset, checked=checked)
    for position, what in found.problems:
        report(tail.path, position, what)
    tail.offset = len(data)
    for stretch in found.good:
        if stretch.rows:
            yield data, stretch, stretch.start


def _read_batches(tail: Tail, fd: int, size: int, final: bool, report: Report) -> Iterator[tuple[bytes, Stretch, int]]:
    want = CHUNK
    while tail.offset < size:
        data = os.pread(fd, min(want, size - tail.offset), tail.offset)
        if not data:
            return
        at_end = tail.offset + len(data) >= size
        found = scan(data, tail.seed, final and at_end)
        for position, what in found.problems:
            report(tail.path, tail.offset + position, what)
        base = tail.offset
        tail.offset += found.end
        for stretch in found.good:
            if stretch.rows:
                yield data, stretch, base + stretch.start
        if found.ended:
            tail.offset = size
            return
        if at_end:
            return
        if found.end == 0 and found.needed <= len(data):
            tail.given_up = True
            report(tail.path, tail.offset, f"no batch begins in the next {len(data)} bytes; nothing more is read of it")
            return
        want = max(CHUNK, found.needed)  # one message may be larger than a chunk


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def check_schema(schema: pa.Schema, stream: str) -> str | None:
    """What is wrong with a segment's schema; None when it is one of the format's."""
    if len(schema) > fmt.MAX_COLUMNS + 2:
        return f"{len(schema)} columns; at most {fmt.MAX_COLUMNS + 2}"
    if len(set(schema.names)) != len(schema.names):
        return "two columns have the same name"
    if stream == "landscape":
        wrong = [
            field.name
            for field in fmt.landscape_schema()
            if not _has(schema, field) and (field.name in schema.names or field.name not in fmt.LATER_LANDSCAPE)
        ]
        return f"column {wrong[0]!r} is missing or of another type" if wrong else None
    fixed = [fmt.scalars_schema([]).field("time")] if stream == "system" else list(fmt.scalars_schema([]))
    for column in fixed:
        if not _has(schema, column):
            return f"column {column.name!r} is missing or of another type"
    for column in schema:
        if column.name in ("step", "time"):
            continue
        if stream in fmt.MATRIX_STREAMS:
            fixed_size = pa.types.is_fixed_size_list(column.type)  # as before lists had a length of their own
            if not (fixed_size or pa.types.is_list(column.type)) or column.type.value_type != pa.float32():
                return f"column {column.name!r} is {column.type}; list<float32> is expected"
            if layers_of(schema) is None:
                return "the layers in its metadata do not fit its columns"
        elif column.type != pa.float64():
            return f"column {column.name!r} is {column.type}; float64 is expected"
    return None


def layers_of(schema: pa.Schema) -> tuple[Layer, ...] | None:
    """The layers in the metadata of a layers segment; None when they do not fit its columns."""
    text = (schema.metadata or {}).get(fmt.METADATA_KEY, b"{}")
    if sum(text.count(mark) for mark in (b"{", b"[", b",")) > MAX_LAYER_MARKS:
        return None
    try:
        record = fmt.parse_json(text, "layers")
        layers = tuple(
            Layer(str(layer["name"]), tuple(int(size) for size in layer.get("shape", ())), depth)
            for depth, layer in enumerate(record["layers"])
        )
    except (RunError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    widths = {column.type.list_size for column in schema if pa.types.is_fixed_size_list(column.type)}
    distinct = len({layer.name for layer in layers}) == len(layers) > 0
    return layers if distinct and widths <= {len(layers)} else None


def _has(schema: pa.Schema, field: pa.Field) -> bool:
    return field.name in schema.names and schema.field(field.name).type == field.type


# Events ------------------------------------------------------------------------------------------------------------


def poll_lines(tail: Tail, final: bool, report: Report) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the whole lines appended to an events stream since the last call."""
    while True:
        followed = tail.next_exists()
        yield from _poll_line_segment(tail, report)
        if not _go_on(tail, final or followed, followed, report):
            return


def _poll_line_segment(tail: Tail, report: Report) -> Iterator[tuple[int, bytes]]:
    fd = _opened(tail, report)
    if fd is None:
        return
    try:
        size = os.fstat(fd).st_size
        if not _size_is_good(tail, size, report):
            return
        while tail.offset < size:
            data = os.pread(fd, min(4 * fmt.MAX_EVENT_BYTES, size - tail.offset), tail.offset)
            end = data.rfind(b"\n") + 1
            if end == 0:
                if len(data) > fmt.MAX_EVENT_BYTES:
                    tail.given_up = True
                    what = f"a line of more than {fmt.MAX_EVENT_BYTES} bytes; nothing more is read of the file"
                    report(tail.path, tail.offset, what)
                return
            at = tail.offset
            for line in data[: end - 1].split(b"\n"):
                yield at, line
                at += len(line) + 1
            tail.offset += end
    except OSError as error:
        report(tail.path, tail.offset, f"cannot be read: {error.strerror}")
    finally:
        os.close(fd)
