"""JSON lines, lists of records, Keras histories, and Hugging Face's ``trainer_state.json``, one record at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monitor.importers.lines import read_lines, read_text
from monitor.importers.rows import MAX_DEPTH, MAX_NAME, SPLITS, Account, Row, flat, number_of, of_split, step_of
from monitor.runfile.format import MAX_COLUMNS, MAX_JSON_BYTES

LARGEST_RECORD = 1 << 24
_HISTORY = re.compile(r'"log_history"\s*:\s*\[')
_FACTS = {name: re.compile(rf'"{name}"\s*:\s*(-?[\d.]+)') for name in ("max_steps", "logging_steps", "global_step")}
_MEASURED = re.compile(r"loss|error|accuracy|(^|[/_])(acc|auc|rmse|mae|mse)($|[/_])", re.I)
"""Of the lists of a document one is named so; else they are settings, such as the sizes of layers."""
LEAST_VALUES = 2
_BARE_NAN = re.compile(r"\bnan\b")
_OF_TOTAL = re.compile(r"(\d{1,15})\s*/\s*\d{1,15}")
_MAY_BE_LOST = re.compile(r"loss|grad(?:ient)?_?norm|perplexity", re.I)
LEAST_NULLS = 2
"""Rows that end without it; a single one may be that of a test."""
MOST_HELD = 10_000
_TIMES = ("_timestamp", "timestamp", "time", "wall_time", "ts")


def read_json_lines(path: Path, account: Account) -> Iterator[Row]:
    """A row per line that is a JSON object with numbers; bare NaN and Infinity are taken as Python writes them."""
    yield from _nan_for_null(_lines(path, account), path, account)


def _lines(path: Path, account: Account) -> Iterator[tuple[Row, set[str]]]:
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
            yield row, _nulls(record)


def _nulls(record: Mapping[str, Any]) -> set[str]:
    return {name for name, value in record.items() if value is None}


def _nan_for_null(rows: Iterator[tuple[Row, set[str]]], path: Path, account: Account) -> Iterator[Row]:
    """The rows, each with the names that are null in it; a loss or norm that was a number wherever it was named, and is
    null to the end while nothing else is new, is NaN, which many writers of JSON may not write."""
    seen: set[str] = set()
    gaps: set[str] = set()
    """Names that are null in rows that do not log them."""
    held: list[tuple[Row, set[str]]] = []
    """The rows from the first on that may lack a number, and which."""
    lacking: set[str] = set()
    for row, nulls in rows:
        names = row.values.keys()
        lost = {name for name in (nulls & seen) - gaps if _MAY_BE_LOST.search(name)} if names <= seen else set()
        gaps |= nulls - lost
        if lacking & names or len(held) == MOST_HELD:
            gaps |= lacking & names
            yield from (one for one, _ in held)
            held, lacking = [], set()
        if lost or held:
            held.append((row, lost))
            lacking |= lost
        else:
            yield row
        seen |= names
    for name in lacking - gaps:
        without = [row for row, lost in held if name in lost]
        if len(without) >= LEAST_NULLS:
            account.say("nothing", f"{path}: a loss or norm that is null to the end, beside other numbers, is NaN.")
            for row in without:
                row.values[name] = math.nan
    yield from (row for row, _ in held)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def python_object(text: str) -> dict[str, Any]:
    """An object that Python printed, as ``print(history.history)`` does; {} for anything else."""
    value = _loads(_BARE_NAN.sub("NaN", text.strip().replace("'", '"'))) if text.lstrip().startswith("{'") else None
    return value if isinstance(value, dict) else {}


def _record(record: dict[str, Any]) -> Row | None:
    values = flat(record)
    for name, value in record.items():
        if isinstance(value, str) and name.startswith("global_step") and (match := _OF_TOTAL.fullmatch(value)):
            values["global_step"] = float(match[1])  # ms-swift: 'global_step/max_steps': '5/3766'
    time = next((moment for name in _TIMES if (moment := values.get(name, 0.0)) > 1e9), None)
    for name in _TIMES:
        if time is not None and values.get(name) == time:
            del values[name]
    values = of_split(values, next((record[key] for key in SPLITS if isinstance(record.get(key), str)), None))
    return Row(None, time, values) if values else None


def read_records(path: Path, account: Account) -> Iterator[Row]:
    """A whole document: a list of records, lists side by side as in a Keras history, or either inside of it.

    Anything else (a configuration, a vocabulary) gives no row.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        account.say("size", f"{path}: a JSON document of {size:,} bytes; at most {MAX_JSON_BYTES:,} are read at once.")
        return
    text = "".join(read_text(path)).lstrip("\ufeff")
    document = _loads(text)
    document = document if document is not None else python_object(text) or None
    if isinstance(document, dict):
        columns = _columns(document)
        yield from (
            _nan_for_null(_rows(columns), path, account)
            if _is_course(columns)
            else _mapped(_longest(document), path, account)
        )
    elif isinstance(document, list):
        yield from _mapped(document, path, account)
    elif document is None:
        account.say("json", f"{path}: not a JSON document, or one cut off.")


def _mapped(records: list[Any], path: Path, account: Account) -> Iterator[Row]:
    """A row per object with numbers."""
    rows = ((_record(record), _nulls(record)) for record in records if isinstance(record, dict))
    return _nan_for_null(((row, nulls) for row, nulls in rows if row is not None), path, account)


def holds_columns(document: dict[str, Any]) -> bool:
    """Whether an object is a whole training, its losses in lists side by side or in a list of records, rather than one
    row of JSON lines."""
    return _is_course(_columns(document)) or len(_longest(document)) >= LEAST_VALUES


def _is_course(columns: Mapping[str, list[float | None]]) -> bool:
    return any(_MEASURED.search(name) for name in columns)


def _columns(document: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, list[float | None]]:
    """Lists of numbers by path, as in a Keras history, XGBoost's results and what ``pandas.to_json`` writes of a
    table (an object with a value for each row number)."""
    found: dict[str, list[float | None]] = {}
    for key, value in document.items():
        name = f"{prefix}{key}"[:MAX_NAME]
        if isinstance(value, dict) and value and all(map(str.isdecimal, value)):
            value = list(value.values())
        if isinstance(value, dict) and depth < MAX_DEPTH:
            inside = "" if key == "history" else f"{name}/"
            found.update(_columns(value, inside, depth + 1))
        elif isinstance(value, list) and len(value) >= (1 if depth == 0 else LEAST_VALUES):
            numbers = [None if one is None else number_of(one) for one in value]
            if all(number is not None or one is None for number, one in zip(numbers, value, strict=True)):
                found[name] = numbers
        if len(found) > MAX_COLUMNS:
            break
    return found


def _rows(columns: Mapping[str, list[float | None]]) -> Iterator[tuple[Row, set[str]]]:
    for index in range(max(map(len, columns.values()), default=0)):
        values = {name: column[index] for name, column in columns.items() if index < len(column)}
        row = Row(None, None, {name: value for name, value in values.items() if value is not None})
        yield row, _nulls(values) if row.values else set()


def _longest(document: Any, depth: int = 0) -> list[Any]:
    """The longest list of objects in it, such as ``{"epochs": [{...}, {...}]}``."""
    if isinstance(document, list):
        return document if document and all(isinstance(one, dict) for one in document) else []
    if not isinstance(document, dict) or depth >= MAX_DEPTH:
        return []
    return max((_longest(value, depth + 1) for value in document.values()), key=len, default=[])


def read_trainer_state(path: Path, account: Account) -> Iterator[Row]:
    """The ``log_history`` of a Hugging Face Trainer; of a file that is cut off, what is whole."""
    yield from _nan_for_null(_log_history(path, account), path, account)


def _log_history(path: Path, account: Account) -> Iterator[tuple[Row, set[str]]]:
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
            yield row, _nulls(record)
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
