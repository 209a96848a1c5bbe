"""Samples of the loss landscape: decoded, and the files of those that are made from checkpoints after the training.

The stream ``landscape`` of an attempt has one writer, the training. What is computed later goes to ``landscape/`` of
the run: one file per question, replaced whole whenever more of its answer is known, so that it can be watched, stopped
and continued.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.columns import landscape_batch
from monitor.runfile.framing import (
    END_OF_STREAM,
    BadMessage,
    Incomplete,
    encode_batch,
    encode_schema,
    parse_schema,
    scan,
)
from monitor.runfile.queued import Row
from monitor.runfile.records import LandscapeSample
from monitor.runfile.segments import check_schema
from monitor.runfile.tables import frozen

MOST_FILES = 1000
MOST_BYTES = 32 << 20
"""Of one file; a plane of 1024 x 1024 has 24 MiB."""
MOST_BYTES_IN_ALL = 256 << 20
MOST_SAMPLES = 1000
"""Of one file."""
SETTLED_S = 2.0
"""A folder that changed more recently than this may have changed again within the same tick of its clock."""
_LISTS = ("coords", "loss", "coords_y")
_NAME = re.compile(r"[0-9]{8,16}-[a-z]{1,16}-[0-9a-f]{8}")


def samples_of(table: pa.Table, attempt: int, name: str = "") -> Iterator[LandscapeSample]:
    """The rows of a landscape stream; one whose lists disagree in length, or are very long, is left out."""
    columns = {column: table.column(column) for column in fmt.landscape_schema().names if column in table.column_names}
    for row in range(table.num_rows):
        lists = [_numbers(columns.get(column), row) for column in _LISTS]
        cell = {column: values[row].as_py() for column, values in columns.items() if column not in _LISTS}
        coords, loss, coords_y = lists
        detail = cell.get("detail") or ""
        if (
            len(coords) != len(loss)
            or len(coords_y) not in (0, len(coords))
            or len(coords) > fmt.MAX_LANDSCAPE_POINTS
            or len(detail) > fmt.MAX_DETAIL_BYTES
            or not 0 <= cell["step"] < fmt.MAX_STEP
        ):
            continue
        yield LandscapeSample(
            step=cell["step"],
            time=cell["time"],
            kind=cell["kind"] or "",
            direction=cell["direction"] or "",
            radius=np.nan if cell["radius"] is None else cell["radius"],
            coords=frozen(coords),
            loss=frozen(loss),
            baseline=np.nan if cell["baseline"] is None else cell["baseline"],
            attempt=attempt,
            coords_y=frozen(coords_y),
            detail_json=detail,
            name=name,
        )


def _numbers(column: pa.ChunkedArray | None, row: int) -> np.ndarray:
    """A copy, so that a few numbers do not keep a whole batch in memory; a null is NaN."""
    values = None if column is None else column[row].values
    return np.empty(0) if values is None else np.array(values.to_numpy(zero_copy_only=False), np.float64)


# Files ---------------------------------------------------------------------------------------------------------------


def landscape_file(run_dir: Path, name: str) -> Path:
    """Where the samples ``name`` lie: ``<step, 8 digits>-<kind>-<8 hex digits that tell the question>``.

    Raises:
        RunError: the name is another.
    """
    if not _NAME.fullmatch(name):
        raise RunError(f"landscape name {name!r}: accepted are names such as 00000100-plane-1a2b3c4d.")
    return run_dir / fmt.LANDSCAPE_DIR / f"{name}.arrows"


def write_landscape(run_dir: Path, name: str, samples: Sequence[LandscapeSample]) -> Path:
    """Write ``samples``, all of one attempt's checkpoint, in place of what ``name`` held.

    Raises:
        RunError: they cannot be written, or are more than a reader takes.
    """
    path = landscape_file(run_dir, name)
    (attempt,) = {sample.attempt for sample in samples}
    schema = fmt.landscape_schema(attempt=attempt)
    head = encode_schema(schema)
    batch, _ = landscape_batch([_row(sample) for sample in samples], (), schema)
    data = head + bytes(encode_batch(batch, len(head), zlib.crc32(head))) + END_OF_STREAM
    if len(data) > MOST_BYTES or len(samples) > MOST_SAMPLES:
        raise RunError(f"{path}: {len(data)} bytes in {len(samples)} samples; at most {MOST_BYTES} in {MOST_SAMPLES}.")
    try:
        path.parent.mkdir(exist_ok=True)
        if not fmt.is_real_folder(run_dir, path.parent):
            raise RunError(f"{path.parent} is a symbolic link, which is not followed; nothing was written.")
        fmt.atomic_write(path, data)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}.") from None
    return path


def _row(sample: LandscapeSample) -> Row:
    values = (
        sample.kind, sample.direction, sample.radius, sample.coords, sample.loss, sample.baseline, sample.coords_y,
        sample.detail_json,
    )  # fmt: skip
    return Row(sample.step, sample.time, values)


def read_landscape(run_dir: Path, name: str) -> list[LandscapeSample]:
    """The samples of one file; none when there is no such file.

    Raises:
        RunError: it cannot be read, is not as it was written, or is not of this format.
    """
    path = landscape_file(run_dir, name)
    try:
        if path.parent.exists() and not fmt.is_real_folder(run_dir, path.parent):
            raise RunError(f"{path.parent}: a symbolic link, which is not followed.")
        return _decoded(fmt.read_file(path, MOST_BYTES), path, name)
    except FileNotFoundError:
        return []


def _decoded(data: bytes, path: Path, name: str) -> list[LandscapeSample]:
    try:
        end = parse_schema(data).end
        schema = pa.ipc.read_schema(pa.py_buffer(data[:end]))
        wrong = check_schema(schema, "landscape")
        if wrong:
            raise BadMessage(wrong)
        found = scan(data, zlib.crc32(data[:end]), final=True, begin=end)
        if found.problems or not found.ended:
            raise BadMessage(found.problems[0][1] if found.problems else "it is cut short")
        table = pa.ipc.open_stream(pa.py_buffer(data[: found.end])).read_all()
        table.validate(full=True)
        attempt = fmt.parse_json((schema.metadata or {}).get(fmt.METADATA_KEY, b""), "its metadata").get("attempt")
        if type(attempt) is not int or attempt < 0 or table.num_rows > MOST_SAMPLES:
            raise BadMessage(f"attempt {attempt!r}, {table.num_rows} samples")
    except (BadMessage, Incomplete, RunError, pa.ArrowException, ValueError, OSError, AttributeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RunError(f"{path}: cannot be read ({said}). The file is left as it is and not used.") from None
    return list(samples_of(table, attempt, name))


class LandscapeFiles:
    """The files of a run's folder ``landscape``, each read again when it has been replaced."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._folder = run_dir / fmt.LANDSCAPE_DIR
        self._seen: tuple[int, int] | None = None
        self._read: dict[str, tuple[tuple[int, int, int], list[LandscapeSample]]] = {}

    @property
    def samples(self) -> Iterator[LandscapeSample]:
        """By file name."""
        for _, samples in self._read.values():
            yield from samples

    def refresh(self, complain: Callable[[str], None]) -> bool:
        """Look whether files were added, replaced or deleted; True if so."""
        try:
            now = self._folder.lstat()
        except OSError:
            changed, self._read = bool(self._read), {}
            return changed
        if self._seen == (now.st_mtime_ns, now.st_ino):
            return False
        self._seen = (now.st_mtime_ns, now.st_ino) if abs(time.time() - now.st_mtime) > SETTLED_S else None
        if not fmt.is_real_folder(self._run_dir, self._folder):
            complain(f"{self._folder}: a symbolic link, which is not followed.")
            self._seen = (now.st_mtime_ns, now.st_ino)
            return False
        return self._read_new(complain)

    def _read_new(self, complain: Callable[[str], None]) -> bool:
        names = sorted(path.stem for path in self._folder.glob("*.arrows") if _NAME.fullmatch(path.stem))
        if len(names) > MOST_FILES:
            complain(f"{self._folder}: more than {MOST_FILES} files; the first ones are read.")
        before, read, size = self._read, {}, 0
        for name in names[:MOST_FILES]:
            try:
                state = landscape_file(self._run_dir, name).lstat()
                size += state.st_size
                if size > MOST_BYTES_IN_ALL:
                    complain(
                        f"{self._folder}: more than {MOST_BYTES_IN_ALL} bytes; what comes after {name} is not read."
                    )
                    break
                key = (state.st_mtime_ns, state.st_size, state.st_ino)
                known = before.get(name)
                read[name] = known if known and known[0] == key else (key, read_landscape(self._run_dir, name))
            except OSError:
                continue  # deleted in this moment
            except RunError as error:
                read[name] = (key, [])
                complain(str(error))
        self._read = read
        return {name: key for name, (key, _) in before.items()} != {name: key for name, (key, _) in read.items()}
