"""The binary message of the live grid, against the run directory read with plain pyarrow."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from app import frame, heatmap
from app.charts.describe import Chart, Mark, Trace
from app.charts.story import story_charts
from app.facts import facts_of
from monitor.runfile import zoom
from monitor.runfile.compact import compact_run
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from monitor.runfile.zoom import LongMatrix, LongSignal, drawn
from monitor.signals import LayerMatrix, Signal
from tests.app.conftest import Runs


def scalar_column(run: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values as the files hold them."""
    step, value = [], []
    for file in sorted(run.glob("attempts/*/rank-00000/scalars-*.arrows")):
        with pa.ipc.open_stream(file.read_bytes()) as stream:
            table = stream.read_all()
        step += table["step"].to_pylist()
        value += table[name].to_pylist()
    return np.array(step), np.array(value, dtype=float)


def asked(http, run: str, **query: object) -> tuple[dict, bytes]:
    """Header and arrays of one answer."""
    address = "&".join(f"{name}={value}" for name, value in query.items())
    answer = http(f"/api/frame?run={run}&{address}")
    assert answer.status == 200, answer.body
    (length,) = struct.unpack_from("<I", answer.body)
    return json.loads(answer.body[4 : 4 + length]), answer.body[4 + length :]


def array(body: bytes, reference: list) -> np.ndarray:
    offset, length, code = reference
    return np.frombuffer(body, f"<{code}", length, offset)


def chart_of(header: dict, name: str) -> dict:
    return next(chart for chart in header["charts"] if chart["id"] == name)


def test_one_step_of_twenty_thousand_is_in_the_message_fully_zoomed_out(runs: Runs, http):
    header, body = asked(http, runs.spike, px=200)
    step, value = scalar_column(runs.folder / runs.spike, "train_loss")
    trace = chart_of(header, "loss")["traces"][0]
    x, y = array(body, trace["x"]), array(body, trace["y"])
    assert len(x) < 450
    assert y.max() == np.float32(value.max()) == np.float32(97.25)
    assert x[y.argmax()] == step[value.argmax()] == 12_345
    assert y.min() == np.float32(value.min())
    assert trace["ratio"] == pytest.approx(len(step) / len(x), abs=0.01)
    assert np.isin(x, step).all()


@pytest.fixture(scope="module")
def compacted(all_runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with one spike, a NaN, and layers, compacted: its charts come from levels."""
    run = shutil.copytree(all_runs.folder / all_runs.spike, tmp_path_factory.mktemp("compacted") / all_runs.spike)
    assert compact_run(run, remove=True)
    return run


def framed(run: Path, **window: float) -> tuple[dict, bytes]:
    charts = story_charts(open_run(run))
    assert isinstance(chart_by_id(charts, "loss").traces[0].signal, LongSignal)
    return frame.unpack(frame.build(charts, frame.Window(200, **window)) or b"")


def test_the_first_answer_has_what_begins_on_the_screen(runs: Runs, http):
    everything, _ = asked(http, runs.spike)
    first, _ = asked(http, runs.spike, screen=200)
    ids = [chart["id"] for chart in everything["charts"]]
    assert 0 < len(first["charts"]) < len(ids)
    assert [chart["id"] for chart in first["charts"]] == ids[: len(first["charts"])]
    for word in ("layout", "extent", "marks"):
        assert first.get(word) == everything.get(word), "the places of the others are known, and what they share"


def test_the_head_of_a_compacted_run_says_the_same_without_reading_a_column(runs: Runs, compacted: Path):
    plain, run = open_run(runs.folder / runs.spike), open_run(compacted)
    ours, theirs = facts_of(run), facts_of(plain)
    for name in ("step", "loss", "best_loss", "grad_norm", "tokens_per_s", "step_time_s", "nonfinite"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.best_loss < ours.loss
    long = [name for name in run.names if isinstance(drawn(run, name), LongSignal)]
    assert "train_loss" in long
    assert [name for name in long if len(run.ranks(0)[0].scalars._columns[name].value)] == []


def chart_by_id(charts: list[Chart], name: str) -> Chart:
    return next(chart for chart in charts if chart.id == name)


def test_a_compacted_run_shows_the_same_spike_at_the_same_step(runs: Runs, compacted: Path):
    header, body = framed(compacted)
    trace = chart_of(header, "loss")["traces"][0]
    step, value = scalar_column(runs.folder / runs.spike, "train_loss")
    x, y = array(body, trace["x"]), array(body, trace["y"])
    assert len(x) < 450 and np.isin(x, step).all()
    assert x[y.argmax()] == 12_345 and y.max() == np.float32(97.25) and y.min() == np.float32(value.min())
    assert trace["count"] == len(step) and trace["ratio"] == pytest.approx(len(step) / len(x), abs=0.01)
    assert (trace["last"], trace["last_x"]) == (value[-1], step[-1])


@pytest.mark.parametrize("window", [{}, {"start": 12_300, "stop": 12_400}, {"start": 500, "stop": 19_000}])
def test_the_charts_of_a_compacted_run_say_what_those_of_the_segments_say(
    runs: Runs, compacted: Path, window: dict[str, float]
):
    ours, _ = framed(compacted, **window)
    plain = story_charts(open_run(runs.folder / runs.spike))
    theirs, _ = frame.unpack(frame.build(plain, frame.Window(200, **window)) or b"")
    assert ours["layout"] == theirs["layout"] and ours["extent"] == theirs["extent"]
    for one, other in zip(ours["charts"], theirs["charts"], strict=True):
        assert one["id"] == other["id"]
        for a, b in zip(one.get("traces", ()), other.get("traces", ()), strict=True):
            for word in ("name", "role", "nan", "posinf", "neginf", "nonpositive", "count", "last", "last_x"):
                assert a.get(word) == b.get(word), word
            assert a.get("ratio") == pytest.approx(b.get("ratio"), rel=0.05)
    versions = [{chart["id"]: chart["version"] for chart in header["charts"]} for header in (ours, theirs)]
    assert versions[0].keys() == versions[1].keys()
    assert versions[0]["loss"] == versions[1]["loss"]


def test_a_heatmap_from_levels_shows_the_largest_of_each_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(zoom, "LONG_ROWS", 100)
    run = create_run(tmp_path)
    begin_attempt(run)
    writer = RankWriter(run, 0)
    writer.define_layers(["a", "b"], [(1,), (1,)])
    for step in range(1, 5001):
        values = np.array([1.0, np.inf if step == 3210 else 5.0 if step == 777 else 0.5], np.float32)
        writer.layers(step, float(step), {"norm": (values, np.array([step < 4000, True]))})
    writer.close()
    write_exit(run, 0, outcome="finished", step=5000, reason="done")
    compact_run(run, remove=True)
    chart = chart_by_id(story_charts(open_run(run)), "heat")
    assert isinstance(chart.matrix() if chart.matrix else None, LongMatrix)
    header, body = frame.unpack(frame.build([chart], frame.Window(50)) or b"")
    heat = chart_of(header, "heat")
    cells, edges = array(body, heat["cells"]).reshape(2, -1), array(body, heat["edges"])
    assert (np.diff(edges) > 0).all() and (edges[0], edges[-1]) == (0.5, 5000.5)
    assert heat["nonfinite"] == 1 and heat["ratio"] == pytest.approx(5000 / cells.shape[1], abs=0.01)
    (column,) = np.flatnonzero(cells[1] == heatmap.NONFINITE)
    assert edges[column] < 3210 < edges[column + 1]
    (column,) = np.flatnonzero(cells[1] == cells[1][cells[1] <= heatmap.STEPS].max())
    assert edges[column] < 777 < edges[column + 1]
    absent = np.flatnonzero(cells[0] == heatmap.ABSENT)
    assert len(absent) and edges[absent[0] + 1] > 4000 and absent[-1] == cells.shape[1] - 1
    narrow, _ = frame.unpack(frame.build([chart], frame.Window(50, 3000, 3300)) or b"")
    assert narrow["charts"][0]["scale"] == heat["scale"]  # a zoom keeps the colours


def test_a_narrow_window_comes_in_full_with_one_neighbour_on_each_side(runs: Runs, http):
    header, body = asked(http, runs.spike, px=200, x0=12_300, x1=12_400)
    step, value = scalar_column(runs.folder / runs.spike, "train_loss")
    trace = chart_of(header, "loss")["traces"][0]
    inside = (step >= 12_299) & (step <= 12_401)
    assert array(body, trace["x"]).tolist() == step[inside].tolist()
    assert array(body, trace["y"]).tolist() == value[inside].astype(np.float32).tolist()
    assert trace["ratio"] == 1.0 and trace["count"] == 101


def test_non_finite_values_travel_as_marks_and_break_the_line(runs: Runs, http):
    header, body = asked(http, runs.nan, px=200)
    step, value = scalar_column(runs.folder / runs.nan, "train_loss")
    trace = chart_of(header, "loss")["traces"][0]
    assert trace["nan"] == int(np.isnan(value).sum()) == 91
    marks = trace["marks"]
    assert array(body, marks["count"]).sum() == 91
    assert array(body, marks["x"])[0] == step[np.isnan(value)][0] == 210
    assert (array(body, marks["kind"]) == frame.NAN).all()
    norm = chart_of(header, "grad_norm")["traces"][0]
    assert norm["posinf"] == 1 and norm["last"] == "NaN"


def test_a_gap_stands_where_a_nan_lies_between_finite_samples():
    value = np.array([1.0, np.nan, np.nan, 4.0, 5.0])
    chart = Chart("c", "C", traces=(Trace("t", Signal("t", np.arange(1, 6), value)),))
    header, body = frame.unpack(frame.build([chart], frame.Window(100)) or b"")
    trace = header["charts"][0]["traces"][0]
    assert array(body, trace["x"]).tolist() == [1, 2, 4, 5]
    assert np.isnan(array(body, trace["y"])[1])


def test_what_the_browser_has_is_not_sent_again(runs: Runs, http):
    header, _ = asked(http, runs.healthy, px=300)
    have = {**header["versions"], **{chart["id"]: chart["version"] for chart in header["charts"]}}
    spelled = ",".join(f"{name}:{version}" for name, version in have.items())
    answer = http(f"/api/frame?run={runs.healthy}&px=300&have={spelled}")
    assert (answer.status, answer.body) == (204, b"")
    without_loss = ",".join(f"{name}:{version}" for name, version in have.items() if name != "loss")
    header, _ = asked(http, runs.healthy, px=300, have=without_loss)
    assert [chart["id"] for chart in header["charts"]] == ["loss"] and not header["versions"]


def test_an_incident_found_later_is_sent_without_the_values_and_once_while_it_lasts():
    values = Signal("t", np.arange(1, 6), np.array([1.0, 7.0, 1.0, 1.0, 1.0]))

    def sent(have: dict[str, str], *marks: Mark) -> dict | None:
        chart = Chart("c", "C", traces=(Trace("bare", values), Trace("t", values, marks=marks)))
        message = frame.build([chart], frame.Window(100), have=have)
        return message and frame.unpack(message)[0]

    rose = Mark(2, "incident", "loss rose", "warning", last_step=4)
    first = sent({})
    have = first["versions"] | {"c": first["charts"][0]["version"]}
    found = sent(have, rose)
    assert found["charts"] == []
    (bare, (mark,)) = found["curves"]["c"]
    assert bare == [] and (mark["step"], mark["y"], mark["text"]) == (2, 7.0, "loss rose")
    (whole,) = sent({}, rose)["charts"]
    assert whole["traces"][1]["incidents"] == [mark], "the same with the values"
    have |= found["versions"]
    assert sent(have, replace(rose, last_step=5)) is None
    assert (
        sent(have, replace(rose, text="loss rose and is back"))["curves"]["c"][1][0]["text"] == "loss rose and is back"
    )
    assert sent(have)["curves"]["c"] == [[], []], "it is none any more"


def test_only_charts_in_sight_are_sent(runs: Runs, http):
    header, _ = asked(http, runs.healthy, px=300, want="lr,heat")
    assert {chart["id"] for chart in header["charts"]} == {"lr", "heat"}
    assert len(header["layout"]) > 5


def test_a_chart_zoomed_into_the_past_does_not_change_when_the_run_grows():
    def chart(last: int) -> Chart:
        step = np.arange(1, last + 1)
        return Chart("c", "C", traces=(Trace("t", Signal("t", step, step.astype(float))),))

    past, all_of_it = frame.Window(100, 10, 50), frame.Window(100)
    assert frame.chart_version(chart(100), past, ()) == frame.chart_version(chart(200), past, ())
    assert frame.chart_version(chart(100), all_of_it, ()) != frame.chart_version(chart(200), all_of_it, ())


def test_values_beyond_float32_keep_their_size():
    chart = Chart("c", "C", traces=(Trace("t", Signal("t", np.arange(1, 4), np.array([1.0, 1e300, 1e-300]))),))
    header, body = frame.unpack(frame.build([chart], frame.Window(100)) or b"")
    trace = header["charts"][0]["traces"][0]
    assert trace["y"][2] == "f8"
    assert array(body, trace["y"]).tolist() == [1.0, 1e300, 1e-300]


def test_step_time_parts_are_means_that_add_up(runs: Runs, http):
    header, body = asked(http, runs.healthy, px=100)
    whole, *parts = chart_of(header, "step_time")["traces"]
    stacked = sum(array(body, part["y"]).astype(float) for part in parts)
    assert np.allclose(stacked, 0.05, atol=2e-4)
    assert whole["count"] == 400


def matrix(value: list[list[float]], present: list[list[bool]] | None = None) -> LayerMatrix:
    values = np.array(value, dtype=np.float32)
    there = np.ones_like(values, bool) if present is None else np.array(present)
    return LayerMatrix("s", np.arange(1, len(values) + 1), tuple("abc"[: values.shape[1]]), values, there)


def test_heat_cells_tell_zero_absent_and_non_finite_from_small():
    nan, inf = float("nan"), float("inf")
    layers = matrix(
        [[1.0, 0.0, nan], [10.0, 0.1, 1.0], [100.0, 1.0, inf]], [[True] * 3, [True, False, True], [True] * 3]
    )
    chart = Chart("heat", "H", kind="heat", matrix=lambda: layers)
    header, body = frame.unpack(frame.build([chart], frame.Window(500)) or b"")
    heat = header["charts"][0]
    cells = array(body, heat["cells"]).reshape(3, 3)
    bottom, top = heat["scale"]
    sizes = 10 ** (bottom + cells[0] / heatmap.STEPS * (top - bottom))
    assert np.allclose(sizes, [1, 10, 100], rtol=0.05)
    assert cells[1].tolist()[:2] == [heatmap.ZERO, heatmap.ABSENT]
    assert cells[2].tolist()[::2] == [heatmap.NONFINITE, heatmap.NONFINITE]
    assert heat["nonfinite"] == 2
    assert array(body, heat["edges"]).tolist() == [0.5, 1.5, 2.5, 3.5]


def test_one_infinite_norm_of_one_layer_is_in_the_heatmap_however_many_steps():
    value = np.ones((50_000, 3), np.float32)
    value[31_415, 1] = np.inf
    layers = LayerMatrix("s", np.arange(1, 50_001), ("a", "b", "c"), value, np.ones_like(value, bool))
    chart = Chart("heat", "H", kind="heat", matrix=lambda: layers)
    header, body = frame.unpack(frame.build([chart], frame.Window(200)) or b"")
    heat = header["charts"][0]
    cells = array(body, heat["cells"]).reshape(3, -1)
    edges = array(body, heat["edges"])
    (row,), (column,) = np.nonzero(cells == heatmap.NONFINITE)
    assert row == 1 and edges[column] < 31_416 < edges[column + 1]
    assert heat["ratio"] > 100


def test_an_explosion_does_not_take_the_contrast_from_what_came_before():
    value = np.full((1000, 4), 0.5, np.float32) * np.array([0.01, 0.1, 1.0, 2.0], np.float32)
    value[950:] = 1e12
    layers = LayerMatrix("s", np.arange(1, 1001), ("a", "b", "c", "d"), value, np.ones_like(value, bool))
    chart = Chart("heat", "H", kind="heat", matrix=lambda: layers)
    header, body = frame.unpack(frame.build([chart], frame.Window(500)) or b"")
    cells = array(body, header["charts"][0]["cells"]).reshape(4, -1)
    early, late = cells[:, 0].astype(int), cells[:, -1]
    assert (np.diff(early) > 10).all()
    assert (late == heatmap.STEPS).all() and (early < heatmap.STEPS).all()


def test_marks_outside_the_points_are_in_sight_when_zoomed_out():
    chart = Chart("c", "C", traces=(Trace("t", Signal("t", np.arange(1, 6), np.ones(5))),))
    header, _ = frame.unpack(frame.build([chart], frame.Window(100), marks=[Mark(0, "note", "before")]) or b"")
    assert header["extent"] == [0.0, 5.0] and [mark["step"] for mark in header["marks"]] == [0]


def test_marks_are_thinned_but_counted_and_incidents_never():
    marks = [Mark(step, "eval", "evaluation") for step in range(1, 10_001)]
    marks += [Mark(500, "incident", "first", key="a"), Mark(500, "incident", "second", key="b")]
    shown = frame.thin_marks(marks, frame.Window(100), (1, 10_000))
    evals = [mark for mark in shown if mark["kind"] == "eval"]
    assert len(evals) <= 101 and sum(mark["count"] for mark in evals) == 10_000
    assert not any(mark["line"] for mark in evals)
    assert [mark["text"] for mark in shown if mark["kind"] == "incident"] == ["first", "second"]


def test_nothing_recorded_yet_is_a_layout_without_charts(runs: Runs, http):
    header, _ = asked(http, runs.half)
    assert header["layout"] == [] and header["charts"] == [] and header["extent"] is None


def thinned_layers() -> LayerMatrix:
    """Steps 1 to 4 in full, then rows at 8 and 40 that stand for four and 32 steps: an infinity in the first layer."""
    value = np.array([[1, 1], [1, 2], [1, 3], [1, 4], [1, 100], [np.inf, 5]], np.float32)
    step, since = np.array([1, 2, 3, 4, 8, 40]), np.array([1, 2, 3, 4, 5, 9])
    nonfinite = np.zeros((6, 2), np.uint32)
    nonfinite[5, 0] = 7
    return LayerMatrix("norm", step, ("a", "b"), value, np.ones((6, 2), bool), "1", since, nonfinite)


def heat_of(layers: LayerMatrix, window: frame.Window) -> tuple[dict, np.ndarray, np.ndarray]:
    message = frame.build([Chart("heat", "H", kind="heat", matrix=lambda: layers)], window)
    assert message is not None
    header, body = frame.unpack(message)
    heat = header["charts"][0]
    edges = array(body, heat["edges"])
    return heat, array(body, heat["cells"]).reshape(2, -1), edges


def test_a_row_that_stands_for_many_steps_is_shown_at_each_of_them():
    heat, cells, edges = heat_of(thinned_layers(), frame.Window(buckets=500))
    assert len(edges) == 41
    assert (cells[0, 8:] == heatmap.NONFINITE).all()
    assert (cells[:, :8] != heatmap.NONFINITE).all()
    assert (cells[1, 4:8] == cells[1, 7]).all()
    assert cells[1, 4] > cells[1, 3]
    assert heat["nonfinite"] == 7


def test_a_zoom_between_two_rows_shows_what_the_later_one_tells_of_it():
    heat, cells, _ = heat_of(thinned_layers(), frame.Window(buckets=500, start=20, stop=30))
    assert (cells[0] == heatmap.NONFINITE).all()
    assert (cells[1] == cells[1, 0]).all()
    assert heat["nonfinite"] == 7
    chart = Chart("heat", "H", kind="heat", matrix=thinned_layers)
    whole = thinned_layers()
    before = LayerMatrix("norm", whole.step[:5], whole.names, whole.value[:5], whole.present[:5], "1", whole.since[:5])
    earlier = Chart("heat", "H", kind="heat", matrix=lambda: before)
    window = frame.Window(start=20, stop=30)
    assert frame.chart_version(chart, window, []) != frame.chart_version(earlier, window, [])
