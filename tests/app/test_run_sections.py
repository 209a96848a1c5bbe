"""The header and the plainer sections of a run's page: lineage, configuration, log, checkpoints, system."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from app import web
from app.frame import Window, unpack
from app.heatmap import NONFINITE
from app.views.checkpoints import size_of
from monitor.runfile.begin import begin_attempt, create_run
from monitor.runfile.writer import RankWriter
from tests.app import runs_for_tests as made
from tests.app.conftest import Open, Runs, words
from tests.app.test_frame import array
from tests.app.test_ranks_view import with_ranks


@pytest.fixture
def child(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run forked from the healthy one, with another learning rate, a key of its own, a git state and a log."""
    folder = tmp_path / "children"
    monkeypatch.setenv("GRADIOMETER_RUNS", f"{folder}:{runs.folder}")
    config = {"optimizer": {"lr": 0.001}, "clip": {"max_norm": 1.0}, "device": "cpu", "<b>": "![x](http://x.invalid)"}
    path = create_run(
        folder, name="child", run_id="child", config=config,
        parent={"run": runs.healthy, "attempt": 0, "step": 300},
    )  # fmt: skip
    attempt = begin_attempt(path, environment={"device": "cpu"}, git={"commit": "0123abc", "dirty": True})
    writer = RankWriter(path, attempt)
    for step in (301, 302):
        writer.scalars(step, made.START + step, {"train_loss": 2.0, "mfu": 0.41})
    writer.event("note", 302, text="looked at by hand")
    writer.close()
    lines = [f"step {number} loss <i>{number / 7:.3f}</i>" for number in range(900)] + ["Warning: SLOW disk"]
    (path / "attempts/0000/rank-00000/log.txt").write_text("\n".join(lines))
    for step in (301, 302):
        (path / "checkpoints" / f"{step:010d}").mkdir(parents=True)
        (path / "checkpoints" / f"{step:010d}" / "weights").write_bytes(b"x" * 2**20)
    (path / "checkpoints" / "0000000301" / "COMMIT.json").write_text("{}")
    return "child"


def test_the_header_tells_lineage_and_use_of_the_device(child: str, runs: Runs, open_page: Open):
    page = open_page("run", run=child)
    assert not page.exception
    assert f"forked from {runs.healthy} at step 300" in words(page).replace("\\", "")
    metrics = {metric.label: metric.value for metric in page.metric}
    assert metrics["MFU"] == "41 \\%"
    page = open_page("run", run=runs.resumed)
    assert "2 attempts, the run as it stands is 0 from step 1, then 1 from step 151" in words(page)
    assert {metric.label: metric.value for metric in page.metric}["MFU"] == "no GPU"


def test_the_configuration_is_held_against_the_parents(child: str, open_page: Open):
    page = open_page("run", run=child, section="Config")
    assert not page.exception
    (changed,) = [table.value for table in page.dataframe if "parent" in table.value]
    assert changed.set_index("key").to_dict("index") == {
        "<b>": {"parent": "–", "this run": "![x](http://x.invalid)"},
        "optimizer.lr": {"parent": "0.002", "this run": "0.001"},
    }
    assert "0123abc" in words(page) and "files differed from the commit" in words(page)


def test_the_log_is_searched_and_its_events_with_it(child: str, open_page: Open):
    page = open_page("run", run=child, section="Log")
    assert page.code[0].value.startswith("step 501 loss <i>") and page.code[0].value.endswith("SLOW disk")
    page.text_input(key="log_search").set_value("slow WARN").run()
    assert page.code[0].value == "Warning: SLOW disk" and "1 of the last 901 lines" in words(page)
    assert not page.dataframe or page.dataframe[0].value.empty
    page = open_page("run", run=child, section="Log", log_search="by hand")
    assert page.dataframe[0].value["kind"].tolist() == ["note"] and "None of the last 901 lines" in words(page)


def test_checkpoints_are_a_table_and_marks_on_the_curve(child: str, runs: Runs, open_page: Open):
    page = open_page("run", run=child, section="Checkpoints")
    assert not page.exception
    table = page.dataframe[0].value
    assert table["step"].tolist() == [302, 301] and table["state"].tolist() == ["cut short", "complete"]
    assert table["MiB"].tolist() == [1.0, 1.0] and table["train loss"].tolist() == ["2.000", "2.000"]
    assert "1 of them were cut short" in words(page)
    assert "No checkpoint lies in" in words(open_page("run", run=runs.healthy, section="Checkpoints"))
    header, _ = unpack(web.answer(runs.folder / runs.healthy, {"view": "checkpoints"}, Window()) or b"")
    assert {mark["kind"] for mark in header["marks"]} == {"checkpoint"}
    assert [chart["id"] for chart in header["layout"]] == ["events", "loss", "grad_norm"]


def test_an_incident_shows_all_layers_round_its_onset(runs: Runs, open_page: Open):
    page = open_page("run", run=runs.nan, section="Incidents")
    assert not page.exception
    (grid,) = [one for one in map(json.loads, protos(page)) if one.get("view") == "recorder"]
    assert grid["span"][0] == 209 - 60 and grid["span"][1] <= 300
    header, body = unpack(web.answer(runs.folder / runs.nan, {"view": "recorder"}, Window(400, *grid["span"])) or b"")
    (heat,) = header["charts"]
    cells = array(body, heat["cells"]).reshape(len(made.LAYERS), -1)
    edges = array(body, heat["edges"])
    at = [int(edges.searchsorted(step, side="right")) - 1 for step in (208, 209, 210)]
    assert [(cells[:, place] == NONFINITE).sum() for place in at] == [0, 1, len(made.LAYERS)]


def test_an_attention_map_without_a_weight_says_why(tmp_path: Path, monkeypatch, open_page: Open):
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    run, fields = made.Recorded(tmp_path, "blank", run_id="blank"), made.map_fields("attn")
    run.row(1, 2.0)
    run.writer.event("attention_map", 1, **fields)
    run.writer.event("attention_map", 2, **{**fields, "weights": base64.b64encode(bytes(2 * 8 * 8)).decode()})
    run.end(step=1)
    told = "No weight is a number above zero"
    assert told in words(open_page("run", run="blank", section="Attention", map_step="2"))
    assert told not in words(open_page("run", run="blank", section="Attention", map_step="1"))


def test_the_size_of_a_folder_counts_no_links(tmp_path: Path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a").write_bytes(b"x" * 10)
    (tmp_path / "big").write_bytes(b"x" * 1000)
    (tmp_path / "own" / "link").symlink_to(tmp_path / "big")
    assert size_of(tmp_path / "own")[0] == 10 and size_of(tmp_path / "nothing") == (0, None)


def test_the_system_section_has_the_steps_time_and_a_rank_to_choose(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_page: Open
):
    page = open_page("run", run=runs.healthy, section="System")
    views = [json.loads(one).get("view") for one in protos(page)]
    assert [view for view in views if view] == ["speed", "system"] and "GiB are free" in words(page)
    header, _ = unpack(web.answer(runs.folder / runs.healthy, {"view": "speed"}, Window(100)) or b"")
    assert [chart["id"] for chart in header["layout"]] == ["step_time", "throughput"]
    whole, *parts = header["charts"][0]["traces"]
    assert sum(part["last"] for part in parts) == pytest.approx(whole["last"]), "the parts add up to the step"
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    page = open_page("run", run=with_ranks(tmp_path).name, section="System", system_rank="2")
    (machine,) = [one for one in map(json.loads, protos(page)) if one.get("view") == "system"]
    assert machine["query"] == {"rank": "2"}


def protos(page) -> list[str]:
    """What the page gave to its components."""
    return [one.proto.json for one in page.get("bidi_component")]
