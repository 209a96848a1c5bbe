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


def test_doctor_says_what_of_a_damaged_run_it_could_not_read(healthy):
    segment = next(healthy.glob("attempts/0000/rank-00000/scalars-*.arrows"))
    os.truncate(segment, segment.stat().st_size - 100)
    done = gradiometer("doctor", healthy, "--json")
    assert json.loads(done.stdout)["steps"] < 200
    assert segment.name in done.stderr
    assert "when it was finished" in done.stderr


def test_doctor_does_not_bury_its_answer_under_a_file_of_noise(healthy):
    events = next(healthy.glob("attempts/0000/rank-00000/events-*.jsonl"), None) or (
        healthy / "attempts/0000/rank-00000/events-000000.jsonl"
    )
    with events.open("ab") as file:
        file.write(b"\xff no event\n" * 30)
    told = gradiometer("doctor", healthy).stderr.splitlines()
    assert len(told) < 12 and "more; `gradiometer report PATH` names them" in told[-1], told
    assert gradiometer("report", healthy).stdout.count("events-000000.jsonl, byte") >= 30


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


def test_runs_are_searched_and_limited_and_it_says_so(healthy, broken):
    runs = ("--runs", healthy.parent, "--json")
    done = gradiometer("runs", *runs, "--search", "loss:nan steps>100")
    assert [row["name"] for row in json.loads(done.stdout)] == ["nan"]
    done = gradiometer("runs", *runs, "--limit", 1, "--no-incidents")
    (row,) = json.loads(done.stdout)
    assert (row["id"], row["incidents"]) == (max(healthy.name, broken.name), None)
    assert done.stderr == "1 of 2 runs shown, the newest; --limit 0 shows all.\n"
    done = gradiometer("runs", "--runs", healthy.parent, "--search", "lrr>1")
    assert (done.returncode, done.stdout) == (0, "")
    assert "none of 2 runs matches 'lrr>1'; no configuration here has lrr" in done.stderr


def test_a_query_that_is_not_understood_is_one_line_with_what_is_accepted(healthy):
    done = gradiometer("runs", "--runs", healthy.parent, "--search", "state:runing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "running, paused, pending, requeued, finished" in done.stderr
    refused = gradiometer("runs", "--runs", healthy.parent, "--tree", "--search", "x")
    assert refused.returncode == 2 and "--tree shows all runs" in refused.stderr


def test_the_help_has_the_query_language():
    done = gradiometer("runs", "--help")
    assert done.returncode == 0, done.stderr
    assert "state:running" in done.stdout and "lr>=1e-3" in done.stdout and "--limit" in done.stdout


def test_a_control_code_in_a_folders_name_does_not_reach_the_terminal(healthy):
    healthy.rename(healthy.parent / "red\x1b[31m\nrun")
    done = gradiometer("runs", "--runs", healthy.parent)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and len(done.stdout.splitlines()) == 2


def test_a_name_that_is_no_text_is_listed_with_its_problem(healthy):
    (healthy.parent / "not-\udcff-text").mkdir()
    for words in ((), ("--json",)):
        done = gradiometer("runs", "--runs", healthy.parent, *words)
        assert done.returncode == 0, done.stderr
        assert "not UTF-8" in done.stdout and healthy.name in done.stdout


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


def test_compact_merges_then_says_that_nothing_is_left(healthy):
    done = gradiometer("compact", healthy.name, "--runs", healthy.parent, "--remove")
    assert done.returncode == 0, done.stderr
    assert "scalars: 1 segments, 200 rows" in done.stdout
    assert list(healthy.rglob("scalars-*.arrows")) == []
    assert json.loads(gradiometer("doctor", healthy, "--json").stdout)["steps"] == 200
    again = gradiometer("compact", healthy)
    assert again.returncode == 0
    assert "nothing was left to merge" in again.stdout


def test_a_run_that_has_not_ended_is_not_compacted(tmp_path):
    run_dir = create_run(tmp_path, name="new")
    begin_attempt(run_dir)
    done = gradiometer("compact", run_dir)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Compact it when it has ended" in done.stderr


def test_export_names_its_files_and_overwrites_none(healthy, tmp_path):
    done = gradiometer("export", healthy, "--to", "csv", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.splitlines()]
    assert [file.name for file in files] == ["scalars.csv", "system.csv", "events.jsonl"]
    assert len(files[0].read_text().splitlines()) == 201
    again = gradiometer("export", healthy, "--to", "csv", "--out", tmp_path / "out")
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "exists already" in again.stderr


def test_export_goes_to_a_folder_named_after_the_run(healthy, tmp_path):
    done = gradiometer("export", healthy, "--to", "parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{healthy.name}-parquet" / "scalars.parquet").is_file()


def test_a_format_that_is_not_known_is_refused_with_those_that_are(healthy):
    done = gradiometer("export", healthy, "--to", "xlsx")
    assert done.returncode == 2
    assert "parquet" in done.stderr
    assert "csv" in done.stderr


@pytest.mark.parametrize("words", [("compact",), ("export", "--to", "csv")])
def test_a_run_that_is_not_there_is_one_line(tmp_path, words):
    done = gradiometer(*words, tmp_path / "no-such-run")
    assert done.returncode == 2
    assert "no-such-run" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_tree_shows_attempts_and_what_was_superseded(healthy):
    number = begin_attempt(healthy, parent=0, resume_step=150)
    writer = RankWriter(healthy, number)
    for step in range(151, 181):
        writer.scalars(step, 1.7e9 + step, {"train_loss": 1.0})
    writer.close()
    write_exit(healthy, number, outcome="stopped", step=180, reason="asked")
    fork = create_run(healthy.parent, name="fork", parent={"run": healthy.name, "attempt": 0, "step": 100})
    done = gradiometer("runs", "--tree", "--runs", healthy.parent)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(healthy.name)
    assert lines[1] == "  attempt 0: from the start, steps 1-200, superseded 151-200, finished"
    assert lines[2] == "  attempt 1: from attempt 0 after step 150, steps 151-180, stopped"
    assert lines[3].startswith(f"    {fork.name}")
    (node,) = json.loads(gradiometer("runs", "--tree", "--json", "--runs", healthy.parent).stdout)
    assert node["attempts"][0]["superseded"] == [151, 200]
    assert node["forks"][0]["forked_from"] == healthy.name
    assert "no runs in" in gradiometer("runs", "--tree", "--runs", healthy.parent / "none").stdout


def test_a_run_is_thrown_away_taken_back_and_deleted(healthy):
    runs = ("--runs", healthy.parent)
    done = gradiometer("trash", healthy, *runs)
    assert done.returncode == 0, done.stderr
    assert f"gradiometer restore {healthy.name}" in done.stdout
    assert not healthy.exists()
    assert json.loads(gradiometer("runs", "--json", *runs).stdout) == []
    (row,) = json.loads(gradiometer("trash", "--json", *runs).stdout)
    assert (row["id"], row["name"]) == (healthy.name, "calm")
    assert healthy.name in gradiometer("trash", *runs).stdout
    assert gradiometer("restore", healthy.name, *runs).stdout.strip() == str(healthy)
    assert healthy.is_dir()
    refused = gradiometer("delete", healthy.name, *runs)
    assert (refused.returncode, healthy.is_dir()) == (2, True)
    assert refused.stderr.count("\n") == 1
    gradiometer("trash", healthy.name, *runs)
    assert gradiometer("delete", healthy.name, *runs).stdout == f"{healthy.name} is deleted.\n"
    assert "no run of" in gradiometer("delete", "--all", *runs).stdout


def test_what_lies_outside_the_runs_folder_is_not_thrown_away(healthy, tmp_path):
    (tmp_path / "other").mkdir()
    done = gradiometer("trash", healthy, "--runs", tmp_path / "other")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is not in the runs folder" in done.stderr
    assert healthy.is_dir()


@pytest.mark.parametrize(
    "words", [("trash", "none"), ("restore", "none"), ("delete", "none"), ("delete",), ("trash", "..")]
)
def test_a_wrong_word_for_the_trash_is_one_line(healthy, words):
    done = gradiometer(*words, "--runs", healthy.parent)
    assert done.returncode == 2
    assert done.stderr.startswith("gradiometer: ")
    assert done.stderr.count("\n") == 1
    assert healthy.is_dir()


def test_keeping_house_does_not_load_torch(healthy, tmp_path):
    commands = [
        ["compact", str(healthy)],
        ["export", str(healthy), "--to", "csv", "--out", str(tmp_path / "out")],
        ["runs", "--tree", "--runs", str(healthy.parent)],
        ["runs", "--search", "lr>0 state:finished", "--no-incidents", "--runs", str(healthy.parent)],
        ["trash", str(healthy), "--runs", str(healthy.parent)],
        ["restore", healthy.name, "--runs", str(healthy.parent)],
        ["trash", str(healthy), "--runs", str(healthy.parent)],
        ["delete", "--all", "--runs", str(healthy.parent)],
    ]
    code = f"""
import sys
from app.cli import cli
for words in {commands!r}:
    try:
        cli(words)
    except SystemExit as end:
        assert not end.code, words
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
