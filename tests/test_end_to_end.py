"""From a command in a terminal to the page: a real training, the doctor's exit status, the app showing the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from monitor.runfile.reader import open_run
from monitor.runfile.store import list_runs, run_state
from tests.app.conftest import listed
from tests.waiting import PATIENCE_S, until
from trainer.config import TrainConfig
from trainer.launch import is_running, resume, start, status, stop

ROOT = Path(__file__).resolve().parents[1]
TINY: dict[str, Any] = {
    "steps": 60,
    "batch_size": 8,
    "threads": 1,
    "task": {"seq_len": 32, "max_data_mib": 1.0},
    "model": {"n_layer": 2, "d_model": 32, "n_head": 2},
    "schedule": {"warmup_steps": 10},
    "evaluation": {"every_steps": 20, "batches": 2},
    "checkpoint": {"every_steps": 20},
    "monitor": {"landscape_every": 20, "landscape_share": 1.0},
}


def _run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m`` one of our modules, from a directory that is not the repository."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def _settings(values: dict[str, Any], prefix: str = "") -> list[str]:
    words: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict):
            words += _settings(value, f"{prefix}{key}.")
        else:
            words += ["--set", f"{prefix}{key}={json.dumps(value)}"]
    return words


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run, trained by the command a newcomer types."""
    folder = tmp_path_factory.mktemp("runs")
    done = _run("trainer", "--runs", str(folder), "--name", "end-to-end", *_settings(TINY))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _only_run(runs: Path) -> Path:
    (summary,) = list_runs(runs)
    return summary.path


def test_training_leaves_everything_that_it_measured(runs: Path) -> None:
    run = open_run(_only_run(runs))
    assert (run.state.word, run.last_step, run.problems) == ("finished", 60, ())
    loss = run.series("train_loss")
    assert loss.step.tolist() == list(range(1, 61))
    assert 5.0 < loss.value[0] < 6.2 and loss.value[-1] < loss.value[0] - 0.5  # ln 256 = 5.55 nats for a blank model
    assert run.layers("grad_norm_preclip").value.shape == (60, len(run.layers("grad_norm_preclip").names))
    assert run.series("val_loss").step.tolist() == [20, 40, 60]
    assert {sample.step for sample in run.landscape()} == {20, 40, 60}
    assert len(run.series("tokens_per_s")) == 60 and len(run.series("lr")) == 60
    assert run.checkpoints()[-1].step == 60 and run.checkpoints()[-1].complete


def test_doctor_calls_it_healthy_and_exits_with_0(runs: Path) -> None:
    done = _run("app.cli", "doctor", str(_only_run(runs)), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["version"] == 1 and report["verdict"] == "healthy" and report["steps"] == 60
    assert [one for one in report["findings"] if one["severity"] != "info"] == []


def test_list_of_runs_has_it(runs: Path) -> None:
    done = _run("app.cli", "runs", "--runs", str(runs), "--json")
    (row,) = json.loads(done.stdout)
    assert (row["name"], row["state"], row["last_step"], row["incidents"]) == ("end-to-end", "finished", 60, 0)


def test_page_shows_the_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIOMETER_RUNS", str(runs))
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60).run()
    assert not at.exception, at.exception
    assert "end-to-end" in [row["name"] for row in listed(at)]

    at.switch_page("views/run.py")
    at.query_params["run"] = _only_run(runs).name
    at.run()
    assert not at.exception, at.exception
    shown = " ".join(str(element.value) for element in [*at.title, *at.markdown, *at.caption, *at.metric])
    assert "end-to-end" in shown.replace("\\", "") and "finished" in shown


def test_killed_training_is_readable_shown_as_crashed_and_resumed(tmp_path: Path) -> None:
    config = TrainConfig.model_validate(
        {
            **TINY,
            "steps": 100_000,
            "name": "killed",
            "checkpoint": {"every_steps": 200, "keep_best": False},
            "monitor": {"landscape_every": None},
        }
    )
    run_dir = start(config, tmp_path).run_dir
    until(lambda: (open_run(run_dir).last_step or 0) > 210, "rows beyond the first checkpoint")
    trainer = json.loads((run_dir / "attempts" / "0000" / "attempt.json").read_text())["pid"]
    os.kill(trainer, signal.SIGKILL)
    until(lambda: not is_running(run_dir), "the end")

    assert run_state(run_dir).word == "crashed"
    assert "SIGKILL" in run_state(run_dir).reason
    killed = open_run(run_dir)
    assert killed.problems == ()
    steps = killed.series("train_loss").step
    assert steps.tolist() == list(range(1, len(steps) + 1)) and len(steps) > 210
    assert _run("app.cli", "doctor", str(run_dir)).returncode == 0
    saved = max(point.step for point in killed.checkpoints() if point.complete)
    assert saved >= 200 and saved % 200 == 0

    assert resume(run_dir).attempt == 1
    until(lambda: (open_run(run_dir).last_step or 0) > len(steps) + 5, "steps that the killed attempt never reached")
    stop(run_dir)
    until(lambda: not is_running(run_dir), "the end")
    assert status(run_dir).reason.startswith("asked to stop")
    run = open_run(run_dir)
    assert run.state.word == "stopped"
    assert (run.attempts[1].parent, run.attempts[1].resume_step) == (0, saved)
    line = run.series("train_loss").step
    assert line.tolist() == list(range(1, len(line) + 1))
    # Trained twice and kept, greyed: the steps between the checkpoint and the kill; none if it was killed right there.
    twice = list(range(saved + 1, len(steps) + 1))
    assert [piece.step.tolist() for piece in run.superseded("train_loss")] == ([twice] if twice else [])
