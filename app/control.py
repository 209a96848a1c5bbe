"""What the page may do to trainings: start, stop, resume, and ask. Refused here, not only by a greyed button."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import access
from app.data import READERS, is_sample, launch_folder
from app.dry_run import DRY_RUNS
from app.engine_state import ENGINE_STATES
from monitor.errors import RunError
from monitor.runfile import control as requests
from monitor.runfile.store import run_state

if TYPE_CHECKING:
    from app.fixes import Plan as FixPlan
    from trainer.config import TrainConfig
    from trainer.sweep import Plan


SAME_CLICK_S = 30.0
"""A click on the same sight within so many seconds is the same click. Our judgement: a start shows within a few."""
_ACTING = threading.Lock()
_ACTED: dict[tuple[object, ...], tuple[float, str]] = {}
"""When and with what result an action was carried out, by what was in sight."""


def read_only_reason() -> str | None:
    """Why this page only shows; None when it may act."""
    return access.read_only_reason()


def start(config: TrainConfig) -> str:
    """Start a training in the first runs folder and return its run id, without waiting for it.

    Raises:
        RunError: the page is read-only, or the launch was refused.
    """
    _may_act()
    from trainer import launch

    return launch.start(config, launch_folder()).run_id


def dry_run(config: TrainConfig) -> None:
    """Try a configuration out for a few steps, in a process that writes nothing; returns at once.

    Raises:
        RunError: the page is read-only, or another one is being tried.
    """
    _may_act()
    DRY_RUNS.begin(config)


def engines() -> dict[str, str | None]:
    """Where a training can be launched, and why not: by name, None where it can."""
    from trainer import launch

    return launch.engines()


def stop(path: Path) -> str:
    """Ask the training at ``path`` to save a checkpoint and end; returns what was done, in words.

    By a signal, which is followed by a kill when it does not react; by a request in its run directory when its
    processes cannot be reached from here.

    Raises:
        RunError: the page is read-only, the run is a sample, or there is nothing to stop.
    """
    _may_act(path)
    from trainer import launch

    try:
        result = launch.stop(path)
    except RunError:
        if "stop" not in requests.answered_kinds(run_state(path).heartbeat):
            raise
        return f"asked by request {requests.ask(path, 'stop', via='page').id}: it runs where no signal reaches it"
    return str(getattr(result, "message", None) or result)


def resume(path: Path) -> str:
    """Go on from the last complete checkpoint; returns the new attempt, in words.

    Raises:
        RunError: the page is read-only, the run is still running, has no checkpoint, or is a sample.
    """
    _may_act(path)
    from trainer import launch

    launched = launch.resume(path)
    _look_anew(path)
    return f"attempt {launched.attempt} started"


def look_at_landscape(path: Path, arguments: list[str], asked: str) -> None:
    """Have the loss around a checkpoint computed, without waiting for it.

    Raises:
        RunError: the page is read-only, the run is a sample, or is being looked at already.
    """
    _may_act()
    if is_sample(path):
        raise RunError("This is a sample run without checkpoints. Look at the landscape of a training of your own.")
    from trainer.launch import looking

    looking.look(path.absolute(), arguments, asked)


def stop_looking(path: Path) -> None:
    """End such a computation; what it has found stays.

    Raises:
        RunError: the page is read-only.
    """
    _may_act()
    from trainer.launch import looking

    looking.stop_looking(path.absolute())


def begin_sweep(plan: Plan) -> str:
    """Begin a sweep in the first runs folder and return its id, without waiting for it.

    Raises:
        RunError: the page is read-only, or the sweep was refused.
    """
    _may_act()
    from trainer import sweep

    return sweep.begin(plan, launch_folder()).id


def stop_sweep(sweep_id: str) -> str:
    """Ask a sweep to end its trials and itself; returns what was done, in words.

    Raises:
        RunError: the page is read-only, or nobody would see the request.
    """
    _may_act()
    from trainer import sweep

    return sweep.ask_to_stop(sweep.open_sweep(launch_folder(), sweep_id))


def go_on_with_sweep(sweep_id: str) -> str:
    """Go on with a sweep that was stopped or interrupted; returns what was done, in words.

    Raises:
        RunError: the page is read-only, or there is nothing to go on with.
        ConfigError: the sweep's plan is refused.
    """
    _may_act()
    from trainer import sweep

    going = sweep.go_on(sweep.open_sweep(launch_folder(), sweep_id))
    return f"The sweep goes on: {len(going.trials)} of {going.planned} trials have begun."


def ask(path: Path, do: str, seen: int | None, **values: Any) -> requests.Request:
    """Ask the training at ``path`` for something, through its run directory.

    Args:
        do, values: see ``monitor.runfile.control.KINDS``.
        seen: how many requests the person knew of who asks.

    Raises:
        RunError: the page is read-only, the run is a sample or does not go on, the value is refused, or somebody else
            was first.
    """
    _may_act(path)
    return requests.ask(path, do, via="page", seen=seen, **values)


def try_fix(path: Path, plan: FixPlan, seen: int) -> str:
    """Start a child run that tries ``plan`` on an incident of the run at ``path``; returns the child's id.

    Args:
        seen: how many tries of the incident were in sight. A second click on the same sight, from another tab or
            because the page ran a callback twice, starts nothing and gives the same child.

    Raises:
        RunError: the page is read-only, or it was refused.
        ConfigError: the change does not fit the configuration.
    """
    _may_act(path)
    from app import fixes

    sight = ("fix", path, plan.experiment.key, plan.trouble.onset_step, seen)
    child = _once(sight, lambda: fixes.begin(path, plan).name)
    _look_anew(path)
    return child


def what_if(path: Path, incident: str, seen: int) -> str:
    """Try several changes on ``incident`` one after the other, in a process that outlives the page.

    Args:
        seen: as for :func:`try_fix`.

    Raises:
        RunError: the page is read-only, or no process could be started.
    """
    _may_act(path)
    return _once(("what-if", path, incident, seen), lambda: _begin_what_if(path, incident))


def _begin_what_if(path: Path, incident: str) -> str:
    from trainer.launch.local import child_environment

    words = [sys.executable, "-P", "-m", "app", "whatif", str(path), "--incident", incident]
    nothing = subprocess.DEVNULL
    try:
        started = subprocess.Popen(
            words, stdin=nothing, stdout=nothing, stderr=nothing, env=child_environment({}), start_new_session=True
        )
    except OSError as error:
        raise RunError(f"the what-if set could not be started: {error.strerror}.") from None
    threading.Thread(target=started.wait, name="what-if", daemon=True).start()  # no zombie under the page
    return "one change after the other is tried; each appears here when it begins"


def rewind(path: Path, step: int, changes: list[str], skip_batches: int, *, as_child: bool) -> str:
    """Go on from the checkpoint of ``step`` with changes; returns what was started, in words.

    Raises:
        RunError: the page is read-only, or it was refused.
        ConfigError: a change is refused.
    """
    _may_act(path)
    from app import fixes

    words = fixes.rewound(path, step, changes, skip_batches, as_child=as_child)
    _look_anew(path)
    return words.splitlines()[0]


def _once(sight: tuple[object, ...], act: Callable[[], str]) -> str:
    """Carry ``act`` out, or give what it gave within the last ``SAME_CLICK_S`` for the same ``sight``.

    Streamlit may run a button's callback twice when a fragment's own rerun falls into it: one click, two trainings.
    """
    with _ACTING:
        now = time.monotonic()
        for other in [one for one, (when, _) in _ACTED.items() if now - when > SAME_CLICK_S]:
            del _ACTED[other]
        if sight not in _ACTED:
            _ACTED[sight] = now, act()
        return _ACTED[sight][1]


def _look_anew(path: Path) -> None:
    """Something was done to the run at ``path``, and the page is to show it."""
    READERS.forget(path)
    ENGINE_STATES.forget(path)


def _may_act(path: Path | None = None) -> None:
    reason = read_only_reason()
    if reason:
        raise RunError(reason)
    if path is not None and is_sample(path):
        raise RunError("This is a sample run: it is for reading. Start a training of your own from the Launch page.")
