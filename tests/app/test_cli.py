"""The command line, as a user types it: real processes, exit statuses, and messages instead of tracebacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit

ROOT = Path(__file__).resolve().parents[2]


def gradiometer(*words: object, cwd: Path = ROOT, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *map(str, words)],
        cwd=cwd,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def make_run(runs: Path, name: str, losses: list[float]) -> Path:
    """A finished run with these losses, one a step."""
    run_dir = create_run(runs, name=name)
    attempt = begin_attempt(run_dir, planned_steps=len(losses))
    writer = RankWriter(run_dir, attempt)
    for step, loss in enumerate(losses, start=1):
        writer.scalars(step, 1.7e9 + step, {"train_loss": loss, "grad_norm_preclip": 1.0})
    writer.close()
    write_exit(run_dir, attempt, outcome="finished", step=len(losses), reason="all steps done")
    return run_dir


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs", "calm", [3.0 - 0.001 * step for step in range(200)])


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs", "nan", [3.0 - 0.001 * step for step in range(150)] + [float("nan")] * 5)


def test_doctor_of_a_healthy_run_exits_0(healthy):
    done = gradiometer("doctor", healthy, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["version"] == 1
    assert report["verdict"] == "healthy"
    assert report["steps"] == 200


def test_doctor_of_a_broken_run_exits_1_and_names_the_step(broken):
    done = gradiometer("doctor", broken, "--json")
    assert done.returncode == 1, done.stderr
    finding = json.loads(done.stdout)["findings"][0]
    assert (finding["id"], finding["onset_step"]) == ("non-finite", 151)


def test_doctor_speaks_to_people(broken):
    done = gradiometer("doctor", broken)
    assert done.returncode == 1
    assert "151" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_doctor_finds_a_run_by_its_id_in_the_runs_folder(broken):
    done = gradiometer("doctor", broken.name, "--runs", broken.parent, "--json")
    assert done.returncode == 1, done.stderr


@pytest.mark.parametrize("make", ["missing", "empty folder", "file", "garbage run.json"])
def test_unreadable_input_is_one_message_and_exit_status_2(tmp_path, make):
    path = tmp_path / "thing"
    if make == "empty folder":
        path.mkdir()
    elif make == "file":
        path.write_text("hello")
    elif make == "garbage run.json":
        path.mkdir()
        (path / "run.json").write_bytes(b"\x00\xff{")
    done = gradiometer("doctor", path)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("gradiometer: ")
    assert "thing" in done.stderr
    assert "Traceback" not in done.stderr


def test_runs_lists_state_loss_and_incidents(healthy, broken):
    done = gradiometer("runs", "--runs", healthy.parent, "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["calm"]["state"] == "finished"
    assert rows["calm"]["incidents"] == 0
    assert rows["calm"]["last_step"] == 200
    assert rows["calm"]["last_loss"] == pytest.approx(3.0 - 0.199)
    assert rows["nan"]["incidents"] >= 1
    assert rows["nan"]["last_loss"] == "NaN"


def test_runs_as_a_table_shows_every_run(healthy, broken):
    done = gradiometer("runs", "--runs", healthy.parent)
    assert done.returncode == 0, done.stderr
    assert healthy.name in done.stdout
    assert broken.name in done.stdout


def test_runs_of_an_empty_folder_says_what_to_type(tmp_path):
    done = gradiometer("runs", "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gradiometer train" in done.stdout


@pytest.mark.parametrize("command", ["resume", "stop"])
def test_acting_on_a_run_that_is_not_there_is_one_message(tmp_path, command):
    done = gradiometer(command, tmp_path / "no-such-run")
    assert done.returncode == 2
    assert "no-such-run" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_configuration_value_is_refused_with_what_is_accepted(tmp_path):
    done = gradiometer("train", "--runs", tmp_path, "--set", "schedule.kind=cosin")
    assert done.returncode == 2
    assert "cosin" in done.stderr
    assert "cosine" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_name_from_outside_is_not_markup(tmp_path):
    make_run(tmp_path, "calm", [1.0] * 20)
    (run_dir,) = tmp_path.iterdir()
    (run_dir / "meta.json").write_text(json.dumps({"name": "[red]x[/red]", "tags": ["[link=http://x]"]}))
    done = gradiometer("runs", "--runs", tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_unknown_preset_is_refused_with_the_known_ones(tmp_path):
    done = gradiometer("train", "--runs", tmp_path, "--preset", "quik")
    assert done.returncode == 2
    assert "quick" in done.stderr
    assert "Traceback" not in done.stderr
