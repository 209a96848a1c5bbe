"""Trainings as jobs of a real Ray head on this machine."""

from __future__ import annotations

import json
import time

import pytest

from monitor.errors import RunError
from monitor.runfile.reader import open_run
from tests.engines.ray_head import RayHead
from tests.engines.runs import record, until_step, wait_for
from tests.trainer.launch.conftest import Desk, processes_of
from tests.trainer.launch.test_real_trainer import TINY
from tests.waiting import until
from trainer.config import TrainConfig, with_values
from trainer.launch import JobState, engines, resume, start, status, stop
from trainer.launch.launcher import ENGINES
from trainer.launch.ray import RayEngine

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def small(ray_head: RayHead, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Starts jobs of the small stand-in trainer, in a folder whose name would be many things to a shell."""
    desk.runs = desk.runs.with_name("my runs $(touch pwned) 'q\" & #x")
    desk.config = with_values(desk.config, {"launch.engine": "ray"})
    monkeypatch.setitem(ENGINES, "ray", RayEngine())
    return desk


def test_two_processes_launched_followed_stopped_and_resumed(small: Desk) -> None:
    assert engines()["ray"] is None
    config = with_values(TrainConfig.model_validate(TINY), {"launch.engine": "ray", "parallel.processes": 2})
    run_dir = start(config, small.runs).run_dir
    until_step(run_dir, 0, 12)
    assert status(run_dir).state is JobState.RUNNING
    assert record(run_dir, "attempt.json")["world_size"] == 2
    with pytest.raises(RunError, match="already running"):
        resume(run_dir)
    assert stop(run_dir).signalled
    wait_for(run_dir, JobState.CANCELLED)
    saved = record(run_dir, "exit.json")
    assert (saved["outcome"], saved["reason"]) == ("stopped", "asked to stop by SIGTERM")

    resume(run_dir, [f"steps={saved['step'] + 5}"])
    wait_for(run_dir, JobState.SUCCEEDED)
    assert record(run_dir, "attempt.json", 1)["resume_step"] == saved["step"]
    steps = open_run(run_dir).series("train_loss").step.tolist()
    assert steps == list(range(1, saved["step"] + 6))
    until(lambda: not processes_of(run_dir), "the end of its processes")


def test_deaf_trainer_is_killed_by_its_supervisor_and_not_by_ray(small: Desk) -> None:
    run_dir = small.start("deaf", grace_s=5)  # Ray's own patience is 3 s unless the job says otherwise
    small.until_training(run_dir)
    stop(run_dir)
    wait_for(run_dir, JobState.STOPPING)
    wait_for(run_dir, JobState.CANCELLED)
    assert record(run_dir, "exit.json")["reason"].startswith("killed 5 s after it was asked to stop")
    assert not stop(run_dir).signalled
    assert not list(small.runs.parent.rglob("pwned"))


def test_job_of_another_run_is_neither_believed_nor_stopped(small: Desk) -> None:
    mine, forged = small.start(), small.start("finishes")
    small.until_training(mine)
    wait_for(forged, JobState.SUCCEEDED)
    until(lambda: not processes_of(forged), "the end of its supervisor, which would write down another end")
    folder = forged / "attempts" / "0000"
    (folder / "exit.json").unlink()
    for name in (record(mine, "job.json")["job"], "never-submitted"):
        (folder / "job.json").write_text(json.dumps({"engine": "ray", "job": name, "time": time.time() - 3600}))
        assert "knows no job" in wait_for(forged, JobState.LOST).reason
        assert not stop(forged).signalled
    (folder / "job.json").write_text(json.dumps({"engine": "ray", "job": "../../elsewhere", "time": 0}))
    assert not stop(forged).signalled
    assert status(mine).state is JobState.RUNNING
    stop(mine)
    wait_for(mine, JobState.CANCELLED)


def test_head_that_does_not_answer_makes_nothing_lost(small: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = small.start()
    small.until_training(run_dir)
    with monkeypatch.context() as away:
        away.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
        now = status(run_dir)
        assert now.state is JobState.RUNNING and "Ray does not answer: http://127.0.0.1:9" in now.reason
        with pytest.raises(RunError, match="cannot be stopped: Ray does not answer"):
            stop(run_dir)
    assert "does not answer" not in status(run_dir).reason
    stop(run_dir)
    wait_for(run_dir, JobState.CANCELLED)
