"""Who may run the next attempt: whoever makes its folder. mkdir is exclusive, so of two launchers one wins."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.runfile.format import attempt_dir, exclusive_write_json, load_json
from monitor.runfile.writer import process_identity

BEING_MADE_S = 10.0
"""How long an attempt folder without any record counts as being made at this moment. Making the folder and writing the
record takes milliseconds; 10 s covers a stalled network disk (our judgement)."""


def newest_attempt(run_dir: Path) -> int | None:
    """The highest attempt number, None before the first."""
    numbers = [int(path.name) for path in (run_dir / "attempts").glob("[0-9]*") if path.name.isdigit()]
    return max(numbers, default=None)


def read_record(path: Path) -> dict[str, Any]:
    """A JSON object of the run directory; empty when the file is missing, torn or not an object."""
    try:
        record = load_json(path)
    except (RunError, OSError):
        return {}
    return record if isinstance(record, dict) else {}


def claim_attempt(run_dir: Path, after: int | None, *, engine: str, world_size: int, grace_s: float) -> int:
    """Make the folder of the attempt that follows ``after``, with ``launch.json`` in it, and give back its number.

    ``after`` is the newest attempt that the caller knew when it saw that nothing of the run was active. Looking again
    here would be wrong: whoever came first in between has made the next one, and this caller would make the one after.

    Raises:
        RunError: somebody else is starting the same run at this moment.
    """
    number = 0 if after is None else after + 1
    folder = attempt_dir(run_dir, number)
    try:
        folder.mkdir()
    except FileExistsError:
        raise RunError(
            f"run {run_dir.name} is being started by another process at this moment (attempt {number} exists already). "
            "Nothing was done. Look at the run again in a few seconds."
        ) from None
    record = {"engine": engine, "world_size": world_size, "grace_s": grace_s, "time": time.time()}
    exclusive_write_json(folder / "launch.json", record | process_identity())
    return number


def is_elsewhere(record: Mapping[str, Any]) -> bool:
    """Whether the pids in this record belong to another host or another container, where we cannot look."""
    here = process_identity()
    pairs = [(record.get(key), here[key]) for key in ("host", "pid_namespace")]
    return any(there != ours for there, ours in pairs if there is not None and ours is not None)


def is_being_made(folder: Path) -> bool:
    """Whether somebody made this attempt's folder a moment ago and has not come to its first record yet."""
    try:
        made = folder.stat().st_mtime
    except OSError:
        return False
    recorded = (folder / "launch.json").exists() or (folder / "attempt.json").exists()
    return not recorded and time.time() - made < BEING_MADE_S
