"""Protocol buffers on the wire, and the checksum of TensorFlow's record files: no more than two small formats need.

Source: https://protobuf.dev/programming-guides/encoding; Castagnoli's CRC-32C (RFC 3720, B.4).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

Field = tuple[int, int | float | bytes]
_DOUBLE, _FLOAT = struct.Struct("<d"), struct.Struct("<f")


class BadWire(ValueError):
    """The bytes are no message."""


def fields(data: bytes) -> Iterator[Field]:
    """``(number, value)`` of each field of a message: varints as int, fixed ones as float, the rest as bytes.

    A group (wire types 3 and 4, not used for decades) is refused, as is what runs over the end.

    Raises:
        BadWire: the bytes are no message.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = varint(data, at)
        kind = key & 7
        value: int | float | bytes
        if kind == 0:
            value, at = varint(data, at)
        elif kind == 1:
            if at + 8 > end:
                raise BadWire("a fixed64 is cut off")
            value, at = _DOUBLE.unpack_from(data, at)[0], at + 8
        elif kind == 2:
            size, at = varint(data, at)
            if size > end - at:
                raise BadWire(f"a field of {size} bytes in {end - at}")
            value, at = data[at : at + size], at + size
        elif kind == 5:
            if at + 4 > end:
                raise BadWire("a fixed32 is cut off")
            value, at = _FLOAT.unpack_from(data, at)[0], at + 4
        else:
            raise BadWire(f"wire type {kind}")
        yield key >> 3, value


def varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned varint of at most 64 bits, and where the next byte is."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, at
        shift += 7
    raise BadWire("a varint is cut off")


def signed(value: int) -> int:
    """An int64 from its varint."""
    return value - (1 << 64) if value >> 63 else value


def _table() -> tuple[int, ...]:
    entries = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        entries.append(byte)
    return tuple(entries)


_TABLE = _table()


def masked_crc32c(data: bytes) -> int:
    """CRC-32C, rotated and offset as TensorFlow's record files have it."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
