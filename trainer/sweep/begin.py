"""Begin a sweep, stop it, go on with it: each returns at once; a detached process (``driver.py``) does the work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from monitor.errors import ConfigError, RunError
from monitor.runfile.format import atomic_write_json, exclusive_write_json, new_run_id
from monitor.runfile.identity import process_identity
from trainer.launch.local import child_environment
from trainer.launch.processes import Identity
from trainer.sweep.plan import Plan, read_plan
from trainer.sweep.record import DRIVER_FILE, LOG_FILE, PLAN_FILE, STOP_FILE, Sweep, open_sweep, sweep_folder
from trainer.sweep.samplers import require_packages


def begin(plan: Plan, runs_dir: str | os.PathLike[str], *, sweep_id: str | None = None) -> Sweep:
    """Write the plan down and start the process that carries it out.

    A caller that may be asked twice for the same sweep (two tabs, a double click) gives the same ``sweep_id`` both
    times: the second call is refused.

    Raises:
        RunError: the id is taken, a package that the sampler needs is missing, or the folder cannot be written.
    """
    require_packages(plan.sampler, plan.pruner)
    folder = sweep_folder(runs_dir, sweep_id or new_run_id(plan.name))
    record = {"id": folder.name, "created": time.time()} | plan.record()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        exclusive_write_json(folder / PLAN_FILE, record)
    except FileExistsError:
        raise RunError(f"sweep {folder.name} exists already. Nothing was done.") from None
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}. Choose a folder you can write to.") from None
    _start(folder, plan)
    return open_sweep(runs_dir, folder.name)


def go_on(sweep: Sweep, task: str | None = None) -> Sweep:
    """Look after a sweep again that was stopped, or whose process has died; what was training goes on being followed.

    Args:
        task: names the task of the plan when that is one of the user's own, which is code: a file does not say so.

    Raises:
        RunError: there is nothing left to do, it is looked after already, or runs on another host.
        ConfigError: its plan is refused.
    """
    if sweep.state in ("running", "stopping", "elsewhere", "finished"):
        words = "runs on another host" if sweep.state == "elsewhere" else f"is {sweep.state}"
        raise RunError(f"sweep {sweep.id} {words}. Only one that was stopped or interrupted can go on.")
    plan = read_plan(sweep.record, str(sweep.folder / PLAN_FILE))
    if plan.base.task.is_own and task != plan.base.task.kind:
        raise ConfigError(
            f"sweep {sweep.id} trains {plan.base.task.kind}, which is code outside this trainer, and a folder is not "
            f"trusted to name code. Name it yourself to go on: --task {plan.base.task.kind}"
        )
    require_packages(plan.sampler, plan.pruner)
    (sweep.folder / STOP_FILE).unlink(missing_ok=True)
    _start(sweep.folder, plan)
    return open_sweep(sweep.runs_dir, sweep.id)


def ask_to_stop(sweep: Sweep) -> str:
    """Ask for an end: no new trials; the running ones save a checkpoint and stop. Returns what was done, in words.

    Raises:
        RunError: nobody would see the request.
    """
    if sweep.state == "stopping":
        return "It has been asked to stop already."
    if sweep.state == "interrupted":
        raise RunError(
            f"nobody looks after sweep {sweep.id}, so nobody would stop it. Go on with it first "
            f"(gradiometer sweep resume {sweep.id}), or stop its runs one by one."
        )
    if sweep.state in ("finished", "stopped"):
        raise RunError(f"sweep {sweep.id} is {sweep.state}: nothing is left to stop.")
    try:
        exclusive_write_json(sweep.folder / STOP_FILE, {"time": time.time()})
    except FileExistsError:
        return "It has been asked to stop already."
    return "Asked to stop. Running trials save a checkpoint and end; this takes a few seconds."


def _start(folder: Path, plan: Plan) -> None:
    """The process that looks after the sweep, in a session of its own."""
    words = [sys.executable, "-P", "-m", "trainer.sweep.driver", str(folder)]
    words += ["--task", plan.base.task.kind] if plan.base.task.is_own else []
    try:
        with (folder / LOG_FILE).open("ab") as log:
            driver = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=child_environment({}),
                start_new_session=True,
            )
    except OSError as error:
        raise RunError(f"the process that looks after sweep {folder.name} could not be started: {error}.") from error
    threading.Thread(target=driver.wait, name=f"reap-{driver.pid}", daemon=True).start()
    # It says so itself after a second of imports; until then the page must not find the sweep abandoned.
    with suppress(psutil.NoSuchProcess):
        identity = Identity.of(driver.pid)
        whose = {"pid": identity.pid, "pid_create_time": identity.create_time}
        atomic_write_json(folder / DRIVER_FILE, process_identity() | whose)
