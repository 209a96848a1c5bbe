"""Where a report goes: a file, or standard output for ``-``. Nothing but an older report is written over unasked."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from app.report.page import GENERATOR
from app.report.words import MARK
from monitor.errors import GradiometerError

_READ = 64 * 2**20
"""Bytes of a file that are looked at to see whether it is a report."""


class NotWritten(GradiometerError):
    """A report that cannot be put where it was asked for."""


def put(said: str, place: str, force: bool) -> str | None:
    """Write ``said`` to the file ``place``, whole or not at all; what was done in words, None for standard output.

    Raises:
        NotWritten: there is something else, or it cannot be written.
    """
    if place == "-":
        sys.stdout.write(said)
        return None
    path = Path(place)
    if path.is_dir():
        raise NotWritten(f"{path} is a folder; name a file in it, such as {path / 'report.html'}")
    there = os.path.lexists(path)
    if there and not path.is_file():
        raise NotWritten(f"{path} is no regular file. Name a new file, or - for standard output.")
    if there and not force and not is_report(path):
        raise NotWritten(f"{path} is there and is no report of Gradiometer's. Name another file, or add --force.")
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=".report-", delete=False, encoding="utf-8"
        ) as file:
            file.write(said)
        new = Path(file.name)
        _keep_mode(new, path if there else None)
        new.replace(path)
    except OSError as error:
        raise NotWritten(f"{path} cannot be written: {error.strerror or error}") from None
    return f"{path} written{', in place of an older one' if there else ''}"


def _keep_mode(new: Path, old: Path | None) -> None:
    """Permissions of the file that is replaced, or those that any new file gets here."""
    if old is not None:
        new.chmod(old.stat().st_mode & 0o777)
        return
    mask = os.umask(0)
    os.umask(mask)
    new.chmod(0o666 & ~mask)


def is_report(path: Path) -> bool:
    """Whether the file was written by this command: HTML, Markdown or the doctor's JSON."""
    try:
        with path.open("rb") as file:
            said = file.read(_READ).decode("utf-8", errors="replace")
    except OSError:
        return False
    return GENERATOR in said[:1000] or said.startswith(MARK) or _is_json_report(said)


def _is_json_report(said: str) -> bool:
    if not said.startswith("{"):
        return False
    try:
        value = json.loads(said)
    except (ValueError, RecursionError):
        return False
    return {"verdict", "findings", "incidents"} <= value.keys() or {"version", "runs"} == value.keys()
