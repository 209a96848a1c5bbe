"""Weights & Biases' offline ``.wandb`` files: LevelDB's log framing around Record messages; history, config and exit.

Source: github.com/wandb/wandb, core/pkg/leveldb/record.go and wandb/proto/wandb_internal.proto.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monitor.importers.rows import MAX_NAME, Account, Row, flat, number_of, step_of
from monitor.importers.wire import BadWire, fields, signed
from monitor.runfile.format import open_inside

MAGIC = b":W&B"
_BLOCK = 1 << 15
_FILE_HEADER = 7
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
LARGEST_RECORD = 16 << 20
_HISTORY, _CONFIG, _RUN, _EXIT = 2, 5, 17, 18


def read_wandb(path: Path, account: Account) -> Iterator[Row]:
    """A row per history record, with its ``_step`` and ``_timestamp``."""
    for record in _records(path, account):
        try:
            for number, content in fields(record):
                if number == _HISTORY and isinstance(content, bytes):
                    row = _history(content)
                    if row is not None:
                        yield row
                elif number == _RUN and isinstance(content, bytes):
                    for inner, value in fields(content):
                        if inner == 4 and isinstance(value, bytes):
                            _config(value, account)
                        elif inner == 8 and isinstance(value, bytes):
                            account.name = value.decode("utf-8", "replace")[:MAX_NAME] or None
                elif number == _CONFIG and isinstance(content, bytes):
                    _config(content, account)
                elif number == _EXIT and isinstance(content, bytes):
                    code = dict(fields(content)).get(1, 0)
                    account.outcome = "crashed" if code else "finished"
                    account.reason = f"W&B recorded exit code {code!r}."
        except BadWire:
            account.say("record", f"{path}: a record cannot be read and is left out.")


def _records(path: Path, account: Account) -> Iterator[bytes]:
    """Whole records, put together from their chunks; a block that is damaged is passed over."""
    parts: list[bytes] = []
    size = 0
    with os.fdopen(open_inside(path), "rb") as file:
        begin = _FILE_HEADER
        file.seek(_FILE_HEADER)
        while block := file.read(_BLOCK - begin):
            at = 0
            while at + _CHUNK.size <= len(block):
                crc, length, kind = _CHUNK.unpack_from(block, at)
                data = block[at + _CHUNK.size : at + _CHUNK.size + length]
                if kind == 0 and length == 0:
                    break  # the rest of the block is empty
                if len(data) < length:
                    account.say("torn", f"{path}: ends in the middle of a record, as a file that is being written may.")
                    return
                if not _FULL <= kind <= _LAST or zlib.crc32(data, zlib.crc32(bytes([kind]))) != crc:
                    account.say("damaged", f"{path}: a block is damaged; what it held is left out.")
                    parts, size = [], 0
                    break
                at += _CHUNK.size + length
                if kind in (_FULL, _FIRST):
                    parts, size = [], 0
                size += length
                if size <= LARGEST_RECORD:
                    parts.append(data)
                if kind in (_FULL, _LAST):
                    if size <= LARGEST_RECORD:
                        yield b"".join(parts)
                    parts, size = [], 0
            begin = 0


def _history(record: bytes) -> Row | None:
    """A HistoryRecord: 1 item {1 key, 2 nested_key, 16 value_json}, 2 step {1 num}."""
    values: dict[str, float] = {}
    step: int | None = None
    for number, content in fields(record):
        if number == 1 and isinstance(content, bytes):
            key, value = _item(content)
            if isinstance(value, dict):
                if "_type" not in value:  # histograms, images and tables say what they are
                    values.update(flat(value, f"{key}/"))
            elif (plain := number_of(value)) is not None:
                values[key] = plain
        elif number == 2 and isinstance(content, bytes):
            step = signed(int(dict(fields(content)).get(1, 0)))
    named = step_of(values.pop("_step", None))
    step = named if named is not None else step
    time = values.pop("_timestamp", None)
    values.pop("_runtime", None)
    return Row(step, time, values) if values else None


def _item(content: bytes) -> tuple[str, Any]:
    names: list[str] = []
    value: Any = None
    for number, part in fields(content):
        if number in (1, 2) and isinstance(part, bytes):
            names.append(part.decode("utf-8", "replace"))
        elif number == 16 and isinstance(part, bytes):
            try:
                value = json.loads(part)
            except (ValueError, RecursionError):
                value = None
    return "/".join(name for name in names if name), value


def _config(record: bytes, account: Account) -> None:
    """A ConfigRecord: 1 update {key, value_json}."""
    for number, content in fields(record):
        if number == 1 and isinstance(content, bytes):
            key, value = _item(content)
            if not key.startswith("_"):
                account.config = {**(account.config or {}), key: value}
