"""A run as tables for other tools: Parquet or CSV, one file per kind of thing."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.columns import number_array
from monitor.runfile.reader import Run, open_run
from monitor.runfile.thinned import Extents
from monitor.signals import LayerMatrix

FORMATS = ("parquet", "csv")


def export_run(run_dir: str | os.PathLike[str], target: str | os.PathLike[str], to: str = "parquet") -> list[Path]:
    """Write the current line of a run into the folder ``target`` and return the files.

    ``scalars``: a row per step, a column per name. ``layers-<stat>``: a row per step, a column per layer;
    ``modules-<stat>``: per module. Of a thinned statistic also ``<stat>.min``, ``.max``, ``.nan``, ``.posinf``,
    ``.neginf``: a row is about the steps from ``since`` to ``step``. ``system``: a row per sample. ``events.jsonl``: as
    recorded. A value that is absent is null in Parquet and an empty cell in CSV; NaN and the infinities are themselves
    in Parquet and ``NaN``, ``Infinity``, ``-Infinity`` in CSV.

    Raises:
        RunError: another format was asked for, a file is there already, or the folder cannot be written.
    """
    if to not in FORMATS:
        raise RunError(f"{to!r} cannot be exported to. Choose from: {', '.join(FORMATS)}.")
    run = open_run(run_dir)
    folder = Path(target)
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in _tables(run):
            path = folder / f"{name}.{to}"
            _refuse_existing(path)
            _write(path, table, to)
            written.append(path)
        path = folder / "events.jsonl"
        _refuse_existing(path)
        with path.open("w", encoding="utf-8") as file:
            for event in run.events():
                record = {"step": event.step, "time": event.time, "kind": event.kind, **event.fields}
                file.write(fmt.dump_json(record | {"attempt": event.attempt, "rank": event.rank}) + "\n")
        written.append(path)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror or error}. Choose another folder.") from None
    return written


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise RunError(f"{path} exists already; nothing is overwritten. Choose another folder.")


def _tables(run: Run) -> Iterator[tuple[str, pa.Table]]:
    signals = [run.series(name) for name in run.names]
    times = run.times()
    steps = times.step
    for signal in signals:
        steps = steps if np.array_equal(steps, signal.step) else np.union1d(steps, signal.step)
    columns = {"step": number_array(steps), "time": _along(times.step, times.value, steps)}
    columns.update((signal.name, _along(signal.step, signal.value, steps)) for signal in signals)
    yield "scalars", pa.table(columns)
    for stat in run.layer_stats:
        yield from _matrix_tables("layers", run.layers(stat), run.extents(stat, windows=False))
    for stat in run.module_stats:
        yield from _matrix_tables("modules", run.modules(stat), run.extents(stat, stream="modules", windows=False))
    yield "system", pa.Table.from_pandas(run.system(), preserve_index=False)


def _matrix_tables(kind: str, matrix: LayerMatrix, parts: Sequence[Extents]) -> Iterator[tuple[str, pa.Table]]:
    """One statistic by step and layer, and its extremes when it is thinned."""
    head = {"step": number_array(matrix.step)}
    yield f"{kind}-{_file_name(matrix.stat)}", _by_layer(head, matrix.names, matrix.value, matrix.present)
    if not parts:
        return
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    head = {
        "step": number_array(np.concatenate([part.step for part in parts])),
        "since": number_array(np.concatenate([part.since for part in parts])),
    }
    for extreme in fmt.EXTREMES:
        columns = [[part.names.index(name) if name in part.names else -1 for name in names] for part in parts]
        tables = [np.c_[getattr(part, extreme), np.full(len(part.step), np.nan)] for part in parts]
        value = np.concatenate([table[:, own] for table, own in zip(tables, columns, strict=True)])
        yield f"{kind}-{_file_name(f'{matrix.stat}.{extreme}')}", _by_layer(head, names, value, ~np.isnan(value))


def _by_layer(head: Mapping[str, pa.Array], names: Sequence[str], value: np.ndarray, present: np.ndarray) -> pa.Table:
    cells = dict(head)
    for index, name in enumerate(names):
        there = np.ascontiguousarray(present[:, index])
        cells[name] = number_array(value[:, index], None if there.all() else there)
    return pa.table(cells)


def _along(step: np.ndarray, value: np.ndarray, rows: np.ndarray) -> pa.Array:
    if len(step) == len(rows):
        return number_array(value)
    full, present = np.zeros(len(rows)), np.zeros(len(rows), bool)
    where = np.searchsorted(rows, step)
    full[where], present[where] = value, True
    return number_array(full, present)


def _file_name(stat: str) -> str:
    """A statistic's name comes from the run; in a file name only harmless characters of it stay."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in stat)[:100]


def _write(path: Path, table: pa.Table, to: str) -> None:
    if to == "parquet":
        parquet.write_table(table, path, compression="zstd")
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.column_names)
        for batch in table.to_batches(max_chunksize=10_000):
            columns = [[_cell(value) for value in column.to_pylist()] for column in batch.columns]
            writer.writerows(zip(*columns, strict=True))


def _cell(value: float | None) -> float | str | None:
    return fmt.spell_number(value) if isinstance(value, float) else value
