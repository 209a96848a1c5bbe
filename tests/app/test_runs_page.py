"""The list of runs: order, differing configurations, and what is done to the ticked ones."""

from __future__ import annotations

import math

import pytest
from streamlit.testing.v1 import AppTest

from app import curate, data
from monitor.runfile.meta import edit_meta
from monitor.runfile.store import list_runs
from monitor.runfile.trash import list_trash
from monitor.runfile.writer import begin_attempt, create_run, write_exit
from tests.app import runs_for_tests as made
from tests.app.conftest import Ask, Open, listed, words

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
