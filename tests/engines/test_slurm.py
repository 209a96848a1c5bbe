"""Trainings as Slurm jobs, on a real cluster of two nodes on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.errors import RunError
from monitor.runfile.reader import open_run
from monitor.runfile.store import run_state
from tests.engines.cluster import Cluster
from tests.engines.runs import record, until_step, wait_for
from tests.trainer.launch.conftest import Desk, stand_in
from tests.trainer.launch.test_real_trainer import TINY
from tests.waiting import until
from trainer.config import TrainConfig, with_values
from trainer.launch import JobState, log_path, resume, start, status, statuses, stop
from trainer.launch.engine import Handle
from trainer.launch.slurm import SlurmEngine

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).resolve().parents[2]


def job_of(run_dir: Path) -> str:
    newest = max((run_dir / "attempts").glob("*/job.json"))
    return json.loads(newest.read_text())["job"]


@pytest.fixture
def small(cluster: Cluster, tmp_path: Path) -> Iterator[Desk]:
    """Starts jobs of the small stand-in trainer, in a folder whose name would be many things to a shell."""
    desk = Desk(tmp_path / "my runs %j $(touch pwned) 'q\" & #x")
    desk.config = with_values(desk.config, {"launch.engine": "slurm"})
    yield desk
    cluster.end_jobs()
    assert not list(tmp_path.rglob("pwned"))


def test_two_nodes_launched_followed_stopped_queued_again_and_resumed(cluster: Cluster, tmp_path: Path) -> None:
    values = {"launch.engine": "slurm", "launch.nodes": 2, "parallel.processes": 2, "launch.time_limit_min": 60}
    config = with_values(TrainConfig.model_validate(TINY), values)
    run_dir = start(config, tmp_path / "runs").run_dir
    until_step(run_dir, 0, 12)
    job = job_of(run_dir)
    now = wait_for(run_dir, JobState.RUNNING)
    assert now.reason == f"job {job} runs on n[1-2]"
    assert record(run_dir, "attempt.json")["world_size"] == 2
    with pytest.raises(RunError, match="already running"):
        resume(run_dir)
    for rank in (0, 1):  # each prints into its own
        log = log_path(run_dir, rank=rank)
        assert log is not None and log.parent.name == f"rank-{rank:05d}" and log.exists()

    assert stop(run_dir).signalled
    wait_for(run_dir, JobState.CANCELLED)
    saved = record(run_dir, "exit.json")
    assert saved["outcome"] == "stopped" and saved["reason"].startswith("asked to stop by"), saved
    assert max(point.step for point in open_run(run_dir).checkpoints() if point.complete) == saved["step"]

    resume(run_dir)
    until_step(run_dir, 1, saved["step"] + 5)
    assert record(run_dir, "attempt.json", 1)["resume_step"] == saved["step"]
    assert job_of(run_dir) != job
    job = job_of(run_dir)

    cluster.ask("scancel", "--signal=USR1", "--batch", job)  # what Slurm sends when the time limit is near
    assert "queued again" in wait_for(run_dir, JobState.REQUEUED).reason
    with pytest.raises(RunError, match="already requeued"):
        resume(run_dir)
    saved = record(run_dir, "exit.json", 1)
    assert saved["outcome"] == "stopped", saved
    cluster.start_now(job)
    until_step(run_dir, 2, saved["step"] + 5)
    assert record(run_dir, "attempt.json", 2)["resume_step"] == saved["step"]
    assert job_of(run_dir) == job and wait_for(run_dir, JobState.RUNNING).attempt == 2

    checkpoint = max(point.step for point in open_run(run_dir).checkpoints() if point.complete)
    cluster.ask("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    wait_for(run_dir, JobState.REQUEUED)
    cluster.ask("scontrol", "update", "NodeName=n2", "State=RESUME")
    cluster.start_now(job)
    until_step(run_dir, 3, checkpoint + 5)
    assert record(run_dir, "attempt.json", 3)["resume_step"] >= checkpoint
    assert record(run_dir, "exit.json", 2)["outcome"] in ("crashed", "stopped")
    lines = (log_path(run_dir) or Path()).read_text()
    assert "going on as attempt 3" in lines or "resumed from" in lines

    assert stop(run_dir).signalled
    wait_for(run_dir, JobState.CANCELLED)
    steps = open_run(run_dir).series("train_loss").step.tolist()
    assert steps == list(range(1, len(steps) + 1))  # one line through all four attempts, no step missing


def test_job_that_is_cancelled_by_somebody_else(small: Desk, cluster: Cluster) -> None:
    run_dir = small.start()
    small.until_training(run_dir)
    waiting = start(with_values(small.config, {"launch.partition": "closed"}), small.runs, _command=stand_in("trains"))
    assert "PartitionDown" in wait_for(waiting.run_dir, JobState.PENDING).reason or True
    for one in (run_dir, waiting.run_dir):
        cluster.ask("scancel", job_of(one))
    assert wait_for(run_dir, JobState.CANCELLED, JobState.FAILED).reason
    ended = wait_for(waiting.run_dir, JobState.CANCELLED)
    assert ended.reason == f"the job was cancelled, before it began (Slurm job {job_of(waiting.run_dir)})"
    assert run_state(waiting.run_dir).word == "stopped"


def test_waiting_job_is_pending_and_stopping_takes_it_out_of_the_queue(small: Desk, cluster: Cluster) -> None:
    config = with_values(small.config, {"launch.partition": "closed"})
    run_dir = start(config, small.runs, _command=stand_in("trains")).run_dir
    until(lambda: "PartitionDown" in status(run_dir).reason, "the reason for waiting")
    assert status(run_dir).state is JobState.PENDING
    assert "taken out of the queue" in stop(run_dir).message
    wait_for(run_dir, JobState.CANCELLED)
    assert not stop(run_dir).signalled


def test_controller_that_is_gone_makes_nothing_lost(small: Desk, cluster: Cluster) -> None:
    run_dir, other = small.start(), small.start("finishes")
    small.until_training(run_dir)
    wait_for(other, JobState.SUCCEEDED)
    cluster.stop_controller()
    try:
        until(lambda: "Slurm does not answer" in status(run_dir).reason, "the news about the controller")
        now = status(run_dir)
        assert now.state is JobState.RUNNING
        # as last heard, or, if the controller's last answer on its way down was an empty list, as the run shows
        assert re.search("runs on .* when Slurm was last heard|had begun", now.reason)
        assert "Unable to contact slurm controller" in now.reason
        assert status(other).state is JobState.SUCCEEDED
        fresh = SlurmEngine()  # of an app that was started meanwhile: it has seen no job at all
        until(lambda: "does not answer: slurm" in fresh.poll([Handle(run_dir, 0)])[0].reason, "its first answer")
        assert fresh.poll([Handle(run_dir, 0)])[0].state is JobState.RUNNING
        with pytest.raises(RunError, match="cannot be stopped: Slurm does not answer"):
            stop(run_dir)
        with pytest.raises(RunError, match=r"launch\.engine = slurm: Slurm does not answer.*Usable here: local"):
            small.launch()
    finally:
        cluster.start_controller()
    until(lambda: "does not answer" not in status(run_dir).reason, "an answer")
    assert status(run_dir).state is JobState.RUNNING
    stop(run_dir)
    wait_for(run_dir, JobState.CANCELLED)


def test_job_that_slurm_has_forgotten(small: Desk, cluster: Cluster) -> None:
    run_dir = small.start("finishes")
    wait_for(run_dir, JobState.SUCCEEDED)
    number = job_of(run_dir)
    until(lambda: not cluster.ask("scontrol", "show", "job", number), "the job's being forgotten")
    assert status(run_dir).state is JobState.SUCCEEDED  # by the exit record
    (run_dir / "attempts" / "0000" / "exit.json").unlink()
    assert f"knows nothing of job {number} any more" in wait_for(run_dir, JobState.LOST).reason
    assert not stop(run_dir).signalled


def test_job_of_another_run_is_neither_believed_nor_stopped(small: Desk) -> None:
    mine = small.start()
    small.until_training(mine)
    forged = small.start("finishes")
    wait_for(forged, JobState.SUCCEEDED)
    path = forged / "attempts" / "0000" / "job.json"
    path.write_text(json.dumps(record(forged, "job.json") | {"job": job_of(mine)}))
    assert "is not of this run" in wait_for(forged, JobState.LOST).reason
    with pytest.raises(RunError, match=r"is not of this run.*Nothing was stopped"):
        stop(forged)
    for nonsense in ("1 --user=root", "-1", 17, None, "٣"):
        path.write_text(json.dumps({"job": nonsense, "time": time.time()}))
        assert not stop(forged).signalled
    assert status(mine).state is JobState.RUNNING
    stop(mine)
    wait_for(mine, JobState.CANCELLED)


def test_sbatch_that_refuses_is_quoted(small: Desk) -> None:
    config = with_values(small.config, {"launch.partition": "nowhere"})
    with pytest.raises(RunError, match=r"could not be submitted: .*Invalid partition"):
        start(config, small.runs, run_id="refused", _command=stand_in("trains"))
    assert status(small.runs / "refused").state is JobState.FAILED


def test_deaf_trainer_is_killed_after_the_grace_time(small: Desk) -> None:
    run_dir = small.start("deaf", grace_s=0.5)
    small.until_training(run_dir)
    stop(run_dir)
    wait_for(run_dir, JobState.CANCELLED)
    assert record(run_dir, "exit.json")["reason"].startswith("killed 0.5 s after it was asked to stop")


def test_one_squeue_for_all_runs_at_most_every_five_seconds(
    small: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [small.start("finishes") for _ in range(3)]
    for run_dir in runs:
        wait_for(run_dir, JobState.SUCCEEDED)
    calls = tmp_path / "bin" / "calls"
    calls.parent.mkdir()
    shim = calls.with_name("squeue")
    shim.write_text(f'#!/bin/bash\necho "$@" >> "{calls}"\nexec {shutil.which("squeue")} "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{calls.parent}{os.pathsep}{os.environ['PATH']}")
    engine = SlurmEngine()
    began = time.monotonic()
    for _ in range(20):
        states = engine.poll([Handle(run_dir, 0) for run_dir in runs])
        assert [one.state for one in states] == [JobState.SUCCEEDED] * 3
    assert len(calls.read_text().splitlines()) <= 1 + (time.monotonic() - began) // 5
    assert [one.state for one in statuses(runs)] == [JobState.SUCCEEDED] * 3


def test_command_of_the_readme_hands_a_training_over(cluster: Cluster, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = [one for one in readme.splitlines() if one.startswith("gradiometer train --engine slurm")]
    small = [
        "--runs",
        str(tmp_path),
        "--set",
        "launch.partition=closed",
    ]  # where it waits: that it trains is seen above
    words = [sys.executable, "-m", "app", *line.split()[1:], *small]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (run_dir,) = tmp_path.iterdir()
    assert f"gradiometer stop {run_dir}" in done.stdout and "pending" in done.stdout
    assert "TimeLimit=01:00:00" in cluster.ask("scontrol", "show", "job", job_of(run_dir))
    stopped = [sys.executable, "-m", "app", "stop", str(run_dir)]
    said = subprocess.run(stopped, capture_output=True, text=True, timeout=120, cwd=ROOT).stdout
    assert "taken out of the queue" in said
    wait_for(run_dir, JobState.CANCELLED)
