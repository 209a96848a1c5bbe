"""Making a run, beginning an attempt of it, and saying how the attempt ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.identity import process_identity

LONGEST_REASON = 4000
LONGEST_LINE = 2000
"""Characters of a reason and of a line of a traceback: an exception may carry a tensor as text (our judgement)."""


def create_run(
    runs_dir: str | os.PathLike[str],
    *,
    name: str | None = None,
    run_id: str | None = None,
    task: str | None = None,
    config: Mapping[str, Any] | None = None,
    parent: Mapping[str, Any] | None = None,
    code: Mapping[str, Any] | None = None,
    now: Callable[[], float] = time.time,
) -> Path:
    """Make a run directory with ``run.json``, ``attempts/`` and ``checkpoints/``, and return its path.

    Args:
        parent: ``{"run": id, "attempt": number, "step": step}`` of the run this one was forked from.

    Raises:
        RunError: the id cannot name a directory, is taken, or the folder cannot be written.
    """
    created = now()
    run_id = fmt.check_run_id(run_id if run_id is not None else fmt.new_run_id(name, created))
    run_dir = Path(runs_dir) / run_id
    try:
        run_dir.mkdir(parents=True)
        (run_dir / fmt.ATTEMPTS_DIR).mkdir()
        (run_dir / fmt.CHECKPOINTS_DIR).mkdir()
        fmt.exclusive_write_json(
            run_dir / fmt.RUN_FILE,
            {
                "format": {"major": fmt.FORMAT_MAJOR, "minor": fmt.FORMAT_MINOR},
                "id": run_id,
                "name": name or run_id,
                "created": created,
                "parent": dict(parent) if parent else None,
                "task": task,
                "config": dict(config) if config is not None else None,
                "code": dict(code) if code is not None else None,
            },
        )
    except FileExistsError:
        raise RunError(f"{run_dir} exists already. Choose another name, or resume that run.") from None
    except OSError as error:
        raise RunError(f"{run_dir} cannot be created: {error.strerror}. Choose a folder you can write to.") from None
    return run_dir


def begin_attempt(
    run_dir: str | os.PathLike[str],
    *,
    number: int | None = None,
    parent: int | None = None,
    resume_step: int = 0,
    overrides: Mapping[str, Any] | None = None,
    world_size: int = 1,
    planned_steps: int | None = None,
    environment: Mapping[str, Any] | None = None,
    git: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    now: Callable[[], float] = time.time,
) -> int:
    """Begin an attempt of a run and return its number.

    Args:
        number: an attempt folder that a launcher has made and that has no ``attempt.json`` yet; None takes the next
            free number.
        parent: the attempt that this one goes on from; None for a fresh start.
        resume_step: last step of the parent that still counts; the first step of this attempt is the next one.

    Raises:
        RunError: no such run, or the attempt has begun already.
    """
    run_dir = Path(run_dir)
    if not (run_dir / fmt.RUN_FILE).is_file():
        raise RunError(f"{run_dir} is not a run directory: it has no {fmt.RUN_FILE}. Make one with create_run().")
    try:
        number = _next_attempt(run_dir) if number is None else number
        folder = fmt.attempt_dir(run_dir, number)
        for part in ("control", "receipts"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        record = {
            "attempt": number,
            "parent": parent,
            "resume_step": resume_step,
            "overrides": dict(overrides or {}),
            "world_size": world_size,
            "planned_steps": planned_steps,
            **process_identity(),
            "created": now(),
            "environment": dict(environment or {}),
            "git": dict(git) if git is not None else None,
            "engine": dict(engine) if engine is not None else None,
        }
        fmt.exclusive_write_json(folder / fmt.ATTEMPT_FILE, record)
    except FileExistsError:
        raise RunError(
            f"attempt {number} of {run_dir} has begun already. Leave the number out for a new one."
        ) from None
    except OSError as error:
        raise RunError(f"an attempt of {run_dir} cannot be made: {error.strerror}.") from None
    return number


def _next_attempt(run_dir: Path) -> int:
    """The next attempt number, claimed by making its folder: mkdir is exclusive on every file system."""
    folder = run_dir / fmt.ATTEMPTS_DIR
    folder.mkdir(exist_ok=True)
    taken = [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()]
    number = max(taken, default=-1) + 1
    while True:
        try:
            fmt.attempt_dir(run_dir, number).mkdir()
            return number
        except FileExistsError:
            number += 1


def write_exit(
    run_dir: str | os.PathLike[str],
    attempt: int,
    *,
    outcome: str,
    step: int | None,
    reason: str,
    signal: int | None = None,
    returncode: int | None = None,
    traceback: Sequence[str] = (),
    now: Callable[[], float] = time.time,
) -> bool:
    """Say how an attempt ended. The first record stands; returns False when there was one already.

    Raises:
        RunError: ``outcome`` is none of finished, stopped, crashed, or the record cannot be written.
    """
    if outcome not in fmt.OUTCOMES:
        raise RunError(f"outcome {outcome!r} is not known. Accepted: {', '.join(fmt.OUTCOMES)}.")
    record = {
        "outcome": outcome,
        "step": step,
        "time": now(),
        "reason": reason[:LONGEST_REASON],
        "signal": signal,
        "returncode": returncode,
        "traceback": [line[:LONGEST_LINE] for line in traceback],
    }
    try:
        fmt.exclusive_write_json(fmt.attempt_dir(Path(run_dir), attempt) / fmt.EXIT_FILE, record)
    except FileExistsError:
        return False
    except OSError as error:
        raise RunError(f"the end of attempt {attempt} of {run_dir} cannot be recorded: {error.strerror}.") from None
    return True
