"""Queued rows to Arrow record batches, one array per column and no Python work per value where it can be helped.

Arrays are built from numpy buffers. ``pa.array`` would import pandas at its first call: half a second inside the
training process, and an error when that call comes at interpreter exit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from monitor.runfile.format import as_number


class RowLike(Protocol):
    """A queued row."""

    step: int | None
    time: float
    values: Any


def _named_columns(rows: Sequence[RowLike], names: Sequence[str]) -> tuple[list[pa.Array], int]:
    """A nullable float64 array per name (None: absent, NaN: a value) and how many values were not numbers."""
    names = list(names)
    cells: list[list[Any]] = [
        list(row.values.values()) if list(row.values) == names else [row.values.get(name) for name in names]
        for row in rows
    ]
    refused = 0
    try:
        table = np.array(cells, np.float64).reshape(len(rows), len(names))  # None becomes NaN, and absent below
    except (TypeError, ValueError, OverflowError):  # some value is no plain number: one by one
        cells, refused = _only_numbers(cells)
        table = np.array(cells, np.float64)
    columns = np.ascontiguousarray(table.T)
    unsure = np.asarray(np.isnan(columns).any(axis=1))
    arrays = [
        number_array(column, np.array([row[index] is not None for row in cells]) if unsure[index] else None)
        for index, column in enumerate(columns)
    ]
    return arrays, refused


def _only_numbers(cells: list[list[Any]]) -> tuple[list[list[float | None]], int]:
    numbers = [[None if value is None else _to_float(value) for value in row] for row in cells]
    given, kept = (sum(value is not None for row in table for value in row) for table in (cells, numbers))
    return numbers, given - kept


def number_array(values: np.ndarray, present: np.ndarray | None = None) -> pa.Array:
    """int64, float64 or float32 [n] with bool[n] present (None: all)."""
    values = np.ascontiguousarray(values)
    buffers = [_bitmap(present), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), buffers)


def list_array(values: np.ndarray, present: np.ndarray | None, given: np.ndarray) -> pa.Array:
    """list<float32> of ``len(given)`` rows: L elements, null where absent; a null list without any where not ``given``.

    Args:
        values: float32[g, L] of the g given rows.
        present: bool[g, L]; None: all.
        given: bool[n].
    """
    child = number_array(values.reshape(-1), None if present is None else present.reshape(-1))
    buffers = [_bitmap(given), _offsets(given * values.shape[1])]
    return pa.Array.from_buffers(pa.list_(pa.float32()), len(given), buffers, children=[child])


def _to_float(value: Any) -> float | None:
    number = as_number(value)
    if number is not None or isinstance(value, str):
        return number
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _steps(rows: Sequence[RowLike]) -> pa.Array:
    return number_array(np.array([row.step for row in rows], np.int64))


def _times(rows: Sequence[RowLike]) -> pa.Array:
    return number_array(np.array([row.time for row in rows], np.float64))


def scalars_batch(rows: Sequence[RowLike], names: Sequence[str], schema: pa.Schema) -> tuple[pa.RecordBatch, int]:
    """One batch of scalars, and the number of values left out because they are not numbers."""
    arrays, refused = _named_columns(rows, names)
    return pa.record_batch([_steps(rows), _times(rows), *arrays], schema=schema), refused


def system_batch(rows: Sequence[RowLike], names: Sequence[str], schema: pa.Schema) -> tuple[pa.RecordBatch, int]:
    """One batch of machine samples, and the number of values left out because they are not numbers."""
    arrays, refused = _named_columns(rows, names)
    return pa.record_batch([_times(rows), *arrays], schema=schema), refused


def layers_batch(rows: Sequence[RowLike], stats: Sequence[str], schema: pa.Schema) -> tuple[pa.RecordBatch, int]:
    """One batch of per-layer statistics; a missing statistic is a null list, a missing layer a null inside it."""
    arrays = [_list_column([row.values.get(stat) for row in rows]) for stat in stats]
    return pa.record_batch([_steps(rows), _times(rows), *arrays], schema=schema), 0


def _list_column(cells: list[tuple[np.ndarray, np.ndarray | None] | None]) -> pa.Array:
    """list<float32> from (values float32[L], present bool[L] or None for all), None for a null list."""
    given = [cell for cell in cells if cell is not None]
    size = len(given[0][0]) if given else 0
    present = None
    if any(there is not None for _, there in given):
        everything = np.ones(size, bool)
        present = np.array([everything if there is None else there for _, there in given])
    values = np.array([cell for cell, _ in given], np.float32).reshape(len(given), size)
    return list_array(values, present, np.array([cell is not None for cell in cells]))


def _bitmap(present: np.ndarray | None) -> pa.Buffer | None:
    """Arrow's validity bits; None when nothing is absent."""
    if present is None or present.all():
        return None
    return pa.py_buffer(np.packbits(present, bitorder="little"))


def landscape_batch(rows: Sequence[RowLike], names: Sequence[str], schema: pa.Schema) -> tuple[pa.RecordBatch, int]:
    """One batch of landscape samples."""
    kinds, directions, radii, coords, losses, baselines, coords_y, details = zip(
        *(row.values for row in rows), strict=True
    )
    columns = [
        _steps(rows),
        _times(rows),
        _texts(kinds),
        _texts(directions),
        number_array(np.array(radii, np.float64)),
        _lists(coords),
        _lists(losses),
        number_array(np.array(baselines, np.float64)),
        _lists(coords_y),
        _texts(details),
    ]
    return pa.record_batch(columns, schema=schema), 0


def _offsets(lengths: Sequence[int] | np.ndarray) -> pa.Buffer:
    return pa.py_buffer(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _texts(texts: Sequence[str]) -> pa.Array:
    data = [text.encode("utf-8", "replace") for text in texts]
    buffers = [None, _offsets([len(text) for text in data]), pa.py_buffer(b"".join(data))]
    return pa.Array.from_buffers(pa.string(), len(data), buffers)


def _lists(arrays: Sequence[np.ndarray]) -> pa.Array:
    child = number_array(np.concatenate(arrays))
    offsets = _offsets([len(array) for array in arrays])
    return pa.Array.from_buffers(pa.list_(pa.float64()), len(arrays), [None, offsets], children=[child])
