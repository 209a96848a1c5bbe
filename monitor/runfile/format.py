"""The run directory on disk: names, schemas, version, and how its small files are read and written.

FORMAT.md is the specification in prose.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import stat
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from monitor.errors import RunError

FORMAT_MAJOR = 1
"""A reader refuses a larger one."""
FORMAT_MINOR = 0
"""A reader accepts any; a larger one only adds."""

RUN_FILE = "run.json"
META_FILE = "meta.json"
ATTEMPT_FILE = "attempt.json"
EXIT_FILE = "exit.json"
SUPERVISOR_FILE = "supervisor.json"
SUPERVISOR_EXIT_FILE = "supervisor_exit.json"
HEARTBEAT_FILE = "heartbeat.json"
LOG_FILE = "log.txt"
COMMIT_FILE = "COMMIT.json"
ATTEMPTS_DIR = "attempts"
CHECKPOINTS_DIR = "checkpoints"
AFTERWARDS_DIR = "afterwards"
LANDSCAPE_DIR = "landscape"
SEAL_SUFFIX = ".seal"

DENSE_STREAMS = {"layers": "dense", "modules": "dense_modules"}
"""Thinned stream -> the stream with rows that were left out of it, round incidents."""
STREAMS = ("scalars", "layers", "modules", "system", "landscape", *DENSE_STREAMS.values())
"""Streams kept as Arrow IPC; ``events`` is kept as JSON lines."""
MATRIX_STREAMS = (*DENSE_STREAMS, *DENSE_STREAMS.values())
"""Those with a column per statistic and a list entry per layer or module."""
LATER_LANDSCAPE = ("coords_y", "detail")
"""Columns of landscape that the first runs of this version are without."""
EXTREMES = ("min", "max", "nan", "posinf", "neginf")
"""``<statistic>.<one of these>`` tells of the steps that were left out before a row, and of the row itself."""
OUTCOMES = ("finished", "stopped", "crashed")

METADATA_KEY = b"gradiometer"
"""Key of the JSON in a segment's schema metadata."""

MAX_JSON_BYTES = 16 << 20
MAX_EVENT_BYTES = 1 << 20
MAX_DEPTH = 100
"""Levels of a value that is written as JSON, where it is not plain JSON already."""
MAX_SEGMENT_BYTES = 2 << 30
"""A reader refuses a larger one. Writers begin the next segment at a hundredth of it."""
MAX_STEP = 1 << 53
"""Steps are below it: a float64 tells them all apart, and nothing that is added to one overflows."""
MAX_COLUMNS = 4096
MAX_LAYERS = 100_000
MAX_MESSAGE_METADATA = 64 << 20
MAX_MESSAGE_BODY = 1 << 30
MAX_LANDSCAPE_POINTS = 1 << 20
"""Of one sample; a plane of 1024 x 1024."""
MAX_DETAIL_BYTES = 256 << 10
"""Of what is told of one landscape sample in JSON."""

_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LINE_SUM = re.compile(rb', "crc32": "(.{8})"\}\Z', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL)
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


# Names -------------------------------------------------------------------------------------------------------------


def new_run_id(name: str | None = None, now: float | None = None) -> str:
    """A fresh run id that sorts by creation: ``20261122-103000-<name>-<4 hex>``, local time."""
    moment = time.strftime("%Y%m%d-%H%M%S", time.localtime(time.time() if now is None else now))
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", name or "run").strip("-.")[:64] or "run"
    return f"{moment}-{words}-{secrets.token_hex(2)}"


def check_run_id(text: str) -> str:
    """``text`` itself when it may name a run.

    Raises:
        RunError: anything that is not ``[A-Za-z0-9._-]{1,128}``, or that begins with a dot (hidden, ``.``, ``..``).
    """
    if isinstance(text, str) and _RUN_ID.fullmatch(text) and not text.startswith("."):
        return text
    raise RunError(
        f"run id {text!r} cannot name a directory. Accepted: up to 128 of A-Z a-z 0-9 . _ - and no dot in front. "
        "Choose another name or leave it out."
    )


def attempt_dir(run_dir: Path, attempt: int) -> Path:
    """The folder of one attempt."""
    return Path(run_dir) / ATTEMPTS_DIR / f"{attempt:04d}"


def rank_dir(run_dir: Path, attempt: int, rank: int = 0) -> Path:
    """The folder that one rank of one attempt writes; nobody else writes there."""
    return attempt_dir(run_dir, attempt) / f"rank-{rank:05d}"


def segment_name(stream: str, index: int) -> str:
    """``scalars-000000.arrows``; ``events-000000.jsonl``."""
    return f"{stream}-{index:06d}.{'jsonl' if stream == 'events' else 'arrows'}"


def runs_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Where runs are kept: the argument, else the environment variable GRADIOMETER_RUNS, else ``./runs``."""
    return Path(folder or os.environ.get("GRADIOMETER_RUNS") or "runs")


# Schemas -----------------------------------------------------------------------------------------------------------


def _metadata(kind: str, **more: Any) -> dict[bytes, bytes]:
    record = {"kind": kind, "format": {"major": FORMAT_MAJOR, "minor": FORMAT_MINOR}, **more}
    return {METADATA_KEY: json.dumps(record).encode()}


_STEP = pa.field("step", pa.int64(), nullable=False)
_TIME = pa.field("time", pa.float64(), nullable=False)


def scalars_schema(names: Sequence[str]) -> pa.Schema:
    """``step`` int64, ``time`` float64 (unix seconds), one nullable float64 column per name."""
    columns = [pa.field(name, pa.float64()) for name in names]
    return pa.schema([_STEP, _TIME, *columns], metadata=_metadata("scalars"))


def system_schema(names: Sequence[str]) -> pa.Schema:
    """``time`` float64 (unix seconds), one nullable float64 column per name."""
    return pa.schema([_TIME, *(pa.field(name, pa.float64()) for name in names)], metadata=_metadata("system"))


def base_stat(name: str) -> str:
    """The statistic that a column of a matrix stream is about: ``grad_norm.max`` is about ``grad_norm``."""
    stat, dot, kind = name.rpartition(".")
    return stat if dot and stat and kind in EXTREMES else name


def layers_schema(stats: Sequence[str], layers: Sequence[Mapping[str, Any]], kind: str = "layers") -> pa.Schema:
    """``step``, ``time``, one nullable ``list<float32>`` per statistic; the L layers go to the metadata.

    A list that is there has L elements; one that is null has none. ``kind`` is ``layers`` (parameter tensors),
    ``modules`` (outputs of modules), or the dense stream of one of them.
    """
    columns = [pa.field(stat, pa.list_(pa.float32())) for stat in stats]
    return pa.schema([_STEP, _TIME, *columns], metadata=_metadata(kind, layers=list(layers)))


def landscape_schema(**more: Any) -> pa.Schema:
    """One row per sample of the loss landscape: ``loss[i]`` at ``coords[i]``, or ``(coords[i], coords_y[i])``.

    ``coords_y`` is empty where there is one coordinate only; ``detail`` is a JSON object. Both may be missing.
    """
    return pa.schema(
        [
            _STEP,
            _TIME,
            pa.field("kind", pa.string()),
            pa.field("direction", pa.string()),
            pa.field("radius", pa.float64()),
            pa.field("coords", pa.list_(pa.float64())),
            pa.field("loss", pa.list_(pa.float64())),
            pa.field("baseline", pa.float64()),
            pa.field("coords_y", pa.list_(pa.float64())),
            pa.field("detail", pa.string()),
        ],
        metadata=_metadata("landscape", **more),
    )


# JSON --------------------------------------------------------------------------------------------------------------


def dump_json(value: Any) -> str:
    """``value`` as one line of strict JSON; non-finite numbers become the strings NaN, Infinity, -Infinity.

    What JSON does not know (paths, numpy scalars, sets) is written as the nearest thing it knows, at worst ``str()``.
    What holds itself, or is nested very deeply, is cut off at a depth of 100.
    """
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False)


def _plain(value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else spell_number(value)
    if depth >= MAX_DEPTH:
        return f"... {type(value).__name__} nested more than {MAX_DEPTH} deep"
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth + 1) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy for it
        return _plain(value.tolist(), depth + 1)
    return str(value)


def spell_number(value: float) -> float | str:
    """A float as JSON may hold it: itself, or the string for a non-finite one."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def as_number(value: Any) -> float | None:
    """The float that a JSON value spells (see :func:`spell_number`); None for anything that is not a number."""
    if isinstance(value, str):
        return _NON_FINITE.get(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return None


def event_line(record: Mapping[str, Any]) -> bytes:
    """One line of an events file; its last key holds the CRC-32 of the line's bytes before that key."""
    text = dump_json({key: value for key, value in record.items() if key != "crc32"}).encode("utf-8", "replace")[:-1]
    return b'%s, "crc32": "%08x"}\n' % (text, zlib.crc32(text))


def check_line(line: bytes) -> bytes:
    """The event in ``line`` as JSON without its checksum. A line that has none is taken as it is.

    Raises:
        RunError: the checksum differs.
    """
    match = _LINE_SUM.search(line)
    if match is None:
        return line
    text = line[: match.start()]
    if b"%08x" % zlib.crc32(text) != match[1]:
        raise RunError("an event is damaged (crc32 differs); left out")
    return text + b"}"


def parse_json(text: bytes, source: str) -> Any:
    """Parse strict JSON.

    Raises:
        RunError: not UTF-8, not JSON, nested too deeply, or an integer of thousands of digits; the message names
            ``source``.
    """
    try:
        value = json.loads(text.decode("utf-8"))
        return _without_lone_surrogates(value) if _SURROGATE.search(text) else value
    except (ValueError, RecursionError) as error:
        raise RunError(f"{source}: not JSON ({error}). The file is left as it is and not used.") from None


def _without_lone_surrogates(value: Any) -> Any:
    """``value`` with ``?`` for what JSON can escape but no UTF-8 can hold, and no page or file could show."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes; never through a symbolic link, never from a pipe.

    Raises:
        FileNotFoundError: there is none.
        RunError: a link, not a regular file, too large, or unreadable; the message names the file.
    """
    fd = open_inside(path)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise RunError(f"{path}: {size} bytes; at most {limit} are read. The file is not used.")
        pieces: list[bytes] = []
        while size > 0 and (piece := os.read(fd, min(size, 1 << 20))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}).") from None
    finally:
        os.close(fd)


def open_inside(path: Path) -> int:
    """A read-only descriptor of the regular file ``path``; its last part is not followed when it is a link.

    Raises:
        FileNotFoundError: there is none.
        RunError: a symbolic link, a pipe, a device, a folder, or no permission.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        what = "a symbolic link, which is not followed" if path.is_symlink() else str(error.strerror)
        raise RunError(f"{path}: cannot be opened: {what}.") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RunError(f"{path}: not a regular file; it is not read.")
    return fd


def is_real_folder(run_dir: Path, folder: Path) -> bool:
    """Whether ``folder`` is a folder under ``run_dir`` without a symbolic link on the way from there."""
    try:
        parts = folder.relative_to(run_dir).parts
        place = run_dir
        for part in parts:
            place = place / part
            if part == ".." or not stat.S_ISDIR(os.lstat(place).st_mode):
                return False
    except (OSError, ValueError):
        return False
    return True


def load_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        RunError: missing, too large, a link, not JSON, or not an object; the message names the file.
    """
    try:
        value = parse_json(read_file(path, limit), str(path))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file.") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: a JSON object is expected, found {type(value).__name__}. The file is not used.")
    return value


def atomic_write_json(path: Path, value: Any) -> None:
    """Replace ``path`` whole: a reader sees the old content or the new, never a half."""
    atomic_write(path, (dump_json(value) + "\n").encode())


def atomic_write(path: Path, data: bytes) -> None:
    """As :func:`atomic_write_json`, of bytes.

    Raises:
        OSError: it cannot be written; ``path`` is as it was.
    """
    temporary = _write_temporary(path, data)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink()
        raise


def exclusive_write_json(path: Path, value: Any) -> None:
    """Create ``path`` whole, or not at all when it exists already.

    Raises:
        FileExistsError: somebody else was first.
    """
    temporary = _write_temporary(path, (dump_json(value) + "\n").encode())
    try:
        os.link(temporary, path)  # unlike rename, link refuses an existing target
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _write_exclusively(path, value)
    finally:
        temporary.unlink()


def _write_exclusively(path: Path, value: Any) -> None:
    """For a file system without hard links: whole or not at all, though a reader may for a moment see a half."""
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(dump_json(value) + "\n")
            file.flush()
        except OSError:
            path.unlink()  # a half would stand for ever
            raise


def _write_temporary(path: Path, data: bytes) -> Path:
    """A new file beside ``path``, to be renamed or linked to it; none is left when it cannot be written."""
    temporary = path.with_name(f".{path.name.removeprefix('.')}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        temporary.unlink()
        raise
    finally:
        os.close(fd)
    return temporary
