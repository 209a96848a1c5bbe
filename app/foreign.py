"""Logs of other tools on the command line: the doctor reads them through a run directory that is gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from app.text import plain
from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.report import Report
from monitor.importers import Taken, import_path
from monitor.runfile import format as fmt
from monitor.runfile.reader import Run, open_run

NAMES_SHOWN = 40
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Read:
    """One training of a foreign source, and what the rules say of it."""

    taken: Taken
    report: Report
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The doctor's JSON, with how the source was read under ``import``."""
        taken = self.taken
        about = {
            "format": taken.source.format,
            "names": taken.names,
            "own": taken.own,
            "interval": taken.interval,
            "messages": taken.messages,
        }
        return {**self.report.to_dict(), "import": about}


def is_foreign(path: Path) -> bool:
    """Whether ``path`` is there and is no run directory of ours, nor a folder of such."""
    if path.is_file():
        return True
    return path.is_dir() and not (path / fmt.RUN_FILE).exists() and not any(path.glob(f"*/{fmt.RUN_FILE}"))


def diagnose_foreign(path: Path) -> list[Read]:
    """What the rules say of each training in a file or folder of another tool.

    Raises:
        RunError: nothing there is a log with metrics.
    """
    return read_foreign(path, lambda read, run: read)


def read_foreign(path: Path, look: Callable[[Read, Run], Answer]) -> list[Answer]:
    """What ``look`` makes of each training, while the run directory that it was read into is still there.

    Raises:
        RunError: nothing there is a log with metrics.
    """
    answers = []
    with tempfile.TemporaryDirectory(prefix="gradiometer-") as folder:
        for taken in import_path(path, folder):
            for run_dir in taken.runs:
                run = open_run(run_dir)
                report = diagnose(run)
                where = {**report.run, "id": None, "path": str(taken.source.path)}
                answers.append(look(Read(taken, replace(report, run=where), run.problems), run))
    return answers


def told(taken: Taken) -> str:
    """How a source was read: its format, what its names were taken for, and what had to be guessed."""
    every = f", a row every {taken.interval:,} steps" if taken.interval else ""
    lines = [f"{plain(str(taken.source.path))}: {taken.source.format}{every}"]
    lines.append(f"  read as: {_some(taken.names) or 'none of its names is known'}")
    if taken.own:
        lines.append(f"  kept under their own names: {_some(taken.own)}")
    return "\n".join([*lines, *(f"  note: {plain(message)}" for message in taken.messages)])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(plain(name) for name in names[:NAMES_SHOWN]) + more
