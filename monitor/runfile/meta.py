"""What a person says about a run afterwards: its display name, its tags and notes, in ``meta.json``.

The run's own records are never rewritten; an empty name gives the one of ``run.json`` back.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.store import optional_json, tags_of

MAX_NAME = 200
MAX_TAG = 60
MAX_TAGS = 50
MAX_NOTES = 20_000
"""Characters, and tags of one run: far beyond what anybody reads (our judgement)."""


def edit_meta(
    run_dir: str | os.PathLike[str],
    *,
    name: str | None = None,
    tags: Sequence[str] | None = None,
    notes: str | None = None,
) -> None:
    """Change what is given and keep the rest; an empty text or list takes the entry away.

    Raises:
        RunError: no run directory or a link to one, a text that is too long, or the file cannot be written.
    """
    path = _checked(Path(run_dir))
    changes: dict[str, Any] = {}
    if name is not None:
        changes["name"] = _bounded("The name", " ".join(name.split()), MAX_NAME)
    if notes is not None:
        changes["notes"] = _bounded("The notes", notes.strip(), MAX_NOTES)
    if tags is not None:
        changes["tags"] = _tidy(tags)
    _write(path, changes)


def change_tags(run_dir: str | os.PathLike[str], add: Sequence[str] = (), remove: Collection[str] = ()) -> None:
    """Put tags on a run and take others off; what it has besides stays.

    Raises:
        RunError: as :func:`edit_meta`.
    """
    path = _checked(Path(run_dir))
    has = tags_of(optional_json(path / fmt.META_FILE) or {})
    _write(path, {"tags": [*(tag for tag in has if tag not in remove or tag in add), *_tidy(add, has)]})


def _checked(path: Path) -> Path:
    if path.is_symlink() or not (path / fmt.RUN_FILE).is_file():
        raise RunError(f"{path} is not a run directory: it has no {fmt.RUN_FILE}. Nothing was written.")
    return path


def _tidy(tags: Sequence[str], has: Sequence[str] = ()) -> list[str]:
    """Each tag once, without the spaces around it and without those that the run has."""
    given = [_bounded("A tag", " ".join(tag.split()), MAX_TAG) for tag in tags]
    fresh = [tag for tag in dict.fromkeys(given) if tag and tag not in has]
    if len(has) + len(fresh) > MAX_TAGS:
        raise RunError(f"{len(has) + len(fresh)} tags; a run has at most {MAX_TAGS}. Nothing was written.")
    return fresh


def _bounded(what: str, text: str, longest: int) -> str:
    if len(text) > longest:
        raise RunError(f"{what} has {len(text)} characters; at most {longest} are kept. Nothing was written.")
    return text


def _write(path: Path, changes: dict[str, Any]) -> None:
    kept = optional_json(path / fmt.META_FILE) or {}
    merged = {key: value for key, value in {**kept, **changes}.items() if value or key not in changes}
    try:
        fmt.atomic_write_json(path / fmt.META_FILE, merged)
    except OSError as error:
        raise RunError(f"{path / fmt.META_FILE}: cannot be written ({error.strerror}). Nothing was changed.") from None
