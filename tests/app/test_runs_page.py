"""The list of runs: order, differing configurations, and what is done to the ticked ones."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app import curate, data
from app.engine_state import EngineStates
from monitor.errors import RunError
from monitor.runfile.format import attempt_dir
from monitor.runfile.meta import edit_meta
from monitor.runfile.store import list_runs, run_state
from monitor.runfile.trash import list_trash
from monitor.runfile.writer import begin_attempt, create_run, write_exit
from tests.app import runs_for_tests as made
from tests.app.conftest import ROOT, Ask, Open, listed, words
from tests.waiting import until
from trainer import launch
from trainer.launch.launcher import ENGINES

LOSSES = {"a": 2.0, "b": math.nan, "c": 0.5, "d": None, "e": math.inf}


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Five ended runs that differ in learning rate and loss; ``d`` has made no step. The newest is ``e``."""
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("app.data.SAMPLES", tmp_path / "samples")
    for number, (name, loss) in enumerate(LOSSES.items()):
        config = {"optimizer": {"lr": 0.1 / (number + 1)}, "steps": 3, **({"extra": True} if name == "c" else {})}
        path = create_run(
            tmp_path / "runs", name=name, run_id=name, config=config, now=lambda at=number: made.START + at
        )
        attempt = begin_attempt(path, environment={"device": "cpu"})
        writer = made.RankWriter(path, attempt)
        if loss is not None:
            writer.scalars(1, made.START, {"train_loss": loss})
        writer.close()
        write_exit(path, attempt, outcome="finished", step=1, reason="done")
    return tmp_path / "runs"


def names(page: AppTest) -> list[str]:
    assert not page.exception
    return [row["name"] for row in listed(page)]


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("", "edcba"),
        ("loss", "caebd"),
        ("-loss", "beacd"),
        ("config.optimizer.lr", "edcba"),
        ("-name", "edcba"),
        ("name", "abcde"),
        ("config.extra", "cedba"),
        ("nonsense", "edcba"),
    ],
)
def test_the_address_names_the_order_and_what_is_unknown_comes_last(few, open_page: Open, sort, order):
    assert names(open_page("runs", sort=sort)) == list(order)


def test_only_entries_that_differ_become_columns(few, open_page: Open):
    page = open_page("runs", differ="true")
    rows = {row["name"]: row for row in listed(page)}
    assert {key for key in rows["a"] if key.startswith("config.")} == {"config.optimizer.lr", "config.extra"}
    assert rows["a"]["config.optimizer.lr"] == "0.1" and rows["a"]["config.extra"] == "–"
    assert rows["c"]["config.extra"] == "true"
    page = open_page("runs", differ="true", search="name:a")
    assert "nothing to differ from" in words(page)


def test_deleted_runs_go_to_the_trash_and_come_back(few, open_page: Open):
    page = open_page("runs")
    page.session_state["runs_ticked"] = ["a", "d"]
    page.run()
    page.button(key="delete_runs").click().run()
    assert names(page) == ["e", "c", "b"]
    assert {one.id for one in list_trash(few)} == {"a", "d"}
    assert "2 runs moved to the trash." in words(page) and page.session_state["runs_ticked"] == []
    page.button(key="undo_delete").click().run()
    assert names(page) == list("edcba") and list_trash(few) == []
    assert "2 runs taken back." in words(page)


def test_a_run_that_goes_on_is_not_deleted_and_the_others_are(few, open_page: Open):
    run = made.Recorded(few, "live", run_id="live", start=made.START + 100)
    run.writer.heartbeat(step=1, state="training", step_time_s=1.0)
    page = open_page("runs")
    page.session_state["runs_ticked"] = ["live", "a"]
    page.run()
    page.button(key="delete_runs").click().run()
    assert "live" in names(page) and "a" not in names(page)
    assert "Stop it first" in page.warning[0].value
    run.end("stopped", 1)


def test_tags_name_and_notes_are_edited_and_found(few, open_page: Open):
    page = open_page("runs")
    page.session_state["runs_ticked"] = ["b"]
    page.run()
    (name,) = [one for one in page.text_input if one.label == "Name"]
    (notes,) = page.text_area
    name.set_value("<b>renamed</b>")
    notes.set_value("![x](http://e.invalid/p.png)")
    next(button for button in page.button if button.label == "Save").click().run()
    row = next(row for row in listed(page) if row["id"] == "b")
    assert (row["name"], row["notes"]) == ("<b>renamed</b>", "![x](http://e.invalid/p.png)")
    assert curate.tag([few / "a", few / "b"], ["base line"], []).refused == ()
    page = open_page("runs", search='tag:"base line"')
    assert {row["id"] for row in listed(page)} == {"a", "b"} and listed(page)[0]["tags"] == ["base line"]


def test_nothing_is_changed_from_a_page_that_only_reads_nor_of_a_sample(few, open_page: Open, monkeypatch):
    made.healthy_run(few.parent / "samples", steps=5, run_id="gpt-healthy")
    refused = curate.throw_away([few.parent / "samples" / "gpt-healthy"])
    assert refused.paths == () and "sample" in refused.refused[0]
    monkeypatch.setattr("app.curate.read_only_reason", lambda: "Read-only: for this test.")
    for result in (
        curate.throw_away([few / "a"]),
        curate.tag([few / "a"], ["x"], []),
        curate.describe(few / "a", name="x", tags=[], notes=""),
    ):
        assert result.refused == ("Read-only: for this test.",)
    edit_meta(few / "b", name="b")  # by hand it may
    assert {row.id for row in list_runs(few)} == set("abcde") and not (few / "a" / "meta.json").exists()
    page = open_page("runs")
    page.session_state["runs_ticked"] = ["a"]
    page.run()
    assert page.button(key="delete_runs").disabled


def test_the_version_of_the_list_changes_when_a_row_does_and_only_then(few, http: Ask):
    data.LISTING.forget()
    before = http("/api/runs").body.decode()
    version = before.split('"')[3]
    data.LISTING.forget()
    assert http(f"/api/runs?have={version}").status == 204
    edit_meta(few / "a", notes="other")
    data.LISTING.forget()
    assert http(f"/api/runs?have={version}").status == 200


# ---- starting, and what only an engine knows ------------------------------------------------------------------------


def test_a_second_click_on_start_opens_the_same_training(
    open_page: Open, no_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made.half_written(no_runs, "one")
    started: list[object] = []

    def start(config: object, runs: Path, **more: object) -> launch.Launched:
        started.append(config)
        return launch.Launched("one", path, 0, ())

    monkeypatch.setattr(launch, "start", start)
    page = open_page("runs").button(key="start_default").click().run()
    assert len(started) == 1 and not page.exception
    again = open_page("runs")
    again.session_state["started"] = page.session_state["started"]  # the list was not drawn between the two clicks
    again.button(key="start_default").click().run()
    assert len(started) == 1 and not again.exception and again.session_state["started"] == "one"
    open_page("runs").button(key="start_default").click().run()
    assert len(started) == 2


def test_a_refused_start_is_told(open_page: Open, no_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*given: object, **more: object) -> None:
        raise RunError("no room on the disk")

    monkeypatch.setattr(launch, "start", start)
    page = open_page("runs").button(key="start_default").click().run()
    assert "no room on the disk" in words(page)


def with_a_cluster(runs: Path, name: str, engine: str = "slurm", ended: str | None = None) -> Path:
    """A run whose job was handed to a cluster an hour ago."""
    began = time.time() - 3600
    path = create_run(runs, name=name, run_id=name, now=lambda: began)
    folder = attempt_dir(path, 0)
    folder.mkdir(parents=True)
    (folder / "launch.json").write_text(json.dumps({"engine": engine, "time": began}))
    (folder / "job.json").write_text(json.dumps({"engine": engine, "job": "77", "time": began}))
    if ended:
        (folder / "exit.json").write_text(json.dumps({"outcome": ended, "step": 3, "reason": "ended", "time": began}))
    return path


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real engine, where no Slurm answers."""
    monkeypatch.setenv("PATH", str(tmp_path))


def states_of(open_page: Open) -> dict[str, str]:
    return {row["name"]: row["state"][1] for row in listed(open_page("runs"))}


def test_the_list_asks_the_engines_once_for_all_and_without_waiting(
    no_runs: Path, open_page: Open, no_slurm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, engine in (("a", "slurm"), ("b", "slurm"), ("strange", "elsewhere"), ("local", "local")):
        with_a_cluster(no_runs, name, engine)
    with_a_cluster(no_runs, "done", ended="finished")
    asked: list[list[str]] = []
    poll = ENGINES["slurm"].poll

    def slowly(handles: Any) -> Any:
        asked.append(sorted(handle.run_dir.name for handle in handles))
        return poll(handles)

    monkeypatch.setattr(ENGINES["slurm"], "poll", slowly)
    monkeypatch.setattr(data, "LISTING", data.Listing())
    monkeypatch.setattr(data, "ENGINE_STATES", EngineStates())
    first = states_of(open_page)
    assert first["a"] in ("lost", "pending") and first["local"] == "lost" and first["done"] == "finished"
    until(lambda: states_of(open_page)["a"] == "pending", "the engine's answer")
    assert states_of(open_page) == {
        "a": "pending",
        "b": "pending",
        "strange": "lost",
        "local": "lost",
        "done": "finished",
    }
    assert all(one in (["a", "b"], ["a"], ["b"]) for one in asked), asked
    assert "pending" in states_of(lambda view: open_page(view, search="state:pending")).values()


def test_the_list_of_a_terminal_asks_the_engines_too(no_runs: Path, no_slurm: None) -> None:
    with_a_cluster(no_runs, "a")
    with_a_cluster(no_runs, "local", "local")
    words = [sys.executable, "-m", "app", "runs", "--runs", str(no_runs), "--json", "--no-incidents"]
    for more, expected in (([], {"a": "pending", "local": "lost"}), (["-s", "state:pending"], {"a": "pending"})):
        done = subprocess.run([*words, *more], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
        assert {row["name"]: row["state"] for row in json.loads(done.stdout)} == expected


def test_an_engine_that_does_not_answer_holds_up_nobody(
    no_runs: Path, no_slurm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, gate, asked = with_a_cluster(no_runs, "a"), threading.Event(), []
    poll = ENGINES["slurm"].poll

    def hang(handles: Any) -> Any:
        asked.append(1)
        assert gate.wait(60)
        return poll(handles)

    monkeypatch.setattr(ENGINES["slurm"], "poll", hang)
    states, files = EngineStates(), {path: run_state(path)}
    assert [states.corrected(files, wait)[path].word for wait in (0.0, 0.0, 0.1)] == ["lost"] * 3
    gate.set()
    until(lambda: states.corrected(files)[path].word == "pending", "the engine's answer")
    assert len(asked) == 1


def test_a_run_that_is_queued_again_offers_a_stop_alone(
    no_runs: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heartbeat is of the attempt before, whose training answered; nobody does now."""
    path = create_run(no_runs, name="queued", run_id="queued")
    begin_attempt(path, planned_steps=100)
    (attempt_dir(path, 0) / "launch.json").write_text(json.dumps({"engine": "slurm", "time": time.time()}))
    writer = made.RankWriter(path, 0)
    writer.scalars(3, time.time(), {"train_loss": 1.0})
    writer.heartbeat(step=3, state="training", step_time_s=0.1, requests=["checkpoint", "pause", "set_lr"])
    writer.close()
    keys = {str(button.key) for button in open_page("run", run="queued").button}
    assert {"checkpoint", "pause", "set_lr"} <= keys
    write_exit(path, 0, outcome="stopped", step=3, reason="the time limit")
    waits = launch.JobStatus(launch.JobState.REQUEUED, "queued again", 0)
    monkeypatch.setattr(ENGINES["slurm"], "poll", lambda handles: [waits for _ in handles])
    page = open_page("run", run="queued")
    keys = {str(button.key) for button in page.button}
    assert "requeued" in words(page) and "stop" in keys
    assert not {"checkpoint", "pause", "continue", "set_lr", "set_clip", "record_dense"} & keys
