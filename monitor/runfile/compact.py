"""Finished segments merged into one file per stream that is mapped instead of read.

A live segment has a batch for every second or 64 rows; a million rows are thousands of small pieces, and every one is
checked when the run is opened. The compact file holds the same rows in batches of megabytes. It is an Arrow IPC *file*,
uncompressed, so that anybody can open it, and a column that nobody asks for is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.columns import list_array, number_array
from monitor.runfile.compacted import (
    COMPACT_STREAMS,
    compact_file,
    covered_segments,
    file_blocks,
    file_crc,
    load_compact,
    write_batches,
)
from monitor.runfile.levelfile import LEVEL_STREAMS, write_levels
from monitor.runfile.reader import Run, open_run
from monitor.runfile.tables import LayerBlock, LayerTable, ScalarTable

BATCH_BYTES = 64 << 20
"""Rows of one batch of a compact file; also what compaction needs in memory beside the columns."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """One compact file that was written."""

    stream: str
    attempt: int
    rank: int
    path: Path
    rows: int
    segments: int
    """Number of segments that are in it: 0 to this minus one."""
    bytes_before: int
    bytes_after: int


def compact_run(run_dir: str | os.PathLike[str], *, remove: bool = False) -> list[Compacted]:
    """Write the compact files of every attempt that has ended; what has one already is left alone.

    Args:
        remove: delete the merged segments once the compact file has been read back and found equal.

    Raises:
        RunError: the run goes on, something in it is damaged (nothing may be merged away then), the disk is full, or
            another process is compacting it.
    """
    with _alone(Path(run_dir)):
        return _compact(open_run(run_dir), remove)


def _compact(run: Run, remove: bool) -> list[Compacted]:
    if not run.state.ended:
        raise RunError(f"{run.path}: the run is {run.state.word}. Compact it when it has ended.")
    if run.problems:
        raise RunError(f"{run.path}: not compacted, because {run.problems[0]}")
    done: list[Compacted] = []
    try:
        for attempt, rank, stream, table in _tables(run):
            compacted = _compact_stream(run.path, attempt, rank, stream, table, remove)
            if compacted is not None:
                done.append(compacted)
            if stream in LEVEL_STREAMS:
                write_levels(run.path, stream, attempt, rank, table)
    except OSError as error:
        raise RunError(
            f"{run.path}: cannot be compacted: {error.strerror or error}. Its segments are as they were."
        ) from None
    return done


@contextlib.contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Hold the run for this compaction. The lock goes with the process, however that ends."""
    try:
        fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield  # no such folder: opening the run says so
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{run_dir}: is being compacted by another process. Try again when that is done.") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(fd)


def unmerged_bytes(run: Run) -> int:
    """Bytes of segments that a compaction would merge: those of streams that have no compact file yet."""
    total = 0
    for attempt in run.attempts:
        for rank in run.ranks(attempt.number):
            folder = fmt.rank_dir(run.path, attempt.number, rank)
            for stream in COMPACT_STREAMS:
                if not covered_segments(run.path, stream, attempt.number, rank):
                    total += sum(path.stat().st_size for path in _segments(folder, stream))
    return total


def _tables(run: Run) -> Iterator[tuple[int, int, str, ScalarTable | LayerTable]]:
    for attempt in run.attempts:
        for rank, data in run.ranks(attempt.number).items():
            for stream in COMPACT_STREAMS:
                yield attempt.number, rank, stream, getattr(data, stream)


def _compact_stream(
    run_dir: Path, attempt: int, rank: int, stream: str, table: ScalarTable | LayerTable, remove: bool
) -> Compacted | None:
    """Write the compact file of one stream from what was read of it; None when there is nothing to merge."""
    segments = _segments(fmt.rank_dir(run_dir, attempt, rank), stream)
    target = compact_file(run_dir, stream, attempt, rank)
    covered = covered_segments(run_dir, stream, attempt, rank)
    if covered and remove:
        _remove_merged(segments[:covered], target)
    if covered or not segments:
        return None
    if isinstance(table, LayerTable):
        if len(table.blocks) != 1:
            return None  # the set of layers changed within the attempt: one file has one schema
        schema, batches, rows = _layer_batches(table.blocks[0], stream)
    else:
        schema, batches, rows = _scalar_batches(table, stream)
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        count = write_batches(temporary, schema, batches)
        _check_equal(temporary, stream, table)
        size = temporary.stat().st_size
        seal = {
            "file": target.name,
            "rows": rows,
            "batches": count,
            "segments": len(segments),
            "bytes": size,
            "crc32": f"{file_crc(temporary):08x}",
            "blocks": file_blocks(temporary),
        }
        target.with_name(target.name + fmt.SEAL_SUFFIX).unlink(missing_ok=True)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    fmt.atomic_write_json(target.with_name(target.name + fmt.SEAL_SUFFIX), seal)
    before = sum(path.stat().st_size for path in segments)
    if remove:
        _delete(segments)
    return Compacted(stream, attempt, rank, target, rows, len(segments), before, size)


def _remove_merged(segments: list[Path], target: Path) -> None:
    """Delete the segments that an earlier compaction has merged and kept, if its file is still what it was."""
    if f"{file_crc(target):08x}" != fmt.load_json(target.with_name(target.name + fmt.SEAL_SUFFIX)).get("crc32"):
        raise RunError(f"{target}: not what its seal says. The segments stay as they are.")
    _delete(segments)


def _delete(segments: list[Path]) -> None:
    # The last one first: were this cut short, what is left would still be numbered from 0 on.
    for path in reversed(segments):
        path.unlink()
        path.with_name(path.name + fmt.SEAL_SUFFIX).unlink(missing_ok=True)


def _segments(folder: Path, stream: str) -> list[Path]:
    """The stream's segments from number 0 on, without a gap."""
    found: list[Path] = []
    while (path := folder / fmt.segment_name(stream, len(found))).is_file():
        found.append(path)
    return found


Batches = Iterator[pa.RecordBatch]


def _scalar_batches(table: ScalarTable, stream: str) -> tuple[pa.Schema, Batches, int]:
    names = list(table.names)
    schema = fmt.scalars_schema(names) if stream == "scalars" else fmt.system_schema(names)
    steps, times = table.step.view(), table.time.view()
    size = _rows_per_batch(8 * (len(names) + 2))

    def batches() -> Batches:
        for start in range(0, len(steps), size):
            own = steps[start : start + size]
            arrays = [number_array(own)] if stream == "scalars" else []
            arrays.append(number_array(times[start : start + size]))
            arrays.extend(number_array(*_laid_out(*table.column(name), own)) for name in names)
            yield pa.record_batch(arrays, schema=schema)

    return schema, batches(), len(steps)


def _layer_batches(block: LayerBlock, stream: str) -> tuple[pa.Schema, Batches, int]:
    columns = {stat: block.column(stat) for stat in block.stats}
    schema = fmt.layers_schema(block.stats, [asdict(layer) for layer in block.layers], stream)
    steps, times = block.step.view(), block.time.view()
    size = _rows_per_batch(16 + 4 * len(block.names) * max(1, len(columns)))

    def batches() -> Batches:
        for start in range(0, len(steps), size):
            own = steps[start : start + size]
            arrays = [number_array(own), number_array(times[start : start + size])]
            for column in columns.values():
                assert column is not None
                low, high = np.searchsorted(column.step.view(), [own[0], own[-1] + 1])
                given = np.isin(own, column.step.view(low, high), assume_unique=True)
                arrays.append(list_array(column.value.view(low, high), column.present()[low:high], given))
            yield pa.record_batch(arrays, schema=schema)

    return schema, batches(), len(steps)


def _rows_per_batch(row_bytes: int) -> int:
    return max(10_000, BATCH_BYTES // row_bytes)


def _laid_out(step: np.ndarray, value: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The values at ``rows`` and bool[n] where there is one (None: everywhere)."""
    low, high = np.searchsorted(step, [rows[0], rows[-1] + 1])
    if high - low == len(rows):
        return value[low:high], None
    full, present = np.zeros(len(rows)), np.zeros(len(rows), bool)
    where = np.searchsorted(rows, step[low:high])
    full[where], present[where] = value[low:high], True
    return full, present


def _check_equal(path: Path, stream: str, table: ScalarTable | LayerTable) -> None:
    """Read the file back, every batch checked, and compare it with what it was made from."""
    matrix = stream in fmt.MATRIX_STREAMS
    again: ScalarTable | LayerTable = LayerTable() if matrix else ScalarTable(has_step=stream == "scalars")
    problems = load_compact(path, stream, again, check_bodies=True)
    if problems or not _equal(table, again):
        raise RunError(
            f"{path.name}: what was written is not what was read ({problems}). The segments stay as they are."
        )


def _equal(one: ScalarTable | LayerTable, other: ScalarTable | LayerTable) -> bool:
    if isinstance(one, LayerTable) and isinstance(other, LayerTable):
        if [block.names for block in one.blocks] != [block.names for block in other.blocks]:
            return False
        pairs = [
            (ours, theirs)
            for a, b in zip(one.blocks, other.blocks, strict=True)
            for ours, theirs in zip(_block_arrays(a), _block_arrays(b), strict=True)
        ]
    elif isinstance(one, ScalarTable) and isinstance(other, ScalarTable):
        if one.names != other.names:
            return False
        ours = [one.step.view(), one.time.view(), *(array for name in one.names for array in one.column(name))]
        theirs = [other.step.view(), other.time.view(), *(array for name in one.names for array in other.column(name))]
        pairs = list(zip(ours, theirs, strict=True))
    else:
        return False
    return all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


def _block_arrays(block: LayerBlock) -> list[np.ndarray]:
    arrays = [block.step.view(), block.time.view()]
    for stat in block.stats:
        column = block.column(stat)
        assert column is not None
        present = column.present()
        arrays += [column.step.view(), np.where(present, column.value.view(), np.float32(0)), present]
    return arrays
