"""Compact files, mapped: a column that nobody asks for is never read."""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.blocks import Blocks, block_sums, blocks_of
from monitor.runfile.framing import BadMessage, Incomplete, Stretch, parse_schema, scan, stamp
from monitor.runfile.rows import Rows, Unchecked, places
from monitor.runfile.segments import check_schema, layers_of
from monitor.runfile.tables import LayerTable, ScalarTable

COMPACT_STREAMS = ("scalars", "system", *fmt.MATRIX_STREAMS)
MAGIC = b"ARROW1\0\0"
"""An Arrow IPC file is this, a stream as in a segment, and a table of contents."""


def compact_file(run_dir: Path, stream: str, attempt: int, rank: int) -> Path:
    """Where the compact file of a stream lies."""
    return run_dir / "compact" / f"{stream}-{attempt:04d}-{rank:05d}.arrow"


def write_batches(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    """Write an Arrow IPC file whose batches carry their checksums, make it durable, and return their number."""
    count = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch, custom_metadata={"crc32": "00000000", "head32": "00000000"})
            count += 1
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        stamp(file.fileno(), data, len(MAGIC))
        os.fsync(file.fileno())
    return count


def file_crc(path: Path) -> int:
    """CRC-32 of a whole file."""
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            crc = zlib.crc32(piece, crc)
    return crc


def file_blocks(path: Path) -> str:
    """The checksums of a whole file by blocks, as its seal holds them."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        return block_sums(data)


def covered_segments(run_dir: Path, stream: str, attempt: int, rank: int) -> int:
    """How many segments the stream's compact file stands for; 0 without a sealed one of the size that its seal says."""
    path = compact_file(run_dir, stream, attempt, rank)
    if not fmt.is_real_folder(run_dir, path.parent):
        return 0
    try:
        seal = fmt.load_json(path.with_name(path.name + fmt.SEAL_SUFFIX))
        status = os.lstat(path)
    except (RunError, OSError):
        return 0
    segments = seal.get("segments")
    whole = seal.get("bytes") == status.st_size
    return segments if whole and isinstance(segments, int) and 0 < segments < 1_000_000 else 0


def load_compact(
    path: Path,
    stream: str,
    table: ScalarTable | LayerTable,
    check_bodies: bool = False,
    report: Callable[[int, str], None] | None = None,
) -> list[tuple[int, str]]:
    """Put the rows of a compact file into ``table``, columns deferred; returns (offset, what is wrong).

    Args:
        check_bodies: read everything and compare the checksums. Else what describes the batches is checked, with the
            steps, times and what tells absent values; a column is checked when it is asked for, by the sums in the
            file's seal (in full now when the seal has none).
        report: told about damage that the sums show, now or later; None adds it to the list that was returned.
    """
    try:
        fd = fmt.open_inside(path)
    except (FileNotFoundError, RunError) as error:
        return [(0, str(error))]
    try:
        data = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        return [(0, f"cannot be mapped: {error}")]
    finally:
        os.close(fd)
    try:
        if data[: len(MAGIC)] != MAGIC:
            raise BadMessage("not an Arrow file")
        head = parse_schema(data, len(MAGIC))
        schema = pa.ipc.read_schema(pa.py_buffer(data[len(MAGIC) : head.end]))
        wrong = check_schema(schema, stream)
        if wrong:
            raise BadMessage(wrong)
    except (BadMessage, Incomplete, pa.ArrowException, ValueError, OSError) as error:
        return [(0, f"the compact file cannot be read: {error}")]
    blocks = None if check_bodies else _blocks(path, len(data))
    seed = zlib.crc32(data[len(MAGIC) : head.end])
    found = scan(data, seed, final=True, begin=head.end, check_bodies=blocks is None)
    problems = list(found.problems)
    if not found.ended and not problems:
        problems.append((found.end, "a batch goes on beyond the end of the file"))
    layers = layers_of(schema) or ()
    columns = places(schema, len(layers))
    tell = report or (lambda offset, what: problems.append((offset, what)))
    unchecked = Unchecked(data, blocks, tell) if blocks is not None else None
    for stretch in _single_batches(found.good) if unchecked else found.good:
        try:
            rows = Rows(data, stretch, columns, unchecked)
        except BadMessage as error:
            problems.append((stretch.start, str(error)))
            continue
        if isinstance(table, LayerTable):
            refused = table.append(rows, layers, defer=True)
        else:
            refused = table.append(rows, defer=True)
        if refused:
            problems.append((stretch.start, f"{refused} rows are damaged or fall back in step; left out"))
    return problems


def _blocks(path: Path, size: int) -> Blocks | None:
    try:
        return blocks_of(fmt.load_json(path.with_name(path.name + fmt.SEAL_SUFFIX)), size)
    except RunError:
        return None


def _single_batches(stretches: list[Stretch]) -> Iterator[Stretch]:
    for stretch in stretches:
        for index in range(stretch.count):
            yield Stretch(stretch.start + index * stretch.size, 1, stretch.size, stretch.message)
