"""Logs of other tools on the command line: imported, or read by the doctor directly."""

from __future__ import annotations

import json
import math

import pytest

from tests.app.test_cli import gradiometer


@pytest.fixture
def log(tmp_path):
    """A nanoGPT log whose loss becomes NaN at step 1500."""
    lines = [
        f"iter {step}: loss {'nan' if step >= 1500 else format(3.0 - step / 1000, '.4f')}, time 20.00ms, mfu 30.00%"
        for step in range(0, 2000, 10)
    ]
    path = tmp_path / "train.log"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_doctor_reads_a_log_of_another_tool_and_leaves_nothing_behind(log):
    before = sorted(path.name for path in log.parent.iterdir())
    done = gradiometer("doctor", log)
    assert done.returncode == 1, done.stderr
    assert "loss -> train_loss" in done.stdout and "a row every 10 steps" in done.stdout
    assert "non-finite" in done.stdout and "1500" in done.stdout
    assert sorted(path.name for path in log.parent.iterdir()) == before


def test_the_doctors_json_says_how_the_log_was_read(log):
    report = json.loads(gradiometer("doctor", log, "--json").stdout)
    assert report["verdict"] == "incident" and report["run"]["path"] == str(log)
    assert report["import"]["names"] == ["loss -> train_loss", "time (ms) -> step_time_s (x0.001)"]
    assert report["import"]["own"] == ["mfu (%)"] and report["import"]["interval"] == 10


def test_several_trainings_of_one_file_are_told_one_by_one(tmp_path):
    path = tmp_path / "h.csv"
    falling = [3.0 - epoch / 50 for epoch in range(60)]
    losses = [falling, [*falling[:30], math.nan, math.nan]]
    rows = [f"{epoch},{loss}" for training in losses for epoch, loss in enumerate(training)]
    path.write_text("epoch,loss\n" + "\n".join(rows) + "\n")
    done = gradiometer("doctor", path, "--json")
    assert done.returncode == 1
    assert [run["verdict"] for run in json.loads(done.stdout)["runs"]] == ["healthy", "incident"]


def test_an_imported_log_is_a_run_like_others(log, tmp_path):
    runs = tmp_path / "runs"
    done = gradiometer("import", log, "--runs", runs)
    assert done.returncode == 0, done.stderr
    assert "loss -> train_loss" in done.stdout and "200 rows written" in done.stdout
    (row,) = json.loads(gradiometer("runs", "--runs", runs, "--json").stdout)
    assert row["task"] == "imported: text log" and row["last_step"] == 1990 and row["incidents"] == 1
    assert "nothing new" in gradiometer("import", log, "--runs", runs).stdout


@pytest.mark.parametrize("command", ["doctor", "import"])
def test_what_is_no_log_gets_one_clear_message(command, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here\n")
    done = gradiometer(command, tmp_path / "notes.txt")
    assert done.returncode == 2
    assert "no training metrics found" in done.stderr and "Traceback" not in done.stderr
