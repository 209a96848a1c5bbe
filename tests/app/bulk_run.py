"""A long run on disk within seconds: its compact files written from arrays, as a compaction would have left them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from monitor.runfile import format as fmt
from monitor.runfile.columns import list_array, number_array
from monitor.runfile.compacted import compact_file, file_blocks, file_crc, write_batches
from monitor.runfile.levelfile import write_levels
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit

ROWS = 100_000
"""Rows of a batch."""


def bulk_run(
    folder: Path,
    scalars: Mapping[str, np.ndarray],
    stat: str,
    layers: np.ndarray,
    names: Sequence[str],
    *,
    run_id: str,
    start: float,
) -> Path:
    """A finished run of steps 1 to T at twenty a second.

    Args:
        scalars: float64[T] by name.
        layers: float32[T, L] of the statistic ``stat``, for the layers called ``names``.
        start: unix time of its beginning.
    """
    steps = len(layers)
    path = create_run(folder, name=run_id, run_id=run_id, task="gpt", now=lambda: start)
    attempt = begin_attempt(path, planned_steps=steps)
    writer = RankWriter(path, attempt)
    writer.define_layers(names, [(8, 8)] * len(names))
    first = {name: float(values[0]) for name, values in scalars.items()}
    writer.scalars(1, start, first)
    writer.layers(1, start, {stat: layers[0]})
    writer.close()
    one = next(fmt.rank_dir(path, attempt, 0).glob("layers-*.arrows"))
    with pa.ipc.open_stream(one.read_bytes()) as stream:
        schema = stream.schema
    moments = start + 0.05 * np.arange(1, steps + 1)
    _write(path, "scalars", fmt.scalars_schema(list(scalars)), _scalar_batches(scalars, moments), steps)
    _write(path, "layers", schema, _layer_batches(schema, layers, moments), steps)
    write_exit(path, attempt, outcome="finished", step=steps, reason="all steps done")
    data = open_run(path).ranks(attempt)[0]
    write_levels(path, "scalars", attempt, 0, data.scalars)
    write_levels(path, "layers", attempt, 0, data.layers)
    return path


def _write(path: Path, stream: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch], rows: int) -> None:
    target = compact_file(path, stream, 0, 0)
    target.parent.mkdir(exist_ok=True)
    count = write_batches(target, schema, batches)
    seal = {
        "file": target.name,
        "rows": rows,
        "batches": count,
        "segments": 1,
        "bytes": target.stat().st_size,
        "crc32": f"{file_crc(target):08x}",
        "blocks": file_blocks(target),
    }
    fmt.atomic_write_json(target.with_name(target.name + fmt.SEAL_SUFFIX), seal)


def _slices(rows: int) -> Iterator[slice]:
    return (slice(first, min(rows, first + ROWS)) for first in range(0, rows, ROWS))


def _scalar_batches(scalars: Mapping[str, np.ndarray], moments: np.ndarray) -> Iterator[pa.RecordBatch]:
    schema = fmt.scalars_schema(list(scalars))
    for rows in _slices(len(moments)):
        step = np.arange(rows.start + 1, rows.stop + 1)
        arrays = [number_array(step), number_array(moments[rows])]
        yield pa.record_batch([*arrays, *(number_array(values[rows]) for values in scalars.values())], schema=schema)


def _layer_batches(schema: pa.Schema, layers: np.ndarray, moments: np.ndarray) -> Iterator[pa.RecordBatch]:
    for rows in _slices(len(moments)):
        step = np.arange(rows.start + 1, rows.stop + 1)
        there = np.ones((len(step), layers.shape[1]), bool)
        values = list_array(layers[rows], there, np.ones(len(step), bool))
        yield pa.record_batch([number_array(step), number_array(moments[rows]), values], schema=schema)
