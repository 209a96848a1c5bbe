"""Throwing runs away, and taking that back: ``<runs>/.trash/<id>``, deleted for good only from there.

Every step works on folders opened once, with names relative to them, and follows no symbolic link: whatever lies in a
runs folder, nothing outside it is moved or deleted. A run is moved by one rename, so it is never half in the trash.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.store import numbered, optional_json, run_state

TRASH_DIR = ".trash"
DELETING = ".deleting-"
"""A run on its way out for good has this in front of its name, so that one cut short is never taken for a whole run."""


@dataclass(frozen=True, slots=True)
class Trashed:
    """A run in the trash."""

    id: str
    name: str
    path: Path
    trashed: float
    """Unix time at which it was thrown away (the folder's change time)."""


def trash_run(runs_dir: str | os.PathLike[str] | None, run_id: str) -> Path:
    """Move a run into the trash of its folder and return where it is now.

    Raises:
        RunError: there is no such run, it is a symbolic link or no run directory, it goes on, or the trash has one of
            this id already.
    """
    runs = _runs(runs_dir)
    fmt.check_run_id(run_id)
    with _opened(runs) as here:
        _check_run(here, runs, run_id)
        state = run_state(runs / run_id)
        if not state.ended:
            raise RunError(f"{runs / run_id}: the run is {state.word}. Stop it first: gradiometer stop {run_id}")
        try:
            os.mkdir(TRASH_DIR, dir_fd=here)
        except FileExistsError:
            pass
        except OSError as error:
            raise RunError(f"{runs}: cannot be written ({error.strerror}). Nothing was moved.") from None
        with _opened(runs / TRASH_DIR, TRASH_DIR, here) as trash:
            if _kind(trash, run_id) is not None:
                raise RunError(
                    f"the trash of {runs} has a run {run_id} already. Delete it for good first: "
                    f"gradiometer delete {run_id}"
                )
            _move(runs / run_id, run_id, here, trash)
    return runs / TRASH_DIR / run_id


def list_trash(runs_dir: str | os.PathLike[str] | None = None) -> list[Trashed]:
    """The runs in the trash, the last thrown away first; [] without a trash."""
    runs = _runs(runs_dir)
    found: list[Trashed] = []
    try:
        with _opened(runs) as here, _opened(runs / TRASH_DIR, TRASH_DIR, here) as trash:
            for name in _names(trash):
                status = _status(trash, name)
                if name.startswith(".") or status is None or not stat.S_ISDIR(status.st_mode):
                    continue
                path = runs / TRASH_DIR / name
                title = (optional_json(path / fmt.META_FILE) or {}).get("name") or (
                    optional_json(path / fmt.RUN_FILE) or {}
                ).get("name")
                found.append(Trashed(name, str(title or name), path, status.st_ctime))
    except RunError:
        return []
    return sorted(found, key=lambda one: (one.trashed, one.id), reverse=True)


def restore_run(runs_dir: str | os.PathLike[str] | None, run_id: str) -> Path:
    """Move a run out of the trash to where it was and return that place.

    Raises:
        RunError: it is not in the trash, or a run of this id has been made since.
    """
    runs = _runs(runs_dir)
    fmt.check_run_id(run_id)
    with _opened(runs) as here, _trash(runs, here) as trash:
        _check_trashed(trash, runs, run_id)
        if _kind(here, run_id) is not None:
            raise RunError(f"{runs / run_id} exists. Move it away or throw it away first; nothing is overwritten.")
        _move(runs / TRASH_DIR / run_id, run_id, trash, here)
    return runs / run_id


def delete_run(runs_dir: str | os.PathLike[str] | None, run_id: str) -> None:
    """Delete a run that lies in the trash, for good.

    Raises:
        RunError: it is not in the trash, or something of it could not be deleted.
    """
    runs = _runs(runs_dir)
    fmt.check_run_id(run_id)
    with _opened(runs) as here, _trash(runs, here) as trash:
        _check_trashed(trash, runs, run_id)
        _delete(trash, runs, run_id)


def empty_trash(runs_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """Delete everything in the trash for good, and return the ids; what an earlier deletion left goes too.

    Raises:
        RunError: something could not be deleted.
    """
    runs = _runs(runs_dir)
    gone = [one.id for one in list_trash(runs)]
    with _opened(runs) as here:
        if _kind(here, TRASH_DIR) is None:
            return []
        with _trash(runs, here) as trash:
            for name in gone:
                _delete(trash, runs, name)
            for name in _names(trash):
                if name.startswith(DELETING) and _kind(trash, name) == "folder":
                    _delete_tree(trash, runs, name)
    return gone


def _runs(runs_dir: str | os.PathLike[str] | None) -> Path:
    """The runs folder itself; a link to it is the user's own choice and is followed here, once."""
    return fmt.runs_folder(runs_dir).resolve()


@contextmanager
def _opened(path: Path, name: str | None = None, parent: int | None = None) -> Iterator[int]:
    """A descriptor of a folder that is no symbolic link; ``name`` in the opened folder ``parent`` when given."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path if name is None else name, flags, dir_fd=parent)
    except FileNotFoundError:
        raise RunError(f"{path}: no such folder.") from None
    except OSError as error:
        link = error.errno in (errno.ELOOP, errno.ENOTDIR)
        raise RunError(f"{path}: {'not a real folder' if link else error.strerror}. Nothing was touched.") from None
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _trash(runs: Path, here: int) -> Iterator[int]:
    if _kind(here, TRASH_DIR) is None:
        raise RunError(f"{runs} has no trash: no run was thrown away.")
    with _opened(runs / TRASH_DIR, TRASH_DIR, here) as trash:
        yield trash


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _status(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None


def _kind(folder: int, name: str) -> str | None:
    """``folder``, ``link`` or ``file``; None when there is no such name."""
    status = _status(folder, name)
    if status is None:
        return None
    return "folder" if stat.S_ISDIR(status.st_mode) else "link" if stat.S_ISLNK(status.st_mode) else "file"


def _check_run(here: int, runs: Path, run_id: str) -> None:
    """Refuse what is no run. One that was cut short while it was made, without run.json, may go too."""
    kind = _kind(here, run_id)
    if kind is None:
        raise RunError(f"{runs / run_id}: no such run. `gradiometer runs --runs {runs}` lists them.")
    if kind != "folder":
        raise RunError(f"{runs / run_id}: a {kind}, not a run directory. It was not touched.")
    path = runs / run_id
    whole = (path / fmt.RUN_FILE).exists()
    begun = {entry.name for entry in path.iterdir()} <= {fmt.ATTEMPTS_DIR, fmt.CHECKPOINTS_DIR}
    if not whole and not (begun and not numbered(path / fmt.ATTEMPTS_DIR)):
        raise RunError(f"{path} is not a run directory: it has no {fmt.RUN_FILE}. It was not touched.")


def _check_trashed(trash: int, runs: Path, run_id: str) -> None:
    kind = _kind(trash, run_id)
    if kind is None:
        raise RunError(f"{run_id} is not in the trash of {runs}. `gradiometer trash --runs {runs}` lists what is.")
    if kind != "folder":
        raise RunError(f"{runs / TRASH_DIR / run_id}: a {kind}, not a run directory. It was not touched.")


def _move(path: Path, run_id: str, source: int, target: int) -> None:
    try:
        os.rename(run_id, run_id, src_dir_fd=source, dst_dir_fd=target)
    except OSError as error:
        hint = " It is a file system of its own." if error.errno == errno.EXDEV else ""
        raise RunError(f"{path}: cannot be moved ({error.strerror}).{hint} It stays where it is.") from None


def _delete(trash: int, runs: Path, run_id: str) -> None:
    doomed = f"{DELETING}{secrets.token_hex(4)}-{run_id}"
    try:
        os.rename(run_id, doomed, src_dir_fd=trash, dst_dir_fd=trash)
    except OSError as error:
        raise RunError(f"{runs / TRASH_DIR / run_id}: cannot be deleted ({error.strerror}).") from None
    _delete_tree(trash, runs, doomed)


def _delete_tree(trash: int, runs: Path, name: str) -> None:
    try:
        shutil.rmtree(name, dir_fd=trash)  # works along descriptors too; a link inside is removed, not followed
    except OSError as error:
        raise RunError(
            f"{runs / TRASH_DIR / name}: not deleted in full ({error.strerror}). Delete what is left by hand."
        ) from None
