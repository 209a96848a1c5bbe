"""A sweep on disk: ``<runs>/.sweeps/<id>``, written by the one process that looks after it, read by page and terminal.

sweep.json     the plan, create-exclusive, never changed
trials.jsonl   one line for each thing that happened to a trial, appended
driver.json    the process that looks after it now, or did last
driver.lock    held by that process
stop.json      somebody asked to stop it
log.txt        what that process printed
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.runfile import format as fmt
from trainer.launch.claim import is_elsewhere, read_record
from trainer.launch.processes import Identity

SWEEPS_DIR = ".sweeps"
PLAN_FILE = "sweep.json"
TRIALS_FILE = "trials.jsonl"
DRIVER_FILE = "driver.json"
LOCK_FILE = "driver.lock"
STOP_FILE = "stop.json"
LOG_FILE = "log.txt"
MAX_TRIALS_BYTES = 64 << 20
MOST_LISTED = 1000

RUNNING, COMPLETE, PRUNED, DEAD, STOPPED, FAILED = "running", "complete", "pruned", "dead", "stopped", "failed"
STATES = (RUNNING, COMPLETE, PRUNED, DEAD, STOPPED, FAILED)
"""``dead``: ended because the rules found it diverged. ``pruned``: ended because others did better by then. ``failed``:
it crashed or could not be started."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep."""

    number: int
    run_id: str
    params: Mapping[str, Any]
    state: str = RUNNING
    value: float | None = None
    """The metric; the last known one for a trial that did not complete; None when there is none."""
    reason: str = ""
    """Why it ended."""
    reports: tuple[tuple[int, float], ...] = ()
    """``(step, metric)`` on the way."""
    began: float | None = None
    finished: float | None = None
    """Unix times."""

    @property
    def ended(self) -> bool:
        return self.state != RUNNING

    @property
    def result(self) -> float | None:
        """The value, if the trial completed with a finite one: what counts in comparing trials."""
        known = self.state == COMPLETE and self.value is not None and math.isfinite(self.value)
        return self.value if known else None


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep as it stands."""

    folder: Path
    id: str
    record: Mapping[str, Any]
    """The plan as it lies there; ``plan.read_plan`` checks it."""
    trials: tuple[Trial, ...]
    state: str
    """running, finished, stopping, stopped, interrupted (nobody looks after it), elsewhere (on another host)."""
    problem: str | None = None
    """Lines that could not be read."""

    @property
    def runs_dir(self) -> Path:
        return self.folder.parent.parent

    @property
    def minimise(self) -> bool:
        return self.record.get("goal") != "maximise"

    @property
    def planned(self) -> int:
        """Trials in all."""
        planned = self.record.get("trials")
        return planned if type(planned) is int and planned > 0 else len(self.trials)

    @property
    def best(self) -> Trial | None:
        """Of the complete trials with a finite value, the first among equals; None when there is none yet."""
        known = {trial.result: trial for trial in reversed(self.trials) if trial.result is not None}
        return known[min(known) if self.minimise else max(known)] if known else None


def sweep_folder(runs_dir: str | os.PathLike[str], sweep_id: str) -> Path:
    """Where a sweep lies.

    Raises:
        RunError: the id cannot name a folder.
    """
    return Path(runs_dir).absolute() / SWEEPS_DIR / fmt.check_run_id(sweep_id)


def open_sweep(runs_dir: str | os.PathLike[str], sweep_id: str) -> Sweep:
    """Read a sweep.

    Raises:
        RunError: there is none of that id, or its plan cannot be read.
    """
    folder = sweep_folder(runs_dir, sweep_id)
    if folder.is_symlink() or not (folder / PLAN_FILE).is_file():
        raise RunError(f"no sweep {sweep_id!r} in {Path(runs_dir).absolute()}. List them with: gradiometer sweep list")
    record = fmt.load_json(folder / PLAN_FILE)
    trials, problem = read_trials(folder)
    return Sweep(folder, folder.name, record, trials, _state(folder, record, trials), problem)


def list_sweeps(runs_dir: str | os.PathLike[str]) -> list[Sweep]:
    """Every sweep of a runs folder that can be read, the newest first."""
    place = Path(runs_dir).absolute() / SWEEPS_DIR
    try:
        names = sorted((entry.name for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False)), reverse=True)
    except OSError:
        return []
    found = []
    for name in names[:MOST_LISTED]:
        try:
            found.append(open_sweep(runs_dir, name))
        except RunError:
            continue
    return found


def read_trials(folder: Path) -> tuple[tuple[Trial, ...], str | None]:
    """The trials by number, and what could not be read; a line that is still being written is neither."""
    try:
        content = fmt.read_file(folder / TRIALS_FILE, MAX_TRIALS_BYTES)
    except FileNotFoundError:
        return (), None
    except (RunError, OSError) as error:
        return (), str(error)
    trials: dict[int, Trial] = {}
    bad = 0
    for line in content.split(b"\n")[:-1]:
        try:
            _apply(trials, json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError, RunError):
            bad += 1
    left_out = f"{folder / TRIALS_FILE}: unreadable lines left out: {bad}" if bad else None
    return tuple(trials[number] for number in sorted(trials)), left_out


def _apply(trials: dict[int, Trial], line: Any) -> None:
    """One line of ``trials.jsonl``: a trial begins, reports, or ends."""
    number, kind = line["trial"], line["kind"]
    if type(number) is not int or number < 0:
        raise ValueError(number)
    if kind == "begin":
        params = line["params"]
        if not isinstance(params, dict):
            raise ValueError(params)
        trials[number] = Trial(number, fmt.check_run_id(line["run"]), params, began=fmt.as_number(line["time"]))
    elif kind == "report":
        value = fmt.as_number(line["value"])
        if type(line["step"]) is not int or value is None:
            raise ValueError(line)
        before = trials[number]
        trials[number] = replace(before, reports=(*before.reports, (line["step"], value)), value=value)
    elif kind == "end":
        if line["state"] not in STATES[1:]:
            raise ValueError(line["state"])
        value = fmt.as_number(line["value"])
        finished = fmt.as_number(line["time"])
        trials[number] = replace(
            trials[number], state=line["state"], value=value, reason=str(line["reason"])[:600], finished=finished
        )
    else:
        raise ValueError(kind)


def _state(folder: Path, record: Mapping[str, Any], trials: tuple[Trial, ...]) -> str:
    driver = read_record(folder / DRIVER_FILE)
    planned = record.get("trials")
    over = type(planned) is int and len(trials) >= planned
    asked = (folder / STOP_FILE).exists()
    if all(trial.ended for trial in trials) and (over or asked):
        return "finished" if over else "stopped"
    if is_elsewhere(driver):
        return "elsewhere"
    if is_alive(driver):
        return "stopping" if asked else "running"
    return "interrupted"


def is_alive(driver: Mapping[str, Any]) -> bool:
    """Whether the process in ``driver.json`` runs; of one on another host nothing is known, so False."""
    identity = Identity.read(driver)
    return identity is not None and not is_elsewhere(driver) and identity.alive
