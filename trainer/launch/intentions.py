"""What was last wanted of a run's processes, and how far it has come: from the attempt's small files alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from monitor.runfile.format import as_number, attempt_dir, rank_dir
from trainer.launch.claim import newest_attempt, read_record


@dataclass(frozen=True, slots=True)
class Intentions:
    """Of the newest attempt."""

    attempt: int | None
    launched: float | None
    """When a launcher was asked to start it; None when no launcher was."""
    stop_asked: float | None
    """When it was asked to stop, by a signal through its supervisor."""
    ended: bool
    state: str
    """How far it has come, in words."""


def intentions(run_dir: str | os.PathLike[str]) -> Intentions:
    """Never raises for what lies in the run directory; looks at no process."""
    path = Path(run_dir)
    attempt = newest_attempt(path)
    if attempt is None:
        return Intentions(None, None, None, False, "never started")
    folder = attempt_dir(path, attempt)
    launch, supervisor, ended = (read_record(folder / name) for name in ("launch.json", "supervisor.json", "exit.json"))
    stop_asked = as_number(supervisor.get("stop_asked"))
    if ended:
        state = str(ended.get("reason") or "ended")
    elif stop_asked is not None:
        state = "arrived; the trainer is saving its checkpoint"
    elif (rank_dir(path, attempt) / "heartbeat.json").exists():
        state = "begun"
    elif "child_pid" in supervisor:
        state = "its process was started and loads its libraries"
    else:
        state = "its process is being started"
    return Intentions(attempt, as_number(launch.get("time")), stop_asked, bool(ended), state)
