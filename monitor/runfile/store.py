"""The folder of runs: list them, and say how each one stands."""

from __future__ import annotations

import functools
import os
import socket
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.identity import boot_id, pid_namespace
from monitor.runfile.records import AttemptRecords as AttemptRecords
from monitor.runfile.records import RunDocuments as RunDocuments
from monitor.runfile.records import RunState as RunState
from monitor.runfile.records import RunSummary as RunSummary

STARTING_S = 300.0
"""An attempt without a heartbeat may take this long to begin (imports, data, compilation). Our judgement."""
REMOTE_FRESH_S = 30.0
"""A heartbeat is written every second; a shared file system may show it this much later (distributed.md section 6)."""
STALE_STEPS = 20.0
"""A step that takes this many times the usual is worth a word. Our judgement."""
STALE_AT_LEAST_S = 120.0
"""... but never before this long."""
SLOW_PHASE_FACTOR = 10.0
"""Evaluations and checkpoints may take this much longer than a step may."""
LOST_S = 3600.0
"""A writer on another host that has said nothing for this long is lost."""
MANY_STRAYS = 100
"""So many files among the runs are worth a word; a README is not. Our judgement."""
MAX_ATTEMPTS = 10_000
"""Further ones, by number from the first on, are not read: a folder of them costs time at every listing."""
YEAR_9999 = 253_370_764_800.0
"""Calendars end there; a time of creation beyond it is none."""


def state_of(records: AttemptRecords, now: float) -> RunState:
    """The state of a run whose latest attempt left ``records``."""
    heartbeat = records.heartbeat
    updated = _number(heartbeat, "time")
    step = _integer(heartbeat, "step")

    def state(word: str, reason: str) -> RunState:
        return RunState(word, reason, updated, step, heartbeat)

    if records.exit is not None:
        updated = _number(records.exit, "time") or updated
        ended_at = _integer(records.exit, "step")
        step = ended_at if ended_at is not None else step
        outcome = records.exit.get("outcome")
        word = outcome if outcome in fmt.OUTCOMES else "lost"
        return state(word, str(records.exit.get("reason") or f"The attempt's exit record says {outcome}."))
    if records.supervisor_exit is not None:
        signal = records.supervisor_exit.get("signal")
        how = f"signal {signal}" if signal else f"exit code {records.supervisor_exit.get('returncode')}"
        if records.supervisor_exit.get("asked"):
            return state("stopped", f"Stopped on request; the process ended with {how}.")
        return state("crashed", f"The training process ended with {how} and left no exit record.")

    writer = heartbeat if _integer(heartbeat, "pid") is not None else records.attempt
    alive = _is_alive(writer, records.attempt)
    if alive is False:
        return state("crashed", f"Process {writer['pid'] if writer else '?'} is gone and left no exit record.")
    began = _number(records.attempt, "created") or _number(records.supervisor, "started") or records.created
    quiet = now - max(updated or 0.0, began or 0.0)
    if heartbeat is None:
        if quiet < STARTING_S:
            return state("starting", "No step has been recorded yet.")
        if alive:
            return state("stale", f"The process is alive but has recorded nothing for {_duration(quiet)}.")
        return state(
            "lost", f"Nothing has been recorded for {_duration(quiet)} and the process cannot be seen from here."
        )
    if alive is None and quiet > REMOTE_FRESH_S:
        where = f"host {records.attempt.get('host')}" if records.attempt else "another host"
        text = f"Last sign of life from {where} {_duration(quiet)} ago."
        return state("lost" if quiet > LOST_S else "stale", text)
    if heartbeat.get("state") == "closing" and quiet > REMOTE_FRESH_S:
        return state("stopped", "The recording was closed without a word on how the training ended.")
    return _progress(state, heartbeat, step, now)


def _progress(state: Any, heartbeat: Mapping[str, Any], step: int | None, now: float) -> RunState:
    if step is None:
        return state("starting", "The first step is not complete yet.")
    usual = _number(heartbeat, "step_time_s") or 0.0
    patience = max(STALE_AT_LEAST_S, STALE_STEPS * usual)
    phase = heartbeat.get("state")
    if phase in ("eval", "checkpoint"):
        patience *= SLOW_PHASE_FACTOR
    heard = _number(heartbeat, "time")
    if phase == "paused" and heard is not None and now - heard <= patience:
        return state("paused", f"Paused after step {step}, on request.")
    waiting = now - (_number(heartbeat, "step_at") or _number(heartbeat, "time") or now)
    if waiting > patience:
        return state("stale", f"Step {step} ended {_duration(waiting)} ago; a step usually takes {usual:.3g} s.")
    return state("running", f"Step {step} ended {_duration(max(0.0, waiting))} ago.")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def _number(record: Mapping[str, Any] | None, key: str) -> float | None:
    return fmt.as_number(record.get(key)) if record else None


def _integer(record: Mapping[str, Any] | None, key: str) -> int | None:
    value = record.get(key) if record else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_alive(writer: Mapping[str, Any] | None, attempt: Mapping[str, Any] | None) -> bool | None:
    """Whether the writing process lives; None when that cannot be seen from here."""
    if writer is None:
        return None
    place = {**(attempt or {}), **writer}
    if place.get("host") != socket.gethostname():
        return None
    boot, namespace = _this_machine()
    if place.get("boot_id") and boot and place["boot_id"] != boot:
        return False  # the machine has been started anew since
    if place.get("pid_namespace") and namespace and place["pid_namespace"] != namespace:
        return None
    return process_is_alive(_integer(writer, "pid"), _number(writer, "pid_create_time"))


@functools.cache
def _this_machine() -> tuple[str | None, str | None]:
    """Boot and pid namespace, which stay the same for a process; a list may ask for thousands of dead runs."""
    return boot_id(), pid_namespace()


def process_is_alive(pid: int | None, create_time: float | None) -> bool | None:
    """Whether process ``pid`` of this host, created at ``create_time``, is running; None without a pid.

    A zombie is not running, and a stranger that got the same pid later is not the process.
    """
    if pid is None or pid <= 0:
        return None
    try:
        process = psutil.Process(pid)
        if create_time is not None and abs(process.create_time() - create_time) > 1.0:
            return False
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OverflowError):
        return None


# From the directory ------------------------------------------------------------------------------------------------


def numbered(folder: Path, prefix: str = "") -> list[int]:
    """Numbers N of the real subfolders ``<prefix>N`` of ``folder``, sorted; links and strange names are left out."""
    found: set[int] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                digits = entry.name[len(prefix) :]
                plain = entry.name.startswith(prefix) and digits.isdecimal() and digits.isascii() and len(digits) <= 8
                if plain and entry.is_dir(follow_symlinks=False):
                    found.add(int(digits))
    except OSError:
        return []
    return sorted(found)


def attempt_numbers(run_dir: Path) -> list[int]:
    """Numbers of the attempts that lie in the run directory itself, sorted; of very many the largest."""
    folder = run_dir / fmt.ATTEMPTS_DIR
    return [] if folder.is_symlink() else numbered(folder)[-MAX_ATTEMPTS:]


def optional_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in ``path``, or None when it is missing or cannot be used."""
    try:
        value = fmt.parse_json(fmt.read_file(path, fmt.MAX_JSON_BYTES), "")
    except (FileNotFoundError, RunError):
        return None
    return value if isinstance(value, dict) else None


def read_records(run_dir: Path, number: int, created: float | None) -> AttemptRecords:
    """The small files of attempt ``number``."""
    folder = fmt.attempt_dir(run_dir, number)
    rank = fmt.rank_dir(run_dir, number)
    attempt = optional_json(folder / fmt.ATTEMPT_FILE)
    return AttemptRecords(
        attempt=attempt,
        heartbeat=optional_json(rank / fmt.HEARTBEAT_FILE) if _is_real(rank) else None,
        exit=optional_json(folder / fmt.EXIT_FILE),
        supervisor=optional_json(folder / fmt.SUPERVISOR_FILE),
        supervisor_exit=optional_json(folder / fmt.SUPERVISOR_EXIT_FILE),
        created=created,
    )


def _is_real(folder: Path) -> bool:
    """Whether it is a folder and no link to one; those above it are known to be."""
    try:
        return stat.S_ISDIR(os.lstat(folder).st_mode)
    except OSError:
        return False


def latest_records(records: Sequence[AttemptRecords], created: float | None) -> AttemptRecords:
    """The records that a run's state is computed from: the latest attempt's that has any."""
    for record in reversed(records):
        if record.attempt is not None or record.supervisor is not None:
            return record
    return records[-1] if records else AttemptRecords(None, None, None, None, None, created)


def run_state(run_dir: str | os.PathLike[str], now: float | None = None) -> RunState:
    """The state of the run in ``run_dir``, from a handful of small files; never raises for what lies in it."""
    run_dir = Path(run_dir)
    run = optional_json(run_dir / fmt.RUN_FILE)
    created = _number(run, "created")
    records = [read_records(run_dir, number, created) for number in attempt_numbers(run_dir)]
    return state_of(latest_records(records, created), time.time() if now is None else now)


# The list ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class FolderContents:
    """What lies in a folder of runs."""

    names: list[str] = field(default_factory=list)
    """Of the folders that may be runs, in no order."""
    refused: list[RunSummary] = field(default_factory=list)
    """Rows for what cannot be a run but looks like one: links to folders, names that are no text."""
    notes: list[str] = field(default_factory=list)
    """What else is to be said about the folder."""


def folder_contents(folder: Path) -> FolderContents:
    """What lies in ``folder``, by names and kinds alone; nothing in it is opened, and no link is followed."""
    found, strays = FolderContents(), 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if entry.name.isascii() or _is_text(entry.name):
                        found.names.append(entry.name)
                    else:
                        found.refused.append(_unreadable(Path(entry.path), "its name is not UTF-8; rename the folder."))
                elif entry.is_symlink() and entry.is_dir():
                    text = "a symbolic link; links are not followed. Open its target instead."
                    found.refused.append(_unreadable(Path(entry.path), text))
                else:
                    strays += 1
    except FileNotFoundError:
        return FolderContents()
    except OSError as error:
        found.notes.append(f"{folder}: cannot be listed ({error.strerror}). Its runs are not shown.")
    if strays >= MANY_STRAYS:
        found.notes.append(f"{folder}: {strays} files beside the runs are left out; they make the list slower.")
    return found


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def list_runs(runs_dir: str | os.PathLike[str] | None = None, now: float | None = None) -> list[RunSummary]:
    """Every run in the folder, newest first. A run that cannot be read is a row with a ``problem``.

    An absent folder is an empty list. Reads every run's small files; :class:`monitor.runfile.index.RunIndex` gives the
    same rows from an index where it can.
    """
    folder = fmt.runs_folder(runs_dir)
    moment = time.time() if now is None else now
    contents = folder_contents(folder)
    return newest_first([*contents.refused, *(summarise(folder / name, moment) for name in contents.names)])


def newest_first(rows: Iterable[RunSummary]) -> list[RunSummary]:
    """The rows by creation, the latest first; those without a time of creation last."""
    return sorted(rows, key=lambda row: (row.created if row.created is not None else 0.0, row.id), reverse=True)


def _unreadable(path: Path, problem: str) -> RunSummary:
    state = RunState("lost", problem, None, None, None)
    name = path.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return RunSummary(name, name, path, state, None, None, None, None, None, None, None, None, (), problem)


def summarise(run_dir: Path, now: float) -> RunSummary:
    """One row of the list, from the run's small files alone."""
    try:
        return summary_of(run_dir, read_documents(run_dir), now)
    except RunError as error:
        return _unreadable(run_dir, str(error))


# A list takes these keys of the small files, and an index keeps them. Whoever adds one raises INDEX_VERSION.
_RUN_KEYS = ("name", "created", "task", "parent")
_META_KEYS = ("name", "tags", "notes")
_WRITER_KEYS = ("host", "boot_id", "pid_namespace", "pid", "pid_create_time")
_ENDED_ATTEMPT_KEYS = ("planned_steps", "created", "environment")
_ATTEMPT_KEYS = (*_ENDED_ATTEMPT_KEYS, *_WRITER_KEYS)
_ENDED_HEARTBEAT_KEYS = ("planned_steps", "step", "time", "state", "summary")
_HEARTBEAT_KEYS = (*_ENDED_HEARTBEAT_KEYS, *_WRITER_KEYS, "step_at", "step_time_s")
_EXIT_KEYS = ("outcome", "step", "time", "reason")
_SUPERVISOR_KEYS = ("started",)
_SUPERVISOR_EXIT_KEYS = ("returncode", "signal", "asked")


Watch = Callable[[str], bool]
"""See :func:`read_documents`."""


def read_documents(run_dir: Path, watch: Watch | None = None) -> RunDocuments:
    """A run's small files, reduced to the keys that a list needs.

    Args:
        watch: called with each place that the answer depends on, as a path relative to ``run_dir`` that begins with a
            slash ("" is the directory itself), before it is looked at; gives back whether it exists. A file that
            appears later changes a directory that was named.

    Raises:
        RunError: ``run.json`` cannot be used, or is of a newer format.
    """
    look = watch or (lambda place: True)
    look("")
    look(f"/{fmt.RUN_FILE}")
    run = fmt.load_json(run_dir / fmt.RUN_FILE)
    check_version(run, run_dir)
    look(f"/{fmt.META_FILE}")
    meta = optional_json(run_dir / fmt.META_FILE)
    look(f"/{fmt.ATTEMPTS_DIR}")
    folder = run_dir / fmt.ATTEMPTS_DIR
    problem = None
    if not folder.is_dir() or folder.is_symlink():
        what = "a symbolic link, which is not followed" if folder.is_symlink() else "no folder"
        problem = f"{folder}: {what}; the run's attempts are expected there." if os.path.lexists(folder) else None
    attempts = (
        []
        if problem
        else [_read_attempt(run_dir, number, created_of(run), watch) for number in numbered(folder)[-MAX_ATTEMPTS:]]
    )
    config = run.get("config")
    return RunDocuments(
        run=_reduced(run, _RUN_KEYS) or {},
        meta=_reduced(meta, _META_KEYS) or {},
        attempts=tuple(attempts),
        config=config if isinstance(config, dict) else None,
        problem=problem,
    )


def _read_attempt(run_dir: Path, number: int, created: float | None, watch: Watch | None) -> AttemptRecords:
    folder, rank = fmt.attempt_dir(run_dir, number), fmt.rank_dir(run_dir, number)
    if watch is not None:
        place = f"/{fmt.ATTEMPTS_DIR}/{folder.name}"
        watch(place)
        for name in (fmt.ATTEMPT_FILE, fmt.EXIT_FILE, fmt.SUPERVISOR_FILE, fmt.SUPERVISOR_EXIT_FILE):
            watch(f"{place}/{name}")
        if not watch(f"{place}/{rank.name}/{fmt.HEARTBEAT_FILE}"):
            watch(f"{place}/{rank.name}")
    records = read_records(run_dir, number, created)
    ended = records.exit is not None  # then nobody asks any more whether the process lives
    attempt = _reduced(records.attempt, _ENDED_ATTEMPT_KEYS if ended else _ATTEMPT_KEYS)
    heartbeat = _reduced(records.heartbeat, _ENDED_HEARTBEAT_KEYS if ended else _HEARTBEAT_KEYS)
    if attempt and "environment" in attempt:
        attempt["environment"] = _reduced(attempt["environment"], ("device",))
    if heartbeat and "summary" in heartbeat:
        loss = heartbeat["summary"].get("train_loss") if isinstance(heartbeat["summary"], dict) else None
        heartbeat["summary"] = {"train_loss": _reduced(loss, ("last", "best"))}
    return AttemptRecords(
        attempt=attempt,
        heartbeat=heartbeat,
        exit=_reduced(records.exit, _EXIT_KEYS),
        supervisor=_reduced(records.supervisor, _SUPERVISOR_KEYS),
        supervisor_exit=_reduced(records.supervisor_exit, _SUPERVISOR_EXIT_KEYS),
        created=created,
    )


def created_of(run: Mapping[str, Any]) -> float | None:
    """When the run was made; None when its record does not say, or names a time that is none."""
    created = _number(run, "created")
    return created if created is not None and 0 <= created < YEAR_9999 else None


def _reduced(record: Any, keys: Sequence[str]) -> dict[str, Any] | None:
    return {key: record[key] for key in keys if key in record} if isinstance(record, dict) else None


def summary_of(run_dir: Path, documents: RunDocuments, now: float) -> RunSummary:
    """One row of the list from a run's documents."""
    run, meta, records = documents.run, documents.meta, documents.attempts
    created = created_of(run)
    latest = latest_records(records, created)
    state = state_of(latest, now)
    losses = [_loss(record.heartbeat) for record in records]
    last = [loss for loss, _ in losses if loss is not None]
    best = [value for _, value in losses if value is not None]
    environment = latest.attempt.get("environment") if latest.attempt else None
    parent = run.get("parent")
    return RunSummary(
        id=run_dir.name,
        name=str(meta.get("name") or run.get("name") or run_dir.name),
        path=run_dir,
        state=state,
        created=created,
        last_step=next(
            (step for step in (_last_step(record) for record in reversed(records)) if step is not None), None
        ),
        planned_steps=_planned(latest),
        last_loss=last[-1] if last else None,
        best_loss=min(best) if best else None,
        duration_s=_total_duration(records, now if state.word in ("running", "paused") else None),
        task=_text(run.get("task")),
        device=_text(environment.get("device")) if isinstance(environment, dict) else None,
        tags=tags_of(meta),
        problem=documents.problem,
        notes=_text(meta.get("notes")),
        parent=_text(parent.get("run")) if isinstance(parent, dict) else None,
        attempts=len(records),
    )


def tags_of(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """The tags in a run's meta.json; () for anything that is not a list of texts."""
    tags = meta.get("tags")
    return tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()


def check_version(run: Mapping[str, Any], run_dir: Path) -> None:
    """Refuse a format that this code does not know.

    Raises:
        RunError: no version, or a newer major one; the message says what to do.
    """
    version = run.get("format")
    major = version.get("major") if isinstance(version, dict) else None
    if not isinstance(major, int) or isinstance(major, bool) or major < 1:
        raise RunError(f"{run_dir / fmt.RUN_FILE}: format.major is {major!r}; a whole number from 1 is expected.")
    if major > fmt.FORMAT_MAJOR:
        raise RunError(
            f"{run_dir} is written in format {major}; this version reads up to {fmt.FORMAT_MAJOR}. "
            "Upgrade: pip install --upgrade gradiometer."
        )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _loss(heartbeat: Mapping[str, Any] | None) -> tuple[float | None, float | None]:
    summary = heartbeat.get("summary") if heartbeat else None
    loss = summary.get("train_loss") if isinstance(summary, dict) else None
    return (_number(loss, "last"), _number(loss, "best")) if isinstance(loss, dict) else (None, None)


def _last_step(records: AttemptRecords) -> int | None:
    step = _integer(records.heartbeat, "step")
    return step if step is not None else _integer(records.exit, "step")


def _planned(records: AttemptRecords) -> int | None:
    planned = _integer(records.heartbeat, "planned_steps")
    return planned if planned is not None else _integer(records.attempt, "planned_steps")


def _total_duration(records: Sequence[AttemptRecords], now: float | None) -> float | None:
    total: float | None = None
    for index, record in enumerate(records):
        began = _number(record.attempt, "created")
        ended = _number(record.exit, "time") or _number(record.heartbeat, "time")
        if now is not None and index == len(records) - 1:
            ended = now
        if began is not None and ended is not None:
            total = (total or 0.0) + max(0.0, ended - began)
    return total
