"""What is handed to Ray and what is made of its absence; tests/engines has the same on a real head."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.errors import RunError
from tests.trainer.launch.conftest import Desk
from trainer.config import with_values
from trainer.launch import JobState, engines, start, status, stop
from trainer.launch.engine import JobSpec
from trainer.launch.ray import address, entrypoint


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")


def test_every_word_of_the_job_is_one_word_for_the_shell(tmp_path: Path) -> None:
    run_dir = tmp_path / "a b$(touch pwned)'\"`id`;#"
    (run_dir / "attempts" / "0000").mkdir(parents=True)
    program = "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd(), os.environ['GIVEN']]))"
    spec = JobSpec(run_dir, 0, (), environment={"GIVEN": "x; $(touch pwned)"})
    line = entrypoint(spec, [sys.executable, "-c", program, "$(touch pwned)", "a b"])
    assert subprocess.run(["sh", "-c", line], cwd=tmp_path).returncode == 0  # the real supervisor
    printed = (run_dir / "attempts" / "0000" / "rank-00000" / "log.txt").read_text()
    assert json.loads(printed) == [["$(touch pwned)", "a b"], str(run_dir), "x; $(touch pwned)"]
    assert not list(tmp_path.rglob("pwned"))


def test_job_says_nothing_of_the_environment_that_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "hush")
    assert "hush" not in entrypoint(JobSpec(Path("/runs/x"), 0, ()), ["python"])


def test_no_head_is_refused_with_its_address_and_leaves_no_run(desk: Desk, nobody: None) -> None:
    assert "no Ray head answers: http://127.0.0.1:9" in (engines()["ray"] or "")
    with pytest.raises(RunError, match=r"launch\.engine = ray: no Ray head answers.*RAY_API_SERVER_ADDRESS"):
        start(with_values(desk.config, {"launch.engine": "ray"}), desk.runs)
    assert not desk.runs.exists()


def test_address_comes_from_the_environment_and_never_from_the_run(
    desk: Desk, nobody: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = desk.start("finishes")
    desk.until_ended(run_dir)
    folder = run_dir / "attempts" / "0000"
    (folder / "launch.json").write_text('{"engine": "ray", "time": 0, "address": "http://127.0.0.1:1"}')
    (folder / "job.json").write_text('{"engine": "ray", "job": "x", "time": 0, "address": "http://127.0.0.1:1"}')
    assert status(run_dir).state is JobState.SUCCEEDED
    (folder / "exit.json").unlink()
    now = status(run_dir)
    assert now.state is JobState.RUNNING and "Ray does not answer: http://127.0.0.1:9" in now.reason
    with pytest.raises(RunError, match="cannot be stopped: Ray does not answer"):
        stop(run_dir)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "head:8265/")
    assert address() == "http://head:8265"
