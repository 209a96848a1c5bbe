"""The launcher over the real trainer: torch, checkpoints and, for two processes, torchrun."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from monitor.runfile.reader import open_run
from monitor.runfile.store import run_state
from tests.trainer.launch.conftest import Desk, processes_of
from tests.waiting import until
from trainer.config import TrainConfig, with_values
from trainer.launch import JobState, log_path, resume, start, status, stop

TINY: dict[str, Any] = {
    "steps": 100_000,
    "batch_size": 4,
    "threads": 1,
    "task": {"seq_len": 16, "max_data_mib": 0.5},
    "model": {"n_layer": 1, "d_model": 16, "n_head": 2},
    "evaluation": {"every_steps": None, "batches": 1},
    "checkpoint": {"every_steps": 10},
    "monitor": {"landscape_every": None},
}


def _until_step(run_dir: Path, step: int) -> None:
    def look() -> bool:
        assert status(run_dir).running, _log(run_dir)
        return (run_state(run_dir).step or 0) >= step

    until(look, f"step {step}")


def _log(run_dir: Path) -> str:
    path = log_path(run_dir)
    assert path is not None
    return path.read_text()


def _exit(run_dir: Path, attempt: int) -> dict[str, Any]:
    return json.loads((run_dir / "attempts" / f"{attempt:04d}" / "exit.json").read_text())


def test_stop_saves_and_resume_trains_to_the_end(desk: Desk) -> None:
    run_dir = start(TrainConfig.model_validate(TINY), desk.runs).run_dir
    _until_step(run_dir, 12)
    stop(run_dir)
    desk.until_ended(run_dir)
    stopped = _exit(run_dir, 0)
    assert stopped["outcome"] == "stopped" and run_state(run_dir).word == "stopped"
    saved = stopped["step"]
    assert max(point.step for point in open_run(run_dir).checkpoints() if point.complete) == saved

    resume(run_dir, [f"steps={saved + 5}"])
    desk.until_ended(run_dir)
    assert status(run_dir).state is JobState.SUCCEEDED, _log(run_dir)
    run = open_run(run_dir)
    assert [(attempt.number, attempt.parent, attempt.resume_step) for attempt in run.attempts][1] == (1, 0, saved)
    assert run.attempts[1].overrides == {"steps": saved + 5}
    assert run.series("train_loss").step.tolist() == list(range(1, saved + 6))


def test_stop_while_torch_is_imported_is_before_the_first_step(desk: Desk) -> None:
    run_dir = start(TrainConfig.model_validate(TINY), desk.runs).run_dir
    until(lambda: status(run_dir).state is JobState.RUNNING, "the trainer's process")
    stop(run_dir)
    desk.until_ended(run_dir)
    ended = _exit(run_dir, 0)
    assert ended["outcome"] == "stopped" and "before the first step" in ended["reason"], ended


def test_two_processes_are_stopped_together_and_killed_together(desk: Desk) -> None:
    config = with_values(TrainConfig.model_validate(TINY), {"parallel.processes": 2, "checkpoint.every_steps": None})
    run_dir = start(config, desk.runs).run_dir
    _until_step(run_dir, 3)
    assert len(processes_of(run_dir)) >= 4  # supervisor, torchrun, two ranks
    stop(run_dir)
    desk.until_ended(run_dir)
    assert _exit(run_dir, 0)["outcome"] == "stopped", _log(run_dir)
    assert processes_of(run_dir) == []

    resume(run_dir)
    saved = _exit(run_dir, 0)["step"]
    _until_step(run_dir, saved + 2)
    torchrun = json.loads((run_dir / "attempts/0001/supervisor.json").read_text())["child_pid"]
    os.kill(torchrun, signal.SIGKILL)  # its workers lead sessions of their own
    desk.until_ended(run_dir)
    assert _exit(run_dir, 1)["outcome"] == "crashed" and _exit(run_dir, 1)["signal"] == 9
    assert processes_of(run_dir) == []
