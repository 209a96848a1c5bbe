"""Arrow IPC messages by hand: where one begins and ends, and whether it is what the writer wrote.

An Arrow stream is a chain of ``FFFFFFFF, int32 n, n bytes of flatbuffer metadata, body``. pyarrow reads such a chain,
but it neither says where it stopped in a torn one nor notices changed bytes. So every batch carries two checksums:

- ``crc32``: of the body;
- ``head32``: of the schema message followed by this message's metadata, its own eight digits taken as zeros.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from monitor.runfile.format import MAX_MESSAGE_BODY, MAX_MESSAGE_METADATA

CONTINUATION = b"\xff\xff\xff\xff"
END_OF_STREAM = CONTINUATION + b"\0\0\0\0"

MAX_BATCH_METADATA = 1 << 20
"""4096 columns need a fifth of it."""
MAX_RESYNC_CANDIDATES = 10_000
"""Places tried after a broken message; bounds the time that a file made of markers can cost."""

_SCHEMA, _RECORD_BATCH = 1, 3
_BLANK = "00000000"
_PREFIX = struct.Struct("<Ii")
_U32, _I32, _I64, _U16 = struct.Struct("<I"), struct.Struct("<i"), struct.Struct("<q"), struct.Struct("<H")


Bytes = bytes | bytearray | memoryview | mmap.mmap


class BadMessage(ValueError):
    """Bytes that are no message of this format; the text says what is wrong with them."""


class Incomplete(Exception):
    """The message goes on beyond the bytes at hand."""

    def __init__(self, needed: int):
        super().__init__(needed)
        self.needed = needed
        """Bytes from the start of the message, as far as known."""


@dataclass(slots=True)
class Message:
    """One message inside a buffer; positions are indices into that buffer."""

    kind: int
    start: int
    metadata_end: int
    end: int
    rows: int = 0
    crc32_at: int = -1
    """Index of the first of eight hex digits; -1 when the message has none."""
    head32_at: int = -1
    nodes_at: int = 0
    """Index of the first of the (rows, nulls) pairs, two int64 each, one per column in depth-first order."""
    nodes: int = 0
    buffers: tuple[tuple[int, int], ...] = ()
    """(offset in the body, length) of every buffer."""


def parse_message(data: Bytes, start: int, limit: int = MAX_BATCH_METADATA) -> Message | None:
    """The message that begins at ``start``; None at the end-of-stream mark.

    Raises:
        Incomplete: it goes on beyond ``data``.
        BadMessage: it is not a schema or a plain record batch, or its sizes are out of bounds.
    """
    available = len(data) - start
    if available < 8:
        raise Incomplete(8)
    mark, size = _PREFIX.unpack_from(data, start)
    if mark != 0xFFFFFFFF:
        raise BadMessage(f"no message begins here (found {mark:08x})")
    if size == 0:
        return None
    if not 16 <= size <= limit:
        raise BadMessage(f"declared metadata size {size} is not within 16..{limit}")
    if available < 8 + size:
        raise Incomplete(8 + size)
    try:
        message = _parse_metadata(data, start, start + 8, start + 8 + size)
    except (struct.error, IndexError, UnicodeDecodeError):
        raise BadMessage("its metadata is damaged") from None
    if available < message.end - start:
        raise Incomplete(message.end - start)
    return message


def _field(data: Bytes, table: int, index: int) -> int:
    """Position of field ``index`` of a flatbuffer table; 0 when it is absent."""
    vtable = table - _I32.unpack_from(data, table)[0]
    if vtable < 0 or 4 + 2 * index >= _U16.unpack_from(data, vtable)[0]:
        return 0
    offset = _U16.unpack_from(data, vtable + 4 + 2 * index)[0]
    return table + offset if offset else 0


def _follow(data: Bytes, position: int) -> int:
    return position + _U32.unpack_from(data, position)[0]


def _parse_metadata(data: Bytes, start: int, begin: int, end: int) -> Message:
    # Field numbers: Arrow's Message.fbs, tables Message, RecordBatch and KeyValue.
    table = _follow(data, begin)
    kind_at, header_at, length_at = (_field(data, table, index) for index in (1, 2, 3))
    kind = data[kind_at] if kind_at else 0
    body = _I64.unpack_from(data, length_at)[0] if length_at else 0
    if kind not in (_SCHEMA, _RECORD_BATCH):
        raise BadMessage(f"message of type {kind}; only schema (1) and record batch (3) are part of the format")
    if not 0 <= body <= MAX_MESSAGE_BODY:
        raise BadMessage(f"declared body size {body} is not within 0..{MAX_MESSAGE_BODY}")
    message = Message(kind, start, end, end + body)
    if kind == _RECORD_BATCH:
        _parse_batch(data, message, _follow(data, header_at))
        for key, value_at, length in _key_values(data, _field(data, table, 4)):
            if length == 8 and value_at + 8 <= end:
                message.crc32_at = value_at if key == b"crc32" else message.crc32_at
                message.head32_at = value_at if key == b"head32" else message.head32_at
    return message


def _parse_batch(data: Bytes, message: Message, header: int) -> None:
    """Fill in what a record batch declares, after holding it against the size of its body."""
    body = message.end - message.metadata_end
    if _field(data, header, 3):
        raise BadMessage("a compressed batch; segments are not compressed")
    rows_at = _field(data, header, 0)
    message.rows = _I64.unpack_from(data, rows_at)[0] if rows_at else 0
    if not 0 <= message.rows <= body // 8:  # every stream has a column of eight bytes a row that is never null
        raise BadMessage(f"{message.rows} rows in a body of {body} bytes")
    message.nodes_at, message.nodes = _pairs(data, _field(data, header, 1), message.metadata_end)
    buffers_at, count = _pairs(data, _field(data, header, 2), message.metadata_end)
    numbers = struct.unpack_from(f"<{2 * count}q", data, buffers_at)
    message.buffers = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    if any(offset < 0 or length < 0 or offset + length > body for offset, length in message.buffers):
        raise BadMessage(f"a buffer lies outside the body of {body} bytes")
    if sum(numbers[1::2]) > body:  # thousands of columns over the same bytes would be thousands of times the memory
        raise BadMessage(f"its buffers overlap: together they are larger than the body of {body} bytes")


def _pairs(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """(position of the first, count) of a flatbuffer vector of int64 pairs."""
    if not at:
        return 0, 0
    vector = _follow(data, at)
    count = _U32.unpack_from(data, vector)[0]
    if vector + 4 + 16 * count > end:
        raise BadMessage(f"{count} columns or buffers do not fit the metadata")
    return vector + 4, count


def _key_values(data: Bytes, at: int) -> Iterator[tuple[bytes, int, int]]:
    """(key, position of the value, length of the value) of a flatbuffer vector of KeyValue."""
    if not at:
        return
    vector = _follow(data, at)
    for index in range(min(_U32.unpack_from(data, vector)[0], 16)):
        pair = _follow(data, vector + 4 + 4 * index)
        key, value = _follow(data, _field(data, pair, 0)), _follow(data, _field(data, pair, 1))
        key_size = min(_U32.unpack_from(data, key)[0], 64)
        yield bytes(data[key + 4 : key + 4 + key_size]), value + 4, _U32.unpack_from(data, value)[0]


def parse_schema(data: Bytes, start: int = 0) -> Message:
    """The schema message at the start of a segment.

    Raises:
        Incomplete: not all of it is there yet.
        BadMessage: a segment cannot begin like that.
    """
    message = parse_message(data, start, MAX_MESSAGE_METADATA)
    if message is None or message.kind != _SCHEMA:
        raise BadMessage("a segment begins with a schema")
    # Messages lie at multiples of eight; a schema has no such mark there (no text and no length in it could be one).
    pairs = np.frombuffer(bytes(data[start : message.end]), "<u4", (message.end - start) // 4)
    if (pairs[2::2] == 0xFFFFFFFF).any():
        raise BadMessage("its schema's declared size goes into the batches behind it")
    return message


def _head32(data: Bytes, message: Message, seed: int) -> str:
    head = bytearray(data[message.start + 8 : message.metadata_end])
    at = message.head32_at - message.start - 8
    head[at : at + 8] = _BLANK.encode()
    return f"{zlib.crc32(head, seed):08x}"


def head_is_whole(data: Bytes, message: Message, seed: int) -> bool:
    """Whether the metadata of a batch is as written; ``seed`` is the CRC32 of the segment's schema message."""
    if message.crc32_at < 0 or message.head32_at < 0:
        return False
    return bytes(data[message.head32_at : message.head32_at + 8]) == _head32(data, message, seed).encode()


def encode_schema(schema: pa.Schema) -> bytes:
    """The schema message that a segment begins with."""
    return schema.serialize().to_pybytes()


def encode_batch(batch: pa.RecordBatch, schema_size: int, seed: int) -> bytearray:
    """One record batch message with both checksums.

    Args:
        batch: of the segment's schema.
        schema_size: bytes of that schema's message.
        seed: its CRC32.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch, custom_metadata={"crc32": _BLANK, "head32": _BLANK})
    data = bytearray(memoryview(sink.getvalue())[schema_size : -len(END_OF_STREAM)])
    message = parse_message(data, 0)
    assert message is not None and message.head32_at > 0
    data[message.crc32_at : message.crc32_at + 8] = _crc32(data, message.metadata_end, message.end)
    data[message.head32_at : message.head32_at + 8] = _head32(data, message, seed).encode()
    return data


def stamp(fd: int, data: mmap.mmap, begin: int) -> None:
    """Write the checksums of every batch of a stream that begins at ``begin`` and was written with eight zeros each.

    Through the descriptor, where a full disk is an error; through the mapping ``data`` it would be a signal.
    """
    schema = parse_schema(data, begin)
    seed = zlib.crc32(data[begin : schema.end])
    at = schema.end
    while (message := parse_message(data, at)) is not None:
        os.pwrite(fd, _crc32(data, message.metadata_end, message.end), message.crc32_at)
        os.pwrite(fd, _head32(data, message, seed).encode(), message.head32_at)
        at = message.end


# Scanning ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Stretch:
    """Consecutive whole batches of one layout: equal sizes, every buffer at the same place in every one."""

    start: int
    count: int
    size: int
    """Bytes of one message."""
    message: Message
    """The first one, or one like it; positions are its own."""

    @property
    def stop(self) -> int:
        return self.start + self.count * self.size

    @property
    def rows(self) -> int:
        return self.count * self.message.rows


@dataclass(slots=True)
class Scan:
    """What a part of a segment holds."""

    good: list[Stretch]
    end: int
    """Everything before it is dealt with; the next scan begins here."""
    problems: list[tuple[int, str]]
    """(position, what is wrong) of what was left out."""
    ended: bool
    """The end-of-stream mark was seen."""
    needed: int
    """Bytes from ``end`` that the next message needs, as far as known; 0 when nothing is begun."""


def scan(
    data: bytes | mmap.mmap, seed: int, final: bool, begin: int = 0, check_bodies: bool = True, checked: bool = False
) -> Scan:
    """Find the whole batches in ``data``, which begins where a message begins.

    A message that is not complete is left for later. A broken one is skipped as soon as a whole one is found behind it;
    while nothing whole follows, it may be a write in progress and is left for later as well, unless ``final``.

    Args:
        data: bytes of a segment.
        seed: CRC32 of the schema message.
        final: the segment will not grow any more.
        begin: where to begin, behind the schema or behind a batch.
        check_bodies: without, the bodies are not touched.
        checked: all of ``data`` has been held against a checksum already; the batches' structure is still looked at.
    """
    result = Scan(good=[], end=begin, problems=[], ended=False, needed=0)
    while result.end < len(data):
        at = result.end
        try:
            message = parse_message(data, at)
            if message is None:
                result.ended, result.end = True, at + 8
                return result
            if message.kind != _RECORD_BATCH:
                raise BadMessage("a second schema")
            if not head_is_whole(data, message, seed):
                raise BadMessage("the batch's header or the segment's schema is damaged (head32 differs)")
            if checked:
                _take_all_alike(data, message, result)
            else:
                _take_alike(data, message, seed, result, check_bodies)
            continue
        except Incomplete as torn:
            # A damaged size may ask for bytes that never come; what is whole behind it must not wait for them.
            following = _resync(data, at + 4, seed)
            if following < 0 and not (final and data[-len(END_OF_STREAM) :] == END_OF_STREAM):
                # A torn tail: normal after a kill, and what a live file looks like in mid-write.
                result.end = len(data) if final else at
                result.needed = 0 if final else torn.needed
                return result
            following = len(data) if following < 0 else following
            what = "a batch is cut short"
        except BadMessage as bad:
            following = _resync(data, at + 4, seed)
            if following < 0 and not final:
                return result
            following = len(data) if following < 0 else following
            what = str(bad)
        result.problems.append((at, f"{what}; {following - at} bytes left out"))
        result.end = following
    return result


def _take_alike(data: bytes | mmap.mmap, message: Message, seed: int, result: Scan, check_bodies: bool) -> None:
    """Take ``message`` and all that follow it with the same layout, as far as they are whole."""
    start, size = message.start, message.end - message.start
    head_end, crc_at, digits_at = (at - start for at in (message.metadata_end, message.crc32_at, message.head32_at))
    whole = start
    for at in range(start, start + size * _count_alike(data, message), size):
        head = bytearray(data[at + 8 : at + head_end])
        head[digits_at - 8 : digits_at] = b"00000000"
        if data[at + digits_at : at + digits_at + 8] != b"%08x" % zlib.crc32(head, seed):
            break  # seen again, and reported, as the first of the next stretch
        result.end = at + size
        if check_bodies and data[at + crc_at : at + crc_at + 8] != _crc32(data, at + head_end, at + size):
            result.problems.append((at, f"the batch of {message.rows} rows is damaged (crc32 differs); left out"))
            if at > whole:
                result.good.append(Stretch(whole, (at - whole) // size, size, message))
            whole = at + size
    if result.end > whole:
        result.good.append(Stretch(whole, (result.end - whole) // size, size, message))


def _take_all_alike(data: bytes | mmap.mmap, message: Message, result: Scan) -> None:
    count, size = _count_alike(data, message), message.end - message.start
    result.good.append(Stretch(message.start, count, size, message))
    result.end = message.start + count * size


def _crc32(data: Bytes, start: int, stop: int) -> bytes:
    with memoryview(data) as view:
        return b"%08x" % zlib.crc32(view[start:stop])


def _count_alike(data: bytes | mmap.mmap, message: Message) -> int:
    """How many messages from ``message`` on have its metadata, checksums and null counts aside."""
    start, size = message.start, message.end - message.start
    head_end = message.metadata_end - start
    head = np.frombuffer(data, np.uint8, head_end, start)
    free = np.zeros(head_end, bool)
    for at in (message.crc32_at, message.head32_at):
        free[at - start : at - start + 8] = True
    nodes_at = message.nodes_at - start
    free[nodes_at : nodes_at + 16 * message.nodes].reshape(-1, 16)[:, 8:] = True
    most = (len(data) - start) // size
    count, ahead = 1, 8
    while count < most:
        ahead = min(ahead, most - count)
        heads = np.ndarray((ahead, head_end), np.uint8, data, start + count * size, (size, 1))
        alike = ((heads == head) | free).all(axis=1)
        if not alike.all():
            return count + int(alike.argmin())
        count += ahead
        ahead = min(4 * ahead, max(8, (4 << 20) // head_end))
    return count


def _resync(data: bytes | mmap.mmap, start: int, seed: int) -> int:
    """Position of the next whole batch at or after ``start``; -1 when there is none."""
    at = start
    for _ in range(MAX_RESYNC_CANDIDATES):
        at = data.find(CONTINUATION, at)
        if at < 0:
            return -1
        try:
            message = parse_message(data, at)
            if message is not None and message.kind == _RECORD_BATCH and head_is_whole(data, message, seed):
                return at
        except (Incomplete, BadMessage):
            pass  # a marker by chance inside other data
        at += 1
    return -1
