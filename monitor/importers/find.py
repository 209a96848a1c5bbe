"""What a file is, by its content; and which logs lie in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from monitor.errors import RunError
from monitor.importers import mlflow, trackio_db, wandb_file
from monitor.importers.families import Member, families, read_family
from monitor.importers.json_files import holds_columns, python_object, read_json_lines, read_records, read_trainer_state
from monitor.importers.lines import encoding_of
from monitor.importers.notebook import notebook_cells, read_cell
from monitor.importers.rows import Account, Row, Source, number_of
from monitor.importers.tables import delimiter_of, exported_runs, read_numbers, read_run, read_table
from monitor.importers.tensorboard import is_events
from monitor.importers.text import read_log
from monitor.runfile import format as fmt

ACCEPTED = (
    "TensorBoard event files, Hugging Face trainer_state.json, CSV, JSON lines, W&B .wandb files, Trackio databases, "
    "MLflow run folders, notebooks, and text logs with lines such as 'step 10: loss 2.3'"
)
_ALONE = re.compile(r"loss", re.I)
"""In the name of a file of numbers without names."""
LEAST_NUMBERS = 3
HEAD_BYTES = 1 << 16
_PACKED = {
    b"\x1f\x8b": "a gzip file", b"PK\x03\x04": "a zip file (or a checkpoint)", b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file", b"\x28\xb5\x2f\xfd": "a zstd file",
}  # fmt: skip
_NO_LOGS = (
    (
        "version https://git-lfs",
        "a Git LFS pointer, not the file itself. Fetch it with 'git lfs pull', then try again.",
    ),
    ("<!doctype html", "a web page, not a log. Download the raw file, then try again."),
    ("<html", "a web page, not a log. Download the raw file, then try again."),
)
"""How a text begins that stands for a log and is none, and what to do."""
MOST_ZEROS = 10
"""One character in so many of a text may be a zero byte: a crash leaves them where a block was not written."""
MOST_FILES = 10_000
MOST_FOLDERS_DEEP = 8
_LOGS = frozenset((
    ".log", ".txt", ".out", ".err", ".stdout", ".stderr", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".db",
    ".sqlite", ".wandb", ".parquet", ".ipynb",
))  # fmt: skip
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_WRITTEN = re.compile(r"tfevents\.(\d+)")
_SKIPPED = frozenset(("package.json", "requirements.txt", "readme.txt", "license.txt", "vocab.txt", "merges.txt"))


def find_sources(path: str | os.PathLike[str]) -> list[Source]:
    """The training logs in a file or, by folders and names, in a folder; links are not followed.

    Raises:
        RunError: nothing is there, or nothing that is a log; the message says what would be.
    """
    place = Path(path)
    if place.is_dir():
        found = _folder(place)
        if not found:
            raise RunError(f"{place}: no training log in this folder. Accepted: {ACCEPTED}.")
        return found
    try:
        return _file(place, whole=True)
    except FileNotFoundError:
        raise RunError(f"{place}: no such file or folder.") from None


def _folder(folder: Path) -> list[Source]:
    """Event files make one source per folder; of the checkpoints of one training only the last state counts."""
    sources: list[Source] = []
    events: dict[Path, list[Path]] = {}
    states: dict[Path, list[Path]] = {}
    count = 0
    for place, folders, files in os.walk(folder):
        if len(Path(place).relative_to(folder).parts) >= MOST_FOLDERS_DEEP:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if fmt.RUN_FILE in files and fmt.ATTEMPTS_DIR in folders:
            folders.clear()  # a run directory of ours is read as such
            continue
        if mlflow.META in files and mlflow.METRICS in folders and (metrics := mlflow.metric_files(Path(place))):
            folders.remove(mlflow.METRICS)
            read = partial(mlflow.read_run, Path(place), metrics)
            name = _name(Path(place))
            sources.append(Source("MLflow", Path(place), name, read, partial(_fingerprint, metrics[0])))
        for name in sorted(files):
            file = Path(place) / name
            count += 1
            if count > MOST_FILES:
                raise RunError(f"{folder}: more than {MOST_FILES:,} files. Name a folder further down.")
            if file.is_symlink() or not file.is_file() or name.startswith(".") or name.lower() in _SKIPPED:
                continue
            if "tfevents" in name and is_events(_head(file)):
                events.setdefault(file.parent, []).append(file)
            elif name == "trainer_state.json":
                inside = _CHECKPOINT.fullmatch(file.parent.name)
                states.setdefault(file.parent.parent if inside else file.parent, []).append(file)
            elif file.suffix.lower() in _LOGS:
                sources += _file(file, whole=False)
    ordered = {place: _in_order(files) for place, files in events.items()}
    sources += [_events(place, members) for place, members in families(ordered).items()]
    sources += [_state(max(files, key=_checkpoint)) for files in states.values()]
    return sorted(sources, key=lambda source: (str(source.path), source.inner))


def _checkpoint(file: Path) -> tuple[bool, int]:
    match = _CHECKPOINT.fullmatch(file.parent.name)
    return match is None, int(match[1]) if match and len(match[1]) < 18 else 0


def _file(path: Path, whole: bool) -> list[Source]:
    """The sources in one file.

    Args:
        whole: the user named this very file, so that one that is no log is an error; else it is [].
    """
    head = _head(path)
    if head.startswith(trackio_db.MAGIC):
        return _runs(path, "Trackio", _known(trackio_db.database_runs, path, whole), trackio_db.read_database, whole)
    if head.startswith(trackio_db.PARQUET_MAGIC):
        return _runs(path, "parquet", _known(trackio_db.parquet_runs, path, whole), trackio_db.read_parquet, whole)
    if path.suffix.lower() == ".ipynb":
        return _runs(path, "notebook", _known(notebook_cells, path, whole), read_cell, whole=False)
    if head.startswith(wandb_file.MAGIC):
        return [_source("W&B", path, partial(wandb_file.read_wandb, path))]
    if is_events(head):
        return [_events(path, [([path], str)])]
    if packed := next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), None):
        if whole:
            raise RunError(f"{path}: {packed}. Unpack it, then import the log or the folder in it.")
        return []
    text = head.decode(encoding_of(head), "replace").lstrip("\ufeff")
    if text.count("\x00") > len(text) // MOST_ZEROS:
        if whole:
            raise RunError(f"{path}: a binary file of an unknown kind. Accepted: {ACCEPTED}.")
        return []
    if not text.strip():
        if whole:
            raise RunError(f"{path}: an empty file. Accepted: {ACCEPTED}.")
        return []
    if refusal := next((words for start, words in _NO_LOGS if text[:64].lstrip().lower().startswith(start)), None):
        if whole:
            raise RunError(f"{path}: {refusal}")
        return []
    return _text(path, text)


def _known(runs: Callable[[Path], list[tuple[str, str]]], path: Path, whole: bool) -> list[tuple[str, str]]:
    """The runs in a file; of one that cannot be read [] unless the user named it."""
    try:
        return runs(path)
    except RunError:
        if whole:
            raise
        return []


def _text(path: Path, head: str) -> list[Source]:
    start = head.lstrip()
    lines = [line for line in start[:HEAD_BYTES].splitlines() if line.strip()]
    if start.startswith("{") and (path.name == "trainer_state.json" or '"log_history"' in head):
        return [_state(path)]
    if (
        _ALONE.search(path.stem)
        and len(lines) >= LEAST_NUMBERS
        and all(number_of(line) is not None for line in lines[:-1])
    ):
        name = "val_loss" if re.search(r"val|test|eval", path.stem, re.I) else "loss"
        return [_source("numbers", path, partial(read_numbers, path, name))]
    first = _object(lines[0]) if start.startswith("{") else None
    if first and not (len(lines) == 1 and holds_columns(first)):
        return [_source("JSON lines", path, partial(read_json_lines, path))]
    if start.startswith("{'") and holds_columns(python_object(head)):
        return [_source("JSON", path, partial(read_records, path))]
    if first or start.startswith("[{") or (start.startswith(("{", "[")) and path.suffix.lower() == ".json"):
        return [_source("JSON", path, partial(read_records, path))]
    delimiter = delimiter_of(lines[:4]) if len(lines) > 1 else None
    aligned = len(lines) > 1 and len(lines[0].split()) == len(lines[1].split()) > 1 and "," not in lines[0]
    if delimiter is None and path.suffix.lower() in (".csv", ".tsv") and not aligned:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    if delimiter is not None:
        if runs := exported_runs(lines[0], delimiter):
            read = partial(read_run, delimiter=delimiter)
            return _runs(path, "W&B export", [(run, run if len(runs) > 1 else "") for run in runs], read, whole=False)
        return [_source("CSV", path, partial(read_table, path, delimiter))]
    return [_source("text log", path, partial(read_log, path))]


def _object(line: str) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _state(path: Path) -> Source:
    return _source("Hugging Face trainer_state.json", path, partial(read_trainer_state, path))


def _events(place: Path, members: list[Member]) -> Source:
    """Event files of one folder and of those that belong to it."""
    read = partial(read_family, members)
    return Source("TensorBoard", place, _name(place), read, partial(_fingerprint, members[0][0][0]), resumes=True)


def _in_order(files: list[Path]) -> list[Path]:
    """By the second that they were begun in."""
    return sorted(files, key=lambda file: (_begun(file), file.name))


def _begun(file: Path) -> int:
    match = _WRITTEN.search(file.name)
    return int(match[1]) if match and len(match[1]) < 18 else 0


def _runs(
    path: Path, kind: str, runs: list[tuple[str, str]], read: Callable[[Path, str, Account], Iterator[Row]], whole: bool
) -> list[Source]:
    if not runs and whole:
        raise RunError(f"{path}: a database without a table of metrics as Trackio makes it. Accepted: {ACCEPTED}.")

    def same(key: str, _size: int | None) -> tuple[int, str]:
        return 0, key  # pages change as it grows; its run does not

    return [
        Source(
            kind,
            path,
            f"{path.stem}-{name}" if name else _name(path),
            partial(read, path, key),
            partial(same, key),
            key,
        )
        for key, name in runs
    ]


def _source(kind: str, path: Path, read: Callable[[Account], Iterator[Row]]) -> Source:
    return Source(kind, path, _name(path), read, partial(_fingerprint, path))


def _name(path: Path) -> str:
    """``folder-file``: many logs are called train.log."""
    path = path.absolute()
    stem = path.stem if path.suffix.lower() in _LOGS else path.name
    return "-".join(part for part in (path.parent.name, stem) if part)


def _head(path: Path) -> bytes:
    """The beginning of a file.

    Raises:
        RunError: a link, no regular file, or no permission.
    """
    with os.fdopen(fmt.open_inside(path), "rb") as file:
        return file.read(HEAD_BYTES)


def _fingerprint(path: Path, size: int | None) -> tuple[int, str]:
    """How many bytes the file begins with (at most 64 KiB, or ``size``), and their hash."""
    head = _head(path)
    head = head if size is None else head[:size]
    return len(head), hashlib.sha256(head).hexdigest()[:32]
