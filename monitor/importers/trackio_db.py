"""Trackio's projects: SQLite databases, and the parquet files that newer versions export. They are not written to."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.importers.rows import Account, Row, flat, number_of, step_of

MAGIC = b"SQLite format 3\0"
PARQUET_MAGIC = b"PAR1"
LARGEST_WITH_JOURNAL = 1 << 30
LARGEST_VALUE = 1 << 20
MOST_RUNS = 1000


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """The database as it is. With a journal beside it a copy of both is read: merging it would change the original."""
    with contextlib.ExitStack() as stack:
        journal = path.with_name(path.name + "-wal")
        mode = "ro&immutable=1"
        if journal.is_file() and not journal.is_symlink() and journal.stat().st_size:
            if path.stat().st_size + journal.stat().st_size > LARGEST_WITH_JOURNAL:
                raise RunError(f"{path}: too large to be read while it is written. End the writer, then try again.")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for file in (path, journal):
                shutil.copyfile(file, folder / file.name)
            path, mode = folder / path.name, "rw"
        try:
            base = stack.enter_context(
                contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True))
            )
            base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
            base.execute("PRAGMA trusted_schema = OFF")
            base.text_factory = lambda raw: raw.decode("utf-8", "replace")
            yield base
        except (sqlite3.Error, UnicodeError) as error:
            raise RunError(f"{path}: not a database that can be read ({error}).") from None


def database_runs(path: Path) -> list[tuple[str, str]]:
    """``(id, name)`` of each run in a Trackio database; [] when it is another program's.

    Raises:
        RunError: it is damaged.
    """
    with _open(path) as base:
        tables = {row[0] for row in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "metrics" not in tables:
            return []
        columns = _columns(base)
        if not {"run_name", "step", "metrics"} <= columns:
            return []
        key = "run_id" if "run_id" in columns else "run_name"
        query = f"SELECT {key}, run_name FROM metrics GROUP BY {key} ORDER BY MIN(rowid) LIMIT {MOST_RUNS}"
        return [(str(run), str(name)) for run, name in base.execute(query)]


def _columns(base: sqlite3.Connection) -> set[str]:
    return {str(row[1]) for row in base.execute("PRAGMA table_info(metrics)")}


def read_database(path: Path, run: str, account: Account) -> Iterator[Row]:
    """The rows of one run, in the order in which they were logged."""
    try:
        with _open(path) as base:
            columns = _columns(base)
            key = "run_id" if "run_id" in columns else "run_name"
            account.config = _config(base, key, run)
            when = "timestamp" if "timestamp" in columns else "NULL"
            query = f"SELECT step, {when}, metrics FROM metrics WHERE {key} = ? ORDER BY rowid"
            for step, moment, text in base.execute(query, (run,)):
                values = _object(text)
                if values is None:
                    account.say("row", f"{path}: a row's metrics are no JSON object; it is left out.")
                    continue
                numbers = flat(values)
                if numbers:
                    yield Row(step_of(number_of(step)), _unix(moment), numbers)
    except RunError as error:
        account.say("database", f"{error} What came before is kept.")


def _config(base: sqlite3.Connection, key: str, run: str) -> dict[str, Any] | None:
    try:
        found = base.execute(f"SELECT config FROM configs WHERE {key} = ?", (run,)).fetchone()
    except sqlite3.Error:
        return None
    values = _object(found[0]) if found else None
    return {name: value for name, value in values.items() if not name.startswith("_")} if values else None


def _object(text: Any) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _unix(moment: Any) -> float | None:
    try:
        return dt.datetime.fromisoformat(moment).timestamp()
    except (ValueError, TypeError, OverflowError):
        return number_of(moment)


def parquet_runs(path: Path) -> list[tuple[str, str]]:
    """``(name, name)`` of each run in a table of columns; one without a name when it does not tell runs apart.

    Raises:
        RunError: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        key = _run_column(file)
        if key is None:
            return [("", "")]
        names: dict[str, None] = {}
        for batch in file.iter_batches(columns=[key]):
            names.update(dict.fromkeys(str(name) for name in batch.column(0).unique().to_pylist()))
            if len(names) > MOST_RUNS:
                break
        return [(name, name) for name in list(names)[:MOST_RUNS]]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RunError(f"{path}: not a parquet file that can be read ({error}).") from None


def _run_column(file: Any) -> str | None:
    return next((name for name in ("run_id", "run_name") if name in file.schema_arrow.names), None)


def read_parquet(path: Path, run: str, account: Account) -> Iterator[Row]:
    """The rows of one run of a table of columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        key = _run_column(file)
        for batch in file.iter_batches(batch_size=4096):
            for record in batch.to_pylist():
                if key is not None and str(record.get(key)) != run:
                    continue
                moment = record.get("timestamp")
                numbers = flat({name: value for name, value in record.items() if name not in ("id", "timestamp")})
                step = step_of(numbers.pop("step", None))
                if numbers:
                    yield Row(step, _unix(moment), numbers)
    except (pa.ArrowException, OSError, ValueError) as error:
        account.say("parquet", f"{path}: cannot be read further ({error}). What came before is kept.")
