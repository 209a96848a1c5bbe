"""Following runs of any engine in tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monitor.runfile.reader import open_run
from monitor.runfile.store import run_state
from tests.waiting import until
from trainer.launch import JobState, JobStatus, log_path, status


def record(run_dir: Path, name: str, attempt: int = 0) -> dict[str, Any]:
    return json.loads((run_dir / "attempts" / f"{attempt:04d}" / name).read_text())


def wait_for(run_dir: Path, *states: JobState) -> JobStatus:
    until(lambda: status(run_dir).state in states, f"{states} of {run_dir.name}")
    return status(run_dir)


def until_step(run_dir: Path, attempt: int, step: int) -> None:
    """The newest attempt is this one and has come to that step."""

    def look() -> bool:
        now, seen = status(run_dir), run_state(run_dir)
        assert now.running, (now, (log_path(run_dir) or Path()).read_text())
        return len(open_run(run_dir).attempts) == attempt + 1 and (seen.step or 0) >= step

    until(look, f"step {step} of attempt {attempt}")
