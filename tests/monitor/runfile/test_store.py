"""The state of a run from what it left behind, and the list of runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from monitor.runfile import format as fmt
from monitor.runfile.reader import open_run
from monitor.runfile.store import list_runs, process_is_alive, run_state
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, process_identity, write_exit
from tests.monitor.runfile.conftest import START, write_run, write_steps
from tests.waiting import until

ROOT = Path(__file__).parents[3]

TRAIN = """
import sys, time
from monitor.runfile.writer import RankWriter, begin_attempt
number = begin_attempt(sys.argv[1], number=int(sys.argv[2]))
writer = RankWriter(sys.argv[1], number)
for step in range(1, 4):
    writer.scalars(step, time.time(), {"train_loss": 1.0 / step})
writer.flush()
print("ready", flush=True)
time.sleep(60)
"""


def train(run_dir: Path) -> subprocess.Popen[bytes]:
    """A real process that has recorded three steps and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(run_dir), "0"], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def edit(path: Path, **changes: Any) -> None:
    fmt.atomic_write_json(path, {**fmt.load_json(path), **changes})


@pytest.fixture
def running(tmp_path: Path) -> Any:
    """A run whose process lives, and the process."""
    run_dir = create_run(tmp_path / "runs", name="live")
    (run_dir / "attempts" / "0000").mkdir()
    process = train(run_dir)
    yield run_dir, process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_live_process_is_running_and_a_killed_one_has_crashed(running: tuple[Path, subprocess.Popen[bytes]]) -> None:
    run_dir, process = running
    run = open_run(run_dir)
    assert run_state(run_dir).word == run.state.word == "running"
    process.kill()  # not waited for: a zombie is dead
    until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, "its end")
    assert run_state(run_dir).word == run.state.word == "crashed"
    process.wait()
    state = run_state(run_dir)
    assert (state.word, state.step, state.ended) == ("crashed", 3, True)
    assert str(process.pid) in state.reason
    assert len(open_run(run_dir).series("train_loss")) == 3


def test_a_live_process_that_makes_no_step_is_stale(running: tuple[Path, subprocess.Popen[bytes]]) -> None:
    run_dir, _ = running
    state = run_state(run_dir, now=time.time() + 1000)
    assert state.word == "stale"
    assert not state.ended
    assert "Step 3 ended" in state.reason


def test_a_stranger_with_the_same_pid_is_not_the_process(running: tuple[Path, subprocess.Popen[bytes]]) -> None:
    run_dir, process = running
    process.send_signal(19)  # SIGSTOP, so that it does not write its heartbeat again
    beat = fmt.rank_dir(run_dir, 0) / "heartbeat.json"
    edit(beat, pid_create_time=fmt.load_json(beat)["pid_create_time"] - 100)
    assert run_state(run_dir).word == "crashed"


@pytest.mark.parametrize("outcome", ["finished", "stopped", "crashed"])
def test_the_exit_record_says_how_it_ended(tmp_path: Path, outcome: str) -> None:
    run_dir = write_run(tmp_path, 5)
    write_exit(run_dir, 0, outcome=outcome, step=5, reason="because")
    state = run_state(run_dir)
    assert (state.word, state.reason, state.step) == (outcome, "because", 5)


@pytest.mark.parametrize(("asked", "word"), [(True, "stopped"), (False, "crashed")])
def test_a_supervisor_tells_of_a_process_that_said_nothing(tmp_path: Path, asked: bool, word: str) -> None:
    run_dir = write_run(tmp_path, 5)
    record = {"returncode": None, "signal": 9, "asked": asked, "time": START}
    fmt.exclusive_write_json(run_dir / "attempts" / "0000" / "supervisor_exit.json", record)
    state = run_state(run_dir)
    assert state.word == word
    assert "signal 9" in state.reason


@pytest.mark.parametrize(("seconds", "word"), [(5, "running"), (60, "stale"), (7200, "lost")])
def test_a_run_on_another_host_is_judged_by_its_heartbeat(tmp_path: Path, seconds: float, word: str) -> None:
    run_dir = write_run(tmp_path, 5)
    beat = fmt.rank_dir(run_dir, 0) / "heartbeat.json"
    edit(beat, host="elsewhere", state="training")
    now = fmt.load_json(beat)["time"] + seconds
    assert run_state(run_dir, now=now).word == word


@pytest.mark.parametrize(("hours", "words"), [(3, "3.0 h ago"), (47.5, "47.5 h ago"), (1568.7, "65 days ago")])
def test_a_step_long_ago_is_told_in_days(tmp_path: Path, hours: float, words: str) -> None:
    run_dir = write_run(tmp_path, 5)
    beat = fmt.rank_dir(run_dir, 0) / "heartbeat.json"
    now = fmt.load_json(beat)["time"]
    edit(beat, state="training", step_at=now - hours * 3600)
    assert words in run_state(run_dir, now=now).reason


def test_a_run_that_has_gone_quiet_takes_no_longer_by_being_looked_at(tmp_path: Path) -> None:
    """Else every open list would be drawn anew every two seconds for as long as it is there."""
    run_dir = write_run(tmp_path, 5)
    began = fmt.load_json(run_dir / "attempts" / "0000" / "attempt.json")["created"]
    edit(fmt.rank_dir(run_dir, 0) / "heartbeat.json", host="elsewhere", state="training", time=began + 60)
    (first,), (second,) = (list_runs(tmp_path, now=began + 1500 + more) for more in (0, 2))
    assert (first.state.word, first.duration_s) == ("stale", 60)
    assert first == second


def test_a_process_in_another_container_is_not_taken_for_dead(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 5)
    beat = fmt.rank_dir(run_dir, 0) / "heartbeat.json"
    edit(beat, pid=4_000_000, pid_namespace="pid:[1]", state="training")
    assert run_state(run_dir).word == "running"


def test_a_machine_that_was_started_anew_has_no_old_processes(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 5)
    edit(fmt.rank_dir(run_dir, 0) / "heartbeat.json", boot_id="another boot", state="training")
    assert run_state(run_dir).word == "crashed"


def test_an_evaluation_may_take_longer_than_a_step(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 5)
    beat = fmt.rank_dir(run_dir, 0) / "heartbeat.json"
    now = time.time() + 600
    edit(beat, state="training", time=now)
    assert run_state(run_dir, now=now).word == "stale"
    edit(beat, state="eval")
    assert run_state(run_dir, now=now).word == "running"


def test_a_run_that_never_began_is_starting_then_lost(tmp_path: Path) -> None:
    run_dir = create_run(tmp_path, now=lambda: START)
    assert run_state(run_dir, now=START + 10).word == "starting"
    assert run_state(run_dir, now=START + 10_000).word == "lost"


def test_an_attempt_folder_with_nothing_in_it_does_not_hide_how_the_run_ended(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 5)
    write_exit(run_dir, 0, outcome="finished", step=5, reason="done")
    (run_dir / "attempts" / "0001").mkdir()
    assert run_state(run_dir).word == open_run(run_dir).state.word == "finished"


def test_a_resume_is_a_new_start(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 5)
    write_exit(run_dir, 0, outcome="crashed", step=5, reason="boom")
    begin_attempt(run_dir, parent=0, resume_step=5)
    assert run_state(run_dir).word == "starting"


def test_processes_by_pid_and_creation_time() -> None:
    me = process_identity()
    assert process_is_alive(me["pid"], me["pid_create_time"]) is True
    assert process_is_alive(me["pid"], me["pid_create_time"] + 60) is False
    assert process_is_alive(None, None) is None
    assert process_is_alive(-5, None) is None
    assert not process_is_alive(10**30, None)


# The list ----------------------------------------------------------------------------------------------------------


def test_no_folder_is_an_empty_list(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "none") == []


def test_the_list_is_newest_first_and_tells_what_a_row_needs(tmp_path: Path) -> None:
    old = create_run(tmp_path, name="old", now=lambda: START)
    new = create_run(tmp_path, name="new", task="gpt", now=lambda: START + 100)
    begin_attempt(new, planned_steps=50, environment={"device": "cuda:0"}, now=lambda: START + 100)
    writer = RankWriter(new, 0, clock=lambda: START + 160)
    write_steps(writer, 1, 20)
    writer.scalars(21, START, {"train_loss": math.nan})
    writer.close()
    fmt.atomic_write_json(new / "meta.json", {"tags": ["baseline", 7], "name": "renamed"})
    write_exit(new, 0, outcome="finished", step=21, reason="done", now=lambda: START + 170)

    first, second = list_runs(tmp_path)
    assert (second.id, second.name) == (old.name, "old")
    assert (first.id, first.name, first.path) == (new.name, "renamed", new)
    assert (first.state.word, first.last_step, first.planned_steps) == ("finished", 21, 50)
    assert math.isnan(first.last_loss or 0)
    assert first.best_loss == pytest.approx(1 / 20)
    assert (first.duration_s, first.task, first.device, first.tags) == (70, "gpt", "cuda:0", ("baseline",))
    assert first.problem is None


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "there", 1)
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path / "there"))
    assert len(list_runs()) == 1
    monkeypatch.delenv("GRADIOMETER_RUNS")
    monkeypatch.chdir(tmp_path)
    assert list_runs() == []


def test_one_bad_run_is_a_row_with_its_problem(tmp_path: Path) -> None:
    good = write_run(tmp_path, 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    (tmp_path / "future").mkdir()
    (tmp_path / "future" / "run.json").write_text(json.dumps({"format": {"major": 9}}))
    (tmp_path / "a file").write_text("")
    (tmp_path / ".trash").mkdir()
    (tmp_path / "link").symlink_to(good)
    rows = {row.id: row.problem for row in list_runs(tmp_path)}
    assert rows.pop(good.name) is None
    assert set(rows) == {"empty", "broken", "future", "link"}
    assert "run.json: no such file" in (rows["empty"] or "")
    assert "not JSON" in (rows["broken"] or "")
    assert "Upgrade" in (rows["future"] or "")
    assert "symbolic link" in (rows["link"] or "")
