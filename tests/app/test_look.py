"""What a person may choose of the story's look: axis, smoothing, search, pins, attempt, and a step's profile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app import frame
from app.charts.describe import Chart
from app.charts.look import Look, along, look_of, looked_at
from app.charts.measures import Choice
from app.charts.profile import profile_chart, telling_row
from app.charts.story import story_charts, story_marks
from monitor.runfile.reader import open_run
from monitor.runfile.zoom import LongMatrix, long_matrix
from tests.app import runs_for_tests as made
from tests.app.bulk_run import bulk_run
from tests.app.conftest import Ask, Runs
from tests.app.test_compare import tensorboard
from tests.app.test_frame import array, chart_of


def by_id(charts: list[Chart]) -> dict[str, Chart]:
    return {chart.id: chart for chart in charts}


@pytest.fixture(scope="module")
def gone_back(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 to 40, an hour's pause, then on from 30 to 60: 1000 tokens a step, a step a second, one NaN."""
    run = made.Recorded(tmp_path_factory.mktemp("look"), "gone back", planned=60)
    for attempt, steps in enumerate((range(1, 41), range(31, 61))):
        if attempt:
            run.resume(30)
        for step in steps:
            when = made.START + step + attempt * 3600
            loss = float("nan") if step == 45 else 3.0 + np.sin(step + attempt)
            run.writer.scalars(step, when, {"train_loss": loss, "tokens": 1000.0 * step, "val/top1": step / 60})
            run.writer.layers(step, when, {"grad_norm_preclip": np.full(len(made.LAYERS), step, np.float32)})
            run.writer.event("checkpoint", step) if step == 50 else None
    return run.end(step=60)


def test_the_smoothed_curve_is_tensorboards_between_restarts_with_the_record_behind(gone_back: Path):
    run = open_run(gone_back)
    loss = by_id(looked_at(story_charts(run), run, Look(smoothing=0.9)))["loss"]
    assert [trace.role for trace in loss.traces] == ["faded", "raw", "line"]
    header, body = frame.unpack(frame.build([loss], frame.Window(500)) or b"")
    _, raw, smooth = chart_of(header, "loss")["traces"]
    value = run.series("train_loss").value
    finite = [step for step in range(1, 61) if step != 45]
    expected = [
        *tensorboard(value[:30].tolist(), 0.9),
        *tensorboard(value[30:44].tolist(), 0.9),
        *tensorboard(value[45:].tolist(), 0.9),
    ]
    shown = array(body, smooth["y"])
    np.testing.assert_allclose(shown[np.isfinite(shown)], expected, rtol=1e-6)
    recorded = array(body, raw["y"])
    np.testing.assert_allclose(recorded[np.isfinite(recorded)], value[np.array(finite) - 1], rtol=1e-6)
    assert raw["nan"] == 1 and "nan" not in smooth


def test_all_of_the_stack_stands_on_the_axis_of_tokens(gone_back: Path):
    run = open_run(gone_back)
    charts = looked_at(story_charts(run, layer="head.weight"), run, Look(axis="tokens"))
    axis = by_id(charts)["heat"].axis
    marks = story_marks(run, [])
    window = frame.Window(500, 29_500, 50_500)
    header, body = frame.unpack(frame.build(charts, window, marks=marks, axis=axis) or b"")
    assert header["extent"] == [1000, 60_000]
    assert {mark["kind"]: mark["x"] for mark in header["marks"]} == {"resume": 30_000, "checkpoint": 50_000}
    for trace in chart_of(header, "loss")["traces"]:
        x = array(body, trace["x"])
        assert len(x) and np.all(x % 1000 == 0)
    heat = chart_of(header, "heat")
    edges, steps = array(body, heat["edges"]), array(body, heat["step_edges"])
    np.testing.assert_allclose(edges, 1000 * steps)
    assert edges[0] == 28_500 and edges[-1] == 51_500
    assert all(chart["x_title"] == "tokens seen" for chart in header["layout"])


def test_steps_that_were_taken_over_stand_at_the_time_they_were_made(gone_back: Path):
    run = open_run(gone_back)
    loss = by_id(looked_at(story_charts(run), run, Look(axis="relative time")))["loss"]
    header, body = frame.unpack(frame.build([loss], frame.Window(500)) or b"")
    faded, line = (array(body, trace["x"]) for trace in chart_of(header, "loss")["traces"])
    assert faded.tolist() == list(range(30, 40))
    assert line[:30].tolist() == list(range(30)) and line[30:].tolist() == list(range(3630, 3660))


def test_one_attempt_is_shown_with_the_run_as_it_stands_behind(gone_back: Path):
    run = open_run(gone_back)
    charts = by_id(looked_at(story_charts(run, attempt=0), run, Look(attempt=0)))
    behind, own = charts["loss"].traces
    assert (behind.role, own.role) == ("faded", "line")
    assert own.signal.step.tolist() == list(range(1, 41)) and behind.signal.step[-1] == 60
    matrix = charts["heat"].matrix
    assert matrix is not None and matrix().step[-1] == 40
    unknown = by_id(looked_at(story_charts(run), run, Look(attempt=7)))
    assert [trace.role for trace in unknown["loss"].traces] == ["faded", "line"]


def test_a_search_unfolds_what_it_finds_and_reaches_beyond_what_is_shown(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("app.charts.story.OWN_VALUES_SHOWN", 3)
    run = made.Recorded(tmp_path, "many")
    for step in (1, 2):
        run.row(step, 3.0, **{f"train/{index:02d}": 1.0 for index in range(20)}, other=2.0, **{"val/acc": 0.5})
    opened = open_run(run.end(step=2))
    charts = story_charts(opened)
    own = [chart for chart in charts if chart.id.startswith("own.")]
    assert [(chart.section, chart.title) for chart in own] == [
        ("", "other"), ("train/", "train/00"), ("train/", "train/01")
    ]  # fmt: skip
    assert not any(chart.open for chart in own), "too many to be unfolded all"
    found = looked_at(story_charts(opened, own=lambda name: name == "train/19"), opened, Look(pattern="train/19|clip"))
    assert next(chart.id for chart in found if chart.kind != "events") == "grad_norm"
    assert found[-1].title == "train/19" and found[-1].open
    header, _ = frame.unpack(frame.build(found, frame.Window(100)) or b"")
    assert found[-1].id in {chart["id"] for chart in header["charts"]}, "what is unfolded is sent at once"


def test_pinned_charts_come_first_in_the_order_of_their_pins(gone_back: Path):
    run = open_run(gone_back)
    charts = looked_at(story_charts(run), run, Look(pins=("own.76616c2f746f7031", "heat", "nothing", "events")))
    assert [chart.id for chart in charts][:4] == ["events", "own.76616c2f746f7031", "heat", "loss"]
    assert charts[1].section == ""


@pytest.mark.parametrize(
    "query", ["axis=epoch", "smooth=1", "smooth=x", "smooth=nan", "attempt=-1", "attempt=1e3", "metrics=(", "at=x-1"]
)
def test_a_look_that_is_none_is_refused_with_what_is_accepted(runs: Runs, http: Ask, query):
    answer = http(f"/api/frame?run={runs.healthy}&{query}")
    assert answer.status == 400 and len(json.loads(answer.body)["error"]) > 20


def test_the_look_of_an_address_is_read_and_nothing_is_the_default():
    assert look_of({}) == Look() == look_of({"axis": "", "smooth": "", "pins": "", "attempt": "", "metrics": ""})
    asked = look_of({"axis": "wall time", "smooth": "0.6", "pins": "a,,b,a", "attempt": "3", "metrics": "loss"})
    assert asked == Look("wall time", 0.6, "loss", ("a", "b"), 3)


def test_an_axis_that_was_not_recorded_leaves_the_steps(runs: Runs):
    run = open_run(runs.folder / runs.healthy)
    assert along(story_charts(run), run, "tokens") and not along(story_charts(run), run, "tokens")[1].axis


# ---- the profile of a step ------------------------------------------------------------------------------------------

LAYERS = ("a", "b", "c")


def matrices(tmp_path: Path) -> list:
    """The same values in segments that were read whole, and in levels."""
    steps = 30_000
    value = np.tile(np.array([4.0, 2.0, 1.0], np.float32), (steps, 1))
    value[20_000, 1], value[25_000, 2], value[25_010, 2] = 99.0, np.inf, 50.0
    loss = {"train_loss": np.full(steps, 2.0)}
    run = open_run(bulk_run(tmp_path, loss, "grad_norm_preclip", value, LAYERS, run_id="levels", start=made.START))
    long = long_matrix(run, "grad_norm_preclip")
    assert isinstance(long, LongMatrix)
    return [long, run.layers("grad_norm_preclip")]


def test_a_cell_of_the_heatmap_leads_to_the_step_that_it_shows(tmp_path: Path):
    for matrix in matrices(tmp_path):
        assert telling_row(matrix, "largest", (19_900, 20_100), "b") == 20_000
        assert telling_row(matrix, "largest", (24_900, 25_100), "c") == 25_000, "infinite before largest"
        assert telling_row(matrix, "largest", (25_002, 25_100), "c") == 25_010
        assert telling_row(matrix, "largest", (90_000, 90_001), "c") == 29_999
        assert telling_row(matrix, "largest") == 29_999
        chart = profile_chart(Choice("layers", "grad_norm_preclip"), matrix, 25_000)
        assert chart is not None and chart.names == LAYERS
        usual, own = chart.traces
        assert usual.signal.value.tolist() == [4.0, 2.0, 1.0] and own.signal.value.tolist() == [4.0, 2.0, np.inf]
        assert own.name.replace("\u202f", "") == "step 25001"
        header, body = frame.unpack(frame.build([chart], frame.Window(400, 5, 6)) or b"")
        shown = header["charts"][0]["traces"][1]
        assert array(body, shown["x"]).tolist() == [0, 1, 2], "a zoom of the steps is none of the layers"
        assert shown["posinf"] == 1 and header["extent"] is None
        other = replace(chart, traces=(usual, replace(own, signal=replace(own.signal, value=own.signal.value * 2))))
        assert frame.chart_version(other, frame.Window(), []) != frame.chart_version(chart, frame.Window(), [])
    empty = open_run(made.half_written(tmp_path)).layers("grad_norm_preclip")
    assert telling_row(empty, "largest") is None and telling_row(empty, "largest", (1, 2), "a") is None
    assert profile_chart(Choice("layers", "grad_norm_preclip"), empty, None) is None
