"""Folders, readers and the work in the background."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import pytest

from app import data
from app.doctor import ENVIRONMENT, Doctor, Opened, report_on
from monitor.errors import RunError
from monitor.runfile.writer import RankWriter, begin_attempt, create_run
from tests.app import runs_for_tests as made
from tests.app.conftest import Runs
from tests.waiting import until


def test_several_folders_may_be_named_and_the_samples_come_last(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIOMETER_RUNS", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert [folder.path for folder in data.folders()] == [tmp_path / "a", tmp_path / "b", data.SAMPLES]
    assert [folder.sample for folder in data.folders()] == [False, False, True]
    assert data.launch_folder() == tmp_path / "a"


def test_without_the_variable_runs_lie_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("GRADIOMETER_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert data.launch_folder() == tmp_path / "runs"


def test_a_run_is_found_in_the_second_folder(runs: Runs, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIOMETER_RUNS", f"{tmp_path}:{runs.folder}")
    assert data.find_run(runs.healthy) == runs.folder / runs.healthy


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "", "\x00", "nothing-here"])
def test_what_is_no_run_is_refused_with_words(runs: Runs, name):
    with pytest.raises(RunError):
        data.find_run(name)


def test_an_unknown_run_says_where_was_looked_and_what_to_type(runs: Runs):
    with pytest.raises(RunError, match=r"Looked in .*gradiometer runs"):
        data.find_run("nothing-here")


def test_the_list_is_read_again_after_a_while_and_at_once_for_other_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("app.data.SAMPLES", tmp_path / "none")
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path / "a"))
    now = [0.0]
    listing = data.Listing(clock=lambda: now[0])
    assert listing.rows() == []
    made.half_written(tmp_path / "a", "one")
    assert listing.rows() == []
    now[0] = 0.6
    assert [row.summary.id for row in listing.rows()] == ["one"]
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path / "b"))
    assert listing.rows() == []


def test_a_reader_is_shared_and_refreshed_at_most_so_often(tmp_path):
    run = made.Recorded(tmp_path, "live")
    run.row(1, 5.0)
    run.writer.flush(10)
    now = [0.0]
    readers = data.RunReaders(min_interval=1.0, clock=lambda: now[0])
    with readers.reading(run.path) as first:
        assert first.last_step == 1
    run.row(2, 4.9)
    run.writer.flush(10)
    with readers.reading(run.path) as second:
        assert second is first and second.last_step == 1
    now[0] = 1.5
    with readers.reading(run.path) as third:
        assert third.last_step == 2
    run.end(step=2)


def test_readers_beyond_the_capacity_are_given_up(tmp_path):
    readers = data.RunReaders(capacity=2)
    paths = [made.half_written(tmp_path, f"run-{index}") for index in range(3)]
    opened = []
    for path in (*paths, paths[0]):
        with readers.reading(path) as run:
            opened.append(run)
    assert opened[3] is not opened[0]


def test_background_work_is_done_again_only_when_the_token_changes():
    calls: list[Path] = []
    now = [0.0]
    work = data.Background(
        "test", lambda path: calls.append(path) or len(calls), min_interval=5.0, clock=lambda: now[0]
    )
    path = Path("/a")
    assert work.of(path, 1, wait=10).value == 1
    assert not work.of(path, 1).pending
    due_later = work.of(path, 2)
    assert due_later.pending and due_later.value == 1 and len(calls) == 1
    now[0] = 6.0
    work.of(path, 2)
    until(lambda: not work.of(path, 2).pending, "the second result")
    assert work.of(path, 2).value == 2 and len(calls) == 2


def test_background_work_does_not_hold_up_who_asks_and_says_its_failure():
    gate = threading.Event()

    def slow(path: Path) -> int:
        gate.wait(20)
        raise RunError("cannot be read")

    work = data.Background("test", slow)
    assert work.of(Path("/a"), 1).pending
    gate.set()
    made = work.of(Path("/a"), 1, wait=10)
    assert made.value is None and made.error == "cannot be read"


def test_what_takes_long_does_not_hold_up_another_run_and_a_run_stays_with_its_worker():
    gate, made_by = threading.Event(), []

    def worker(name: str):
        def make(path: Path) -> str:
            made_by.append((name, path.name))
            assert path.name != "long" or gate.wait(60)
            return name

        return make

    work = data.Background("test", worker("first"), worker("second"), min_interval=0.0)
    assert work.of(Path("/long"), 1).pending
    assert work.of(Path("/short"), 1, wait=60).value == "second"
    gate.set()
    assert work.of(Path("/long"), 1, wait=60).value == "first"
    for token in (2, 3):
        for name, own in (("long", "first"), ("short", "second")):
            until(lambda path=Path("/", name), token=token: not work.of(path, token).pending, name)
            assert work.of(Path("/", name), token).value == own
    assert {own for own, name in made_by if name == "long"} == {"first"}


def test_a_first_result_may_give_a_head_start_and_comes_all_the_same():
    work = data.Background("test", lambda path: path.name, min_interval=0.0)
    assert work.of(Path("/much later"), 1, head_start=3600).pending
    assert work.of(Path("/now"), 1, wait=60).value == "now"
    assert work.of(Path("/soon"), 1, wait=60, head_start=0.01).value == "soon"
    work.of(Path("/soon"), 2, head_start=3600)
    until(lambda: not work.of(Path("/soon"), 2).pending, "a result that is no longer the first")
    assert work.of(Path("/much later"), 1).value is None


@pytest.mark.parametrize("latest_first", [True, False])
def test_the_run_that_was_opened_last_goes_first(latest_first: bool):
    gate, begun, order = threading.Event(), threading.Event(), []

    def make(path: Path) -> None:
        begun.set()
        assert gate.wait(60)
        order.append(path.name)

    work = data.Background("test", make, latest_first=latest_first)
    work.of(Path("/a"), 1)
    assert begun.wait(60)
    for name in "bcd":
        work.of(Path("/", name), 1)
    gate.set()
    until(lambda: work.finished == 4, "four results")
    assert order == list("adcb" if latest_first else "abcd")


def test_a_failure_of_our_own_is_said_too():
    work = data.Background("test", lambda path: 1 // 0)
    assert work.of(Path("/a"), 1, wait=10).error == "ZeroDivisionError: integer division or modulo by zero"


def test_the_doctor_answers_from_a_process_of_its_own(runs: Runs):
    doctor = Doctor()
    try:
        report = doctor.ask(runs.folder / runs.nan)
        assert report["verdict"] == "incident" and report["findings"][0]["id"] == "non-finite"
        with pytest.raises(RunError, match="99"):
            doctor.ask(runs.folder / runs.newer)
        assert doctor._process is not None
        doctor._process.kill()
        doctor._process.wait()
        assert doctor.ask(runs.folder / runs.healthy)["verdict"] == "healthy"
    finally:
        doctor.close()


def test_the_doctor_ends_in_silence_when_nobody_waits_for_the_answer(runs: Runs):
    command = [sys.executable, "-P", "-m", "app.doctor"]
    environment = {**os.environ, **ENVIRONMENT}
    reader, writer = os.pipe()
    os.close(reader)
    asked = json.dumps(str(runs.folder / runs.healthy))
    told = subprocess.run(command, input=asked, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (told.returncode, told.stderr) == (0, "")


def test_the_doctor_keeps_open_what_goes_on_alone(runs: Runs, tmp_path: Path):
    going_on = create_run(tmp_path)
    begin_attempt(going_on)
    writer = RankWriter(going_on, 0)
    for step in range(1, 40):
        writer.scalars(step, float(step), {"train_loss": 1.0 / step})
    writer.heartbeat(step=39, state="training")
    assert writer.flush(60)
    kept: Opened = OrderedDict()
    for path in (going_on, runs.folder / runs.nan, going_on, runs.folder / runs.healthy):
        assert report_on(str(path), kept)["run"]["path"] == str(path)
    assert list(kept) == [str(going_on)] and kept[str(going_on)][0].state.word == "running"
    writer.close()


def test_the_overview_of_a_listed_run_has_its_extremes(runs: Runs):
    summary = next(row.summary for row in data.listed_runs() if row.summary.id == runs.spike)
    token = "any"
    spark = data.SPARKS.of(summary.path, token, wait=20).value
    assert spark is not None and max(spark.loss) == 97.25 and len(spark.loss) <= 60
