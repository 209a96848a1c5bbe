"""Folders of checkpoints: which are complete, which is newest, which may go. Without torch.

A checkpoint is written under a temporary name; COMMIT.json, with the size and SHA-256 of every file, comes last; then
the folder is renamed to its step. A folder without a COMMIT.json, or one that disagrees with its files, is incomplete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from monitor.errors import RunError

COMMIT = "COMMIT.json"
MODEL = "model.safetensors"
TRAINING = "training.pt"
TEMPORARY = ".tmp-"
MAX_COMMIT_BYTES = 1 << 20
FOLDER = re.compile(r"\d{8,12}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int
    attempt: int
    world_size: int
    after_finding: str | None = None
    """Saved because of this critical finding: kept, and resumed from only when asked for."""


def newest_complete(checkpoints: Path, say: Callable[[str], None], *, at_step: int | None = None) -> Checkpoint | None:
    """The complete checkpoint of the latest attempt and its highest step; ``say`` gets one message per folder skipped.

    The attempt decides before the step: a run that was rewound and has since been killed goes on where it was. One that
    was saved after a critical finding comes last: its weights may be what was found.
    """
    complete = [checkpoint for checkpoint in _committed(checkpoints, say) if at_step in (None, checkpoint.step)]
    if at_step is None and any(checkpoint.after_finding is None for checkpoint in complete):
        for checkpoint in complete:
            if checkpoint.after_finding is not None:
                say(
                    f"checkpoint {checkpoint.path.name} was saved after a critical finding and is passed over; "
                    f"--at-step {checkpoint.step} goes on from it"
                )
        complete = [checkpoint for checkpoint in complete if checkpoint.after_finding is None]
    for checkpoint in reversed(complete):
        problem = _damage(checkpoint.path)
        if problem is None:
            return checkpoint
        say(f"checkpoint {checkpoint.path.name} is damaged and is skipped: {problem}")
    return None


def newest_before(checkpoints: Path, step: int, *, attempt: int, start_step: int) -> Checkpoint | None:
    """The newest complete checkpoint from before ``step`` on the line of ``attempt``, which began at ``start_step``."""
    for checkpoint in reversed(_committed(checkpoints, lambda message: None)):
        on_line = checkpoint.attempt == attempt or checkpoint.step <= start_step
        if on_line and checkpoint.step < step and checkpoint.after_finding is None and not _damage(checkpoint.path):
            return checkpoint
    return None


def usable_at(checkpoints: Path, step: int) -> Checkpoint | str:
    """The complete checkpoint of ``step``; a string says why there is none."""
    said: list[str] = []
    found = [one for one in _committed(checkpoints, said.append) if one.step == step]
    if not found:
        return next((words for words in said if words.startswith(f"checkpoint {step:08d} ")), "there is no such folder")
    return _damage(found[0].path) or found[0]


def adopt(found: Checkpoint, checkpoints: Path, *, run: str) -> Checkpoint:
    """Make ``found``, of another run, the first checkpoint of the run whose folder of checkpoints is ``checkpoints``.

    Its files are hard links: a checkpoint is written once and never changed, so that both runs may hold it, and either
    may delete it. Where the file system knows no links, or between two of them, it is copied. Of attempt 0 here,
    before which nothing was saved; where it comes from is in its COMMIT.json.

    Raises:
        RunError: it is gone by now, or cannot be written here.
    """
    folder = temporary_folder(checkpoints, found.step, 0)
    try:
        record = json.loads((found.path / COMMIT).read_bytes()[:MAX_COMMIT_BYTES])
        origin = {"run": run, "attempt": found.attempt, "step": found.step}
        folder.mkdir(parents=True)
        for name in record["files"]:
            _link_or_copy(found.path / Path(name).name, folder / Path(name).name)
        with (folder / COMMIT).open("x") as file:
            json.dump({**record, "attempt": 0, "from": origin}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(folder)
        _put_in_place(folder, checkpoints / found.path.name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise RunError(f"checkpoint {found.path} cannot be taken over: {type(error).__name__}: {error}.") from None
    return replace(found, path=checkpoints / found.path.name, attempt=0)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOSPC):
            raise
        shutil.copyfile(source, target, follow_symlinks=False)
        sync_file(target)


def temporary_folder(checkpoints: Path, step: int, attempt: int) -> Path:
    """Where the checkpoint of ``step`` is written until it is complete."""
    return checkpoints / f"{TEMPORARY}{step:08d}-{attempt}"


def commit(
    folder: Path,
    final: Path,
    *,
    step: int,
    attempt: int,
    world_size: int,
    torch_version: str,
    after_finding: str | None = None,
) -> int:
    """Declare everything in ``folder`` complete and rename it to ``final``; gives back its size in bytes."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    record = {"step": step, "attempt": attempt, "world_size": world_size, "time": time.time(), "torch": torch_version}
    if after_finding is not None:
        record["after_finding"] = after_finding
    with (folder / COMMIT).open("x") as file:
        json.dump({**record, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)
    _put_in_place(folder, final)
    return sum(path.stat().st_size for path in final.iterdir())


def keep_newest(checkpoints: Path, count: int, best_step: int | None = None) -> None:
    """Delete all complete checkpoints but the newest ``count``, the one of ``best_step``, and those after a finding."""
    found = [one for one in _committed(checkpoints, lambda message: None) if one.after_finding is None]
    for checkpoint in found[:-count]:
        if checkpoint.step == best_step:
            continue
        going = checkpoint.path.with_name(f"{TEMPORARY}gone-{checkpoint.path.name}")
        checkpoint.path.rename(going)  # first: a folder that is half deleted must not look like a checkpoint
        shutil.rmtree(going)


def remove_leftovers(checkpoints: Path) -> None:
    """Delete what a killed attempt left half written; a replaced checkpoint whose successor never arrived goes back.

    To be called only while nobody writes a checkpoint of this run.
    """
    if not checkpoints.is_dir():
        return
    for path in checkpoints.glob(f"{TEMPORARY}*"):
        original = checkpoints / path.name.removeprefix(f"{TEMPORARY}old-")
        if FOLDER.fullmatch(original.name) and not original.exists():
            path.rename(original)
        else:
            shutil.rmtree(path)


def sync_file(path: Path) -> None:
    """Have the content of ``path`` on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _committed(checkpoints: Path, say: Callable[[str], None]) -> list[Checkpoint]:
    """The folders with a readable COMMIT.json, oldest first; a link is never followed."""
    if not checkpoints.is_dir():
        return []
    folders = [
        path
        for path in checkpoints.iterdir()
        if FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]
    found = [checkpoint for path in sorted(folders) if (checkpoint := _read_commit(path, say))]
    return sorted(found, key=lambda checkpoint: (checkpoint.attempt, checkpoint.step))


def _read_commit(path: Path, say: Callable[[str], None]) -> Checkpoint | None:
    try:
        with (path / COMMIT).open("rb") as file:
            record = json.loads(file.read(MAX_COMMIT_BYTES))
        after = record.get("after_finding")
        checkpoint = Checkpoint(
            path,
            int(record["step"]),
            int(record["attempt"]),
            int(record["world_size"]),
            None if after is None else str(after)[:600],
        )
    except FileNotFoundError:
        say(f"checkpoint {path.name} is incomplete and is skipped: it has no {COMMIT}, so writing it was cut short")
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"checkpoint {path.name} is skipped: its {COMMIT} cannot be read ({type(error).__name__}: {error})")
    else:
        return checkpoint
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with the files of a committed checkpoint, compared with their recorded sizes and hashes."""
    try:
        files = json.loads((path / COMMIT).read_bytes())["files"]
        if TRAINING not in files or not any(Path(name).suffix == Path(MODEL).suffix for name in files):
            return f"{COMMIT} lists no {MODEL} or {TRAINING}"
        for name, expected in files.items():
            file = path / Path(name).name  # the last part only: no path out of the folder is followed
            if not file.is_file() or file.is_symlink():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes and had {expected['bytes']}"
            if _sha256(file) != expected["sha256"]:
                return f"the content of {name} has changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _put_in_place(folder: Path, final: Path) -> None:
    """Rename ``folder`` to ``final``. One that an earlier attempt left under that name makes way first."""
    if final.exists():
        old = folder.with_name(f"{TEMPORARY}old-{final.name}")
        final.rename(old)
        folder.rename(final)
        shutil.rmtree(old)
    else:
        folder.rename(final)
    _sync_folder(final.parent)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
