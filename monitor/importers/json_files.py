"""JSON lines, lists of records, Keras histories, and Hugging Face's ``trainer_state.json``, one record at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monitor.importers.lines import read_lines, read_text
from monitor.importers.rows import Account, Row, flat, number_of, step_of
from monitor.runfile.format import MAX_JSON_BYTES

LARGEST_RECORD = 1 << 24
_HISTORY = re.compile(r'"log_history"\s*:\s*\[')
_FACTS = {name: re.compile(rf'"{name}"\s*:\s*(-?[\d.]+)') for name in ("max_steps", "logging_steps", "global_step")}
_TIMES = ("_timestamp", "timestamp", "time", "wall_time", "ts")


def read_json_lines(path: Path, account: Account) -> Iterator[Row]:
    """A row per line that is a JSON object with numbers; bare NaN and Infinity are taken as Python writes them."""
    for line in read_lines(path, account, LARGEST_RECORD):
        text = line.strip()
        if not text:
            continue
        record = _loads(text)
        if not isinstance(record, dict):
            account.say("line", f"{path}: a line is no JSON object ({text[:40]!r}...) and is left out.")
            continue
        row = _record(record)
        if row is not None:
            yield row


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _record(record: dict[str, Any]) -> Row | None:
    values = flat(record)
    time = next((moment for name in _TIMES if (moment := values.get(name, 0.0)) > 1e9), None)
    for name in _TIMES:
        if time is not None and values.get(name) == time:
            del values[name]
    if isinstance(record.get("mode"), str) and record["mode"] in ("val", "valid", "validation", "eval", "test"):
        keep = ("epoch", "iter", "step")
        values = {name if name in keep else f"val/{name}": value for name, value in values.items()}
    return Row(None, time, values) if values else None


def read_records(path: Path, account: Account) -> Iterator[Row]:
    """A whole document: a list of records, or lists side by side as in a Keras history.

    Anything else (a configuration, a vocabulary) gives no row.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        account.say("size", f"{path}: a JSON document of {size:,} bytes; at most {MAX_JSON_BYTES:,} are read at once.")
        return
    document = _loads("".join(read_text(path)).lstrip("\ufeff"))
    if isinstance(document, dict):
        nested = [value for value in document.values() if isinstance(value, dict)]
        columns = document if not nested else document.get("history", {})
        yield from _columns(columns if isinstance(columns, dict) else {})
    elif isinstance(document, list):
        for record in document:
            row = _record(record) if isinstance(record, dict) else None
            if row is not None:
                yield row
    elif document is None:
        account.say("json", f"{path}: not a JSON document, or one cut off.")


def _columns(document: dict[str, Any]) -> Iterator[Row]:
    columns = {
        name: [number_of(value) for value in values]
        for name, values in document.items()
        if isinstance(values, list) and values and all(number_of(value) is not None for value in values)
    }
    for index in range(max(map(len, columns.values()), default=0)):
        values = {name: column[index] for name, column in columns.items() if index < len(column)}
        yield Row(None, None, {name: value for name, value in values.items() if value is not None})


def read_trainer_state(path: Path, account: Account) -> Iterator[Row]:
    """The ``log_history`` of a Hugging Face Trainer; of a file that is cut off, what is whole."""
    decoder = json.JSONDecoder()
    pieces = read_text(path)
    text, around = "", ""
    for piece in pieces:
        text += piece
        if match := _HISTORY.search(text):
            around, text = text[: match.start()], text[match.end() :]
            break
        text = text[-LARGEST_RECORD:]
    else:
        account.say("history", f"{path}: no log_history; is it cut off?")
        return
    account.origins["loss"] = "mean since the row before"
    at, records = 0, 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if at < len(text) and text[at] == "]":
            break
        record, after = _next(decoder, text, at)
        if after is None:
            more = next(pieces, None) if len(text) - at <= LARGEST_RECORD else None
            if more is None:
                account.say("torn", f"{path}: ends in the middle of its log_history; the whole records are kept.")
                break
            text, at = text[at:] + more, 0
            continue
        at, records = after, records + 1
        row = _trainer_row(record)
        if row is not None:
            yield row
    if not records:
        account.say("history", f"{path}: its log_history is empty.")
    around += text[at:][:LARGEST_RECORD]
    around += "".join(piece[:LARGEST_RECORD] for piece in pieces)[:LARGEST_RECORD]
    facts = {name: float(found[1]) for name, regex in _FACTS.items() if (found := regex.search(around))}
    planned = step_of(facts.get("max_steps"))
    account.planned_steps = planned or None
    if planned and facts.get("global_step", 0) >= planned:
        account.outcome, account.reason = "finished", f"The source says that all {planned} steps were done."


def _next(decoder: json.JSONDecoder, text: str, at: int) -> tuple[Any, int | None]:
    try:
        record, after = decoder.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, None
    return record, after


def _trainer_row(record: Any) -> Row | None:
    values = flat(record) if isinstance(record, dict) else {}
    step = step_of(values.pop("step", None))
    return Row(step, None, values) if values else None
