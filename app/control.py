"""What the page may do to trainings: start, stop, resume. Refused here, not only by a greyed button."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from app.data import READERS, is_sample, launch_folder
from app.web import LOOPBACK
from monitor.errors import RunError

if TYPE_CHECKING:
    from trainer.config import TrainConfig
    from trainer.sweep import Plan


def read_only_reason() -> str | None:
    """Why this page only shows; None when it may act.

    A server that listens beyond this machine has no way yet to tell who is asking, so it acts for nobody.
    """
    address = st.get_option("server.address")
    if address in LOOPBACK:
        return None
    where = f"on {address}" if address else "on every interface"
    return (
        f"Read-only: the server listens {where}. Start it with --server.address 127.0.0.1 to start and stop trainings."
    )


def start(config: TrainConfig) -> str:
    """Start a training in the first runs folder and return its run id, without waiting for it.

    Raises:
        RunError: the page is read-only, or the launch was refused.
    """
    _may_act()
    from trainer import launch

    return launch.start(config, launch_folder()).run_id


def stop(path: Path) -> str:
    """Ask the training at ``path`` to save a checkpoint and end; returns what was done, in words.

    Raises:
        RunError: the page is read-only, or there is nothing to stop.
    """
    _may_act()
    from trainer import launch

    result = launch.stop(path)
    return str(getattr(result, "message", None) or result)


def resume(path: Path) -> str:
    """Go on from the last complete checkpoint; returns the new attempt, in words.

    Raises:
        RunError: the page is read-only, the run is still running, has no checkpoint, or is a sample.
    """
    _may_act()
    if is_sample(path):
        raise RunError("This is a sample run: it is for reading. Start a training of your own from the Launch page.")
    from trainer import launch

    launched = launch.resume(path)
    READERS.forget(path)
    return f"attempt {launched.attempt} started"


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


def _may_act() -> None:
    reason = read_only_reason()
    if reason:
        raise RunError(reason)
