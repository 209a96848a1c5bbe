"""The list of a large folder of runs, from an index that is only ever an aid.

``<runs>/.index.jsonl`` keeps, for runs that rest, the documents that a list needs, beside the stamps (change time,
size, inode) of every file and folder they were read from. A run whose stamps are all as they were is taken from there;
every other one is read from its directory, as is every run that goes on. So the rows are those that
:func:`store.list_runs` gives, whatever the index holds, and a run's state is computed each time: the index has what it
is computed from.
"""

from __future__ import annotations

import gc
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.records import AttemptRecords, RunDocuments, RunSummary
from monitor.runfile.store import (
    FolderContents,
    created_of,
    folder_contents,
    latest_records,
    newest_first,
    read_documents,
    summarise,
    summary_of,
)

INDEX_FILE = ".index.jsonl"
INDEX_VERSION = 1
"""An index of another version is not read."""
WRITE_AT = 64
"""Runs at rest that an index must lack before it is written: fewer are read in no time. A larger folder waits for a
hundredth of its runs. Our judgement."""
REST_S = 2.0
"""A file changed less than this before it was read may change again within the same tick of the file system's clock
(FAT's is two seconds), unseen; such a run is not taken from an index."""
MAX_LINE_BYTES = 64 << 10
"""A run that needs more is read from its directory each time."""
MAX_INDEX_BYTES = 256 << 20
MAX_BAD_LINES = 100
"""The rest of an index with more than these is not read."""
LEFT_BEHIND_S = 3600.0
"""A temporary file of this age belongs to nobody any more."""
TURNS = 4
"""Records that are written once, of runs that have an exit record, are checked at the first list and then at every
so-manieth: only a hand changes them."""

Stamp = tuple[str, int, int, int]
"""Place relative to the run directory ("" or with a slash in front), ctime_ns, size, inode. The change time tells more
than the time of modification: no program can set it back."""


@dataclass(frozen=True, slots=True)
class RunList:
    """The runs of one folder."""

    rows: list[RunSummary]
    """Newest first."""
    notes: list[str]
    """What is to be said about the folder beside them."""


@dataclass(slots=True)
class _Entry:
    """A run at rest."""

    moving: tuple[Stamp, ...]
    """What a program may still change: checked at every list."""
    still: tuple[Stamp, ...]
    """What only a hand changes: checked in turn."""
    line: bytes
    """As in the file: checksum, documents, tab, configuration."""
    summary: RunSummary | None
    """The row itself, when an exit record makes it the same at any time."""
    turn: int | None
    """When ``still`` is checked; None for at once."""


class RunIndex:
    """The runs of one folder; ask again for how they stand now. One thread at a time."""

    def __init__(
        self,
        runs_dir: str | os.PathLike[str] | None = None,
        *,
        write_at: int = WRITE_AT,
        clock: Callable[[], float] = time.time,
    ):
        self.folder = fmt.runs_folder(runs_dir)
        self._write_at, self._clock = write_at, clock
        self._entries: dict[str, _Entry] = {}
        self._loaded = False
        self._lists = 0
        self._given = 0
        self._unsaved = 0
        """Entries that came, changed or went since the file was read or written."""
        self._trouble: str | None = None
        """Why the index cannot be written; not tried again."""

    def read(self, now: float | None = None) -> RunList:
        """The rows of :func:`store.list_runs`, and what is to be said about the folder."""
        moment = self._clock() if now is None else now
        contents = folder_contents(self.folder)
        if not self._loaded:
            self._loaded = True
            with _without_collector():
                self._load(contents)
        self._lists += 1
        known, base, turn = self._entries, str(self.folder) + os.sep, self._lists % TURNS
        rows = list(contents.refused)
        for name in contents.names:
            entry, row = known.get(name), None
            if entry is not None and _unchanged(base + name, entry.moving):
                due = entry.turn is None or entry.turn == turn
                if not due or _unchanged(base + name, entry.still):
                    entry.turn = self._next_turn() if entry.turn is None else entry.turn
                    row = entry.summary or self._computed(name, entry, moment)
            rows.append(row if row is not None else self._from_directory(name, moment))
        for name in known.keys() - set(contents.names):
            del known[name]
            self._unsaved += 1
        if self._unsaved >= max(self._write_at, len(contents.names) // 100):
            self._write()
        notes = [*contents.notes, *([self._trouble] if self._trouble else [])]
        return RunList(newest_first(rows), notes)

    def _next_turn(self) -> int:
        """Turns in rotation, so that each list checks a like share."""
        self._given += 1
        return self._given % TURNS

    def config_of(self, summary: RunSummary) -> Mapping[str, Any]:
        """The configuration of a listed run, flat: ``{"optimizer.lr": 0.001}``; {} without one."""
        entry = self._entries.get(summary.path.name)
        if entry is not None and summary.path.parent == self.folder:
            try:
                config = json.loads(entry.line.partition(b"\t")[2])
            except (ValueError, RecursionError):
                config = None
            if isinstance(config, dict):
                return config
        return config_of(summary)

    def _from_directory(self, name: str, now: float) -> RunSummary:
        """The row as the directory has it; kept when the run rests."""
        path, began = self.folder / name, self._clock()
        stamps: list[Stamp] = []
        try:
            documents = read_documents(path, _stamping(str(path), stamps))
        except RunError:
            self._forget(name)
            return summarise(path, now)
        summary = summary_of(path, documents, now)
        newest = max((changed for _, changed, _, _ in stamps), default=0)
        line = None
        if documents.problem is None and summary.state.ended and newest < (began - REST_S) * 1e9:
            line = _line(name, stamps, documents)
        if line is None:
            self._forget(name)
        else:
            self._entries[name] = _entry(stamps, line, documents, summary, self._next_turn())
            self._unsaved += 1
        return summary

    def _forget(self, name: str) -> None:
        if self._entries.pop(name, None) is not None:
            self._unsaved += 1

    def _computed(self, name: str, entry: _Entry, now: float) -> RunSummary | None:
        """The row of a run whose state depends on when and where one asks; None when the run may go on after all."""
        _, _, documents = _parsed(entry.line)
        summary = summary_of(self.folder / name, documents, now)
        return summary if summary.state.ended else None

    # The file ---------------------------------------------------------------------------------------------------------

    def _load(self, contents: FolderContents) -> None:
        """Take over what the file says of runs that are there. A file that cannot be used is as none."""
        limit = min(MAX_INDEX_BYTES, (1 << 20) + len(contents.names) * MAX_LINE_BYTES)
        try:
            data = fmt.read_file(self.folder / INDEX_FILE, limit)
        except (FileNotFoundError, RunError):
            return
        end = data.find(b"\n")
        if data[: max(end, 0)] != _header():
            return
        there, bad = set(contents.names), 0
        places: dict[str, str] = {}  # the same few texts for all runs
        for _ in range(2 * len(there) + MAX_BAD_LINES):
            start, end = end + 1, data.find(b"\n", end + 1)
            if end < 0:
                return  # the end, or cut short
            try:
                name, stamps, documents = _parsed(data[start:end])
                if name in there:
                    summary = summary_of(self.folder / name, documents, 0.0) if _is_final(documents) else None
                    stamps = [
                        (places.setdefault(place, place), when, size, inode) for place, when, size, inode in stamps
                    ]
                    self._entries[name] = _entry(stamps, data[start:end], documents, summary, None)
            except (ValueError, TypeError, RecursionError):
                bad += 1
                if bad > MAX_BAD_LINES:
                    return

    def _write(self) -> None:
        if self._trouble is not None:
            return
        pieces, size = [_header()], 0
        for name in sorted(self._entries, reverse=True):  # the newest, when there are too many
            size += len(self._entries[name].line) + 1
            if size > MAX_INDEX_BYTES - (1 << 20):
                break
            pieces.append(self._entries[name].line)
        try:
            _replace(self.folder / INDEX_FILE, b"\n".join(pieces) + b"\n")
            self._unsaved = 0
        except OSError as error:
            self._trouble = (
                f"{self.folder / INDEX_FILE} cannot be written ({error.strerror}): every list of these runs reads all "
                "of their directories. Nothing else is lost."
            )


def config_of(summary: RunSummary) -> Mapping[str, Any]:
    """The configuration of a run from its directory, flat: ``{"optimizer.lr": 0.001}``; {} without one."""
    try:
        config = fmt.load_json(summary.path / fmt.RUN_FILE).get("config")
    except RunError:
        return {}
    return flat(config) if isinstance(config, dict) else {}


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested objects as dotted keys; lists and empty objects are values."""
    found: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping) and value:
            inner = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
            waiting += reversed(inner)
        elif path:
            found[path] = value
    return found


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the garbage collector from looking again and again at objects that stay: a third of a load's time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# Stamps ------------------------------------------------------------------------------------------------------------


def _stamping(base: str, stamps: list[Stamp]) -> Callable[[str], bool]:
    """A function that adds the stamp of a place under ``base``, if there is such a place."""

    def stamp(place: str) -> bool:
        try:
            status = os.lstat(base + place)
        except OSError:
            return False
        stamps.append((place, status.st_ctime_ns, status.st_size, status.st_ino))
        return True

    return stamp


def _unchanged(base: str, stamps: Sequence[Stamp]) -> bool:
    lstat = os.lstat
    try:
        for place, changed, size, inode in stamps:
            status = lstat(base + place)
            if status.st_ctime_ns != changed or status.st_size != size or status.st_ino != inode:
                return False
    except (OSError, ValueError):
        return False
    return True


def _entry(
    stamps: Sequence[Stamp], line: bytes, documents: RunDocuments, summary: RunSummary | None, turn: int | None
) -> _Entry:
    if not _is_final(documents):
        return _Entry(tuple(stamps), (), line, None, turn)
    latest = documents.attempts[-1]
    # Without an exit record one may still come; without its last word the writer may still write its heartbeat.
    settled = latest.exit is not None and (latest.heartbeat or {}).get("state") == "closing"
    moving = tuple(stamp for stamp in stamps if not settled or stamp[0] in _MOVING)
    return _Entry(moving, tuple(stamp for stamp in stamps if stamp not in moving), line, summary, turn)


_MOVING = ("", f"/{fmt.META_FILE}", f"/{fmt.ATTEMPTS_DIR}")
"""A person edits the name and the tags; a resume adds an attempt; another run of this id may take its place."""


# Lines -------------------------------------------------------------------------------------------------------------


def _header() -> bytes:
    return json.dumps({"gradiometer_index": INDEX_VERSION, "format_major": fmt.FORMAT_MAJOR}).encode()


def _line(name: str, stamps: Sequence[Stamp], documents: RunDocuments) -> bytes | None:
    """The line of one run; None when it would be too long. JSON has no raw tab or newline in it."""
    try:
        content = json.dumps([name, stamps, _plain(documents)], separators=(",", ":"))
        config = json.dumps(flat(documents.config or {}), separators=(",", ":"))
    except (ValueError, RecursionError):
        return None
    if len(content) + len(config) > MAX_LINE_BYTES - 16:
        return None
    body = f"{content}\t{config}".encode()
    return b"%08x " % zlib.crc32(body) + body


def _parsed(line: bytes) -> tuple[str, list[Stamp], RunDocuments]:
    """Name, stamps and documents in one line.

    Raises:
        ValueError, TypeError, RecursionError: it is not as :func:`_line` writes it. What the documents hold is checked
            where it is used, as it is for those that come from the directories.
    """
    if len(line) > MAX_LINE_BYTES or int(line[:8], 16) != zlib.crc32(memoryview(line)[9:]):
        raise ValueError("a line of an index is damaged")
    name, stamps, (run, meta, attempts) = json.loads(line[9 : line.index(b"\t")])
    places = [place for place, _, _, _ in stamps]
    if type(name) is not str or places[:2] != ["", f"/{fmt.RUN_FILE}"]:
        raise ValueError("a line of an index lacks something")
    for place in places[1:]:
        if type(place) is not str or place[:1] != "/" or ".." in place:
            raise ValueError("a line of an index leads elsewhere")
    for record in (run, meta, *(record for records in attempts for record in records if record is not None)):
        if type(record) is not dict:
            raise TypeError("a line of an index has no object where one belongs")
    created = created_of(run)
    records = tuple(AttemptRecords(one, two, three, four, five, created) for one, two, three, four, five in attempts)
    return name, stamps, RunDocuments(run, meta, records, None, None)


def _plain(documents: RunDocuments) -> list[Any]:
    attempts = [
        [records.attempt, records.heartbeat, records.exit, records.supervisor, records.supervisor_exit]
        for records in documents.attempts
    ]
    return [documents.run, documents.meta, attempts]


def _is_final(documents: RunDocuments) -> bool:
    """Whether the state is the same whenever and wherever one asks."""
    latest = latest_records(documents.attempts, None)
    return latest.exit is not None or latest.supervisor_exit is not None


def _replace(path: Path, data: bytes) -> None:
    """Replace ``path`` whole, and take away what writers that died have left beside it."""
    for old in path.parent.glob(f"{INDEX_FILE}.*.tmp"):
        try:
            if time.time() - old.lstat().st_mtime > LEFT_BEHIND_S:
                old.unlink()
        except OSError:
            continue
    fmt.atomic_write(path, data)
