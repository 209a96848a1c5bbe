"""TensorBoard event files: TFRecord framing with masked CRC-32C around Event messages; scalars, old and new style.

Source: tensorflow/core/util/event.proto, summary.proto, tensor.proto; tensorboard/backend/event_processing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from monitor.importers.rows import MAX_NAME, Account, Row
from monitor.importers.wire import BadWire, fields, masked_crc32c, signed, varint
from monitor.runfile.format import open_inside

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
LARGEST_SCALARS = 1 << 20
"""A larger record holds images, graphs or histograms and is passed over unread; our judgement."""
_FORMATS = {1: "f", 2: "d", 3: "i", 9: "q", 22: "I", 23: "Q"}
"""DataType -> struct code, of the types that a scalar may have: float, double, int32, int64, uint32, uint64."""


def is_events(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a record file."""
    if len(head) < _HEADER.size:
        return False
    size, crc = _HEADER.unpack_from(head)
    return size < 1 << 40 and masked_crc32c(head[:8]) == crc


def read_events(paths: list[Path], account: Account) -> Iterator[Row]:
    """A row per event with scalars, of files in the order given."""
    for number, path in enumerate(paths):
        fresh = number > 0
        for event in _records(path, account):
            try:
                row = _row(event)
            except (BadWire, struct.error, IndexError):
                account.say("event", f"{path}: an event cannot be read and is left out.")
                continue
            if row is not None:
                row.fresh, fresh = fresh, False
                yield row


def _records(path: Path, account: Account) -> Iterator[bytes]:
    """The payloads of the records. A torn end is the normal state of a file that is being written."""
    with os.fdopen(open_inside(path), "rb") as file:
        total = os.fstat(file.fileno()).st_size
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            size, crc = _HEADER.unpack(header)
            at = file.tell()
            if masked_crc32c(header[:8]) != crc:
                account.say("damaged", f"{path}: damaged at byte {at - _HEADER.size}; what follows is not read.")
                return
            if size > total - at - _CRC.size:
                break
            if size > LARGEST_SCALARS:
                file.seek(size + _CRC.size, os.SEEK_CUR)
                continue
            data, tail = file.read(size), file.read(_CRC.size)
            if len(data) < size or len(tail) < _CRC.size:
                header = b""
                break
            if masked_crc32c(data) != _CRC.unpack(tail)[0]:
                account.say("record", f"{path}: the record at byte {at} is damaged and left out.")
                continue
            yield data
        else:
            if not header:
                return
        account.say("torn", f"{path}: ends in the middle of a record, as a file that is being written may.")


def _row(event: bytes) -> Row | None:
    """An Event: 1 wall_time, 2 step, 5 summary."""
    time, step, values = None, 0, dict[str, float]()
    for number, value in fields(event):
        if number == 1 and isinstance(value, float):
            time = value
        elif number == 2 and isinstance(value, int):
            step = signed(value)
        elif number == 5 and isinstance(value, bytes):
            for inner, summary in fields(value):
                if inner == 1 and isinstance(summary, bytes):
                    _scalar(summary, values)
    return Row(step, time, values) if values else None


def _scalar(value: bytes, into: dict[str, float]) -> None:
    """A Summary.Value: 1 tag, 2 simple_value, 8 tensor, 9 metadata with the plugin that the tensor is for."""
    tag, number, tensor = "", None, None
    for field, content in fields(value):
        if field == 1 and isinstance(content, bytes):
            tag = content.decode("utf-8", "replace")[:MAX_NAME]
        elif field == 2 and isinstance(content, float):
            number = content
        elif field == 8 and isinstance(content, bytes):
            tensor = content
    if number is None and tensor is not None:
        number = _tensor(tensor)
    if tag and number is not None:
        into[tag] = number


def _tensor(data: bytes) -> float | None:
    """The number in a TensorProto of one element; None for a larger one, or of another type."""
    kind, content, packed, elements = 0, b"", None, 1
    for field, value in fields(data):
        if field == 1 and isinstance(value, int):
            kind = value
        elif field == 2 and isinstance(value, bytes):
            elements = _elements(value)
        elif field == 4 and isinstance(value, bytes):
            content = value
        elif field in (5, 6, 7, 10, 16, 17):
            packed = value
    if elements != 1:
        return None
    code = _FORMATS.get(kind)
    if code and len(content) == struct.calcsize(code):
        return float(struct.unpack("<" + code, content)[0])
    if kind == 19 and len(content) == 2:
        return float(struct.unpack("<e", content)[0])
    if isinstance(packed, bytes) and code in ("f", "d") and len(packed) == struct.calcsize(code):
        return float(struct.unpack("<" + code, packed)[0])
    if isinstance(packed, (int, float)):
        return float(signed(packed)) if isinstance(packed, int) else packed
    if isinstance(packed, bytes) and code and len(packed) <= 10:
        return float(signed(varint(packed, 0)[0]))
    return None


def _elements(shape: bytes) -> int:
    """Number of elements of a TensorShapeProto: 2 dim {1 size}."""
    count = 1
    for field, dim in fields(shape):
        if field == 2 and isinstance(dim, bytes):
            for inner, size in fields(dim):
                if inner == 1 and isinstance(size, int):
                    count *= signed(size)
    return count
