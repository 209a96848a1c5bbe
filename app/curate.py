"""What a person does to the runs in the list: name, tag and note them, throw them away, take that back.

Refused here and not only by a greyed button: when the page is read-only, and for the samples, which are part of the
repository.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.control import read_only_reason
from app.data import LISTING, READERS, is_sample
from monitor.errors import RunError
from monitor.runfile.meta import change_tags, edit_meta
from monitor.runfile.trash import restore_run, trash_run


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a request about several runs."""

    paths: tuple[Path, ...]
    """Directories of the runs that it was done to, as they were before."""
    refused: tuple[str, ...]
    """Why it was not done to the others, one sentence each."""


def refusal(path: Path) -> str | None:
    """Why nothing may be changed about the run at ``path``; None when it may."""
    if reason := read_only_reason():
        return reason
    return (
        f"{path.name} is a sample run, which is part of the repository; it stays as it is." if is_sample(path) else None
    )


def describe(path: Path, *, name: str, tags: Sequence[str], notes: str) -> Done:
    """Set display name, tags and notes of one run."""
    return _each([path], lambda run: edit_meta(run, name=name, tags=tags, notes=notes))


def tag(paths: Iterable[Path], add: Sequence[str], remove: Collection[str]) -> Done:
    """Put tags on runs and take others off."""
    return _each(paths, lambda path: change_tags(path, add, remove))


def throw_away(paths: Iterable[Path]) -> Done:
    """Move runs into the trash of their folder; one that goes on is refused."""
    return _each(paths, lambda path: trash_run(path.parent, path.name))


def take_back(paths: Iterable[Path]) -> Done:
    """Move runs out of the trash to where they were."""
    return _each(paths, lambda path: restore_run(path.parent, path.name))


def _each(paths: Iterable[Path], act: Callable[[Path], object]) -> Done:
    done, refused = [], []
    for path in paths:
        try:
            if reason := refusal(path):
                raise RunError(reason)
            act(path)
        except RunError as error:
            refused.append(str(error))
        else:
            done.append(path)
            READERS.forget(path)
    LISTING.forget()
    return Done(tuple(done), tuple(dict.fromkeys(refused)))
