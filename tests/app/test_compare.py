"""Runs over each other: the curves against what was recorded, the pure parts against slow twins, the page's states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from app import frame
from app.charts.axes import AXES
from app.charts.compare import SHOWN, axis_of, compare_charts, metrics_of
from app.charts.describe import Axis
from app.charts.metric_search import checked_pattern
from app.charts.smooth import moving_average, smoothed
from app.compare import ABSENT, MOST_RUNS, best_of, comparing, config_difference, last_of, result_of
from monitor.runfile import zoom
from monitor.runfile.compact import compact_run
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from monitor.runfile.zoom import LongSignal, drawn
from monitor.signals import Signal
from tests.app import runs_for_tests as made
from tests.app.conftest import Ask, Open, Runs, words
from tests.app.test_frame import array, chart_of


def tensorboard(values: list[float], weight: float) -> list[float]:
    """``classicSmoothing`` of TensorBoard's line chart, line by line."""
    last, out = 0.0, []
    if all(value == values[0] for value in values):
        return values
    for count, value in enumerate(values, start=1):
        last = last * weight + (1 - weight) * value
        debias = 1.0 if weight == 1 else 1 - weight**count
        out.append(last / debias)
    return out


# ---- smoothing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.001, 0.6, 0.99, 0.999])
@pytest.mark.parametrize("count", [1, 2, 33, 3000])
def test_smoothing_is_that_of_tensorboard_for_the_same_number(weight, count):
    value = np.random.default_rng(count).normal(3, 1, count)
    value[count // 2] = 1e12  # a spike must not cost what follows its digits
    signal = Signal("train_loss", np.arange(1, count + 1), value)
    np.testing.assert_allclose(smoothed(signal, weight).value, tensorboard(value.tolist(), weight), rtol=1e-9)


def test_a_constant_stays_as_it_is_to_the_last_bit():
    signal = Signal("lr", np.arange(50), np.full(50, 0.1))
    assert (smoothed(signal, 0.9).value == 0.1).all()


def test_smoothing_begins_anew_after_what_is_not_finite_and_after_a_restart():
    value = np.random.default_rng(0).normal(size=40)
    value[[9, 10, 25]] = np.nan, np.inf, -np.inf
    signal = Signal("train_loss", np.arange(1, 41), value)
    ours = smoothed(signal, 0.8, restarts=(33,)).value
    for low, high in ((0, 9), (11, 25), (26, 33), (33, 40)):
        np.testing.assert_allclose(ours[low:high], tensorboard(value[low:high].tolist(), 0.8))
    np.testing.assert_array_equal(ours[[9, 10, 25]], value[[9, 10, 25]])
    fresh = np.arange(40) % 2 == 0
    pairs = moving_average(np.arange(40.0), 0.5, fresh)
    np.testing.assert_allclose(pairs[1::2], [(0.5 * one + 0.25 * (one - 1)) / 0.75 for one in range(1, 40, 2)])


# ---- axes ---------------------------------------------------------------------------------------------------------


def test_an_axis_and_its_steps_are_each_others_inverse():
    rng = np.random.default_rng(1)
    for _ in range(50):
        step = np.unique(rng.integers(0, 500, 20))
        axis = Axis(step, np.cumsum(rng.integers(0, 3, len(step))).astype(float))  # with standstills
        every = np.arange(step[0], step[-1] + 1)
        start, stop = np.sort(rng.uniform(axis.x[0] - 1, axis.x[-1] + 1, 2))
        low, high = axis.steps(start, stop)
        inside = every[(axis.of(every) >= start) & (axis.of(every) <= stop)]
        assert low is not None and high is not None
        if len(inside):
            assert inside[0] - 1 <= low <= inside[0] and inside[-1] <= high <= inside[-1] + 1
    assert Axis(step, step.astype(float)).steps(None, None) == (None, None)


def two_attempts(folder: Path) -> Path:
    """A run that was resumed an hour later, with tokens."""
    path = create_run(folder, run_id="resumed-later")
    for attempt, (first, last, start) in enumerate(((1, 5, 1000.0), (4, 9, 4600.0))):
        begin_attempt(path, parent=attempt - 1 if attempt else None, resume_step=first - 1)
        writer = RankWriter(path, attempt)
        for step in range(first, last + 1):
            writer.scalars(step, start + step, {"train_loss": 1.0 / step, "tokens": 512.0 * step})
        writer.close()
    return path


def test_steps_become_tokens_and_times(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    two_attempts(tmp_path)
    with comparing(["resumed-later"]) as compared:
        (entry,) = compared.entries
        step = np.arange(1, 10)
        wall = np.where(step <= 3, 1000.0, 4600.0) + step
        assert axis_of(entry, "step") is None
        for kind, expected in (("tokens", 512.0 * step), ("wall time", wall), ("relative time", wall - wall[0])):
            axis = axis_of(entry, kind)
            assert axis is not None
            np.testing.assert_array_equal(axis.of(step), expected)


# ---- long runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compacted(all_runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = shutil.copytree(all_runs.folder / all_runs.spike, tmp_path_factory.mktemp("long") / all_runs.spike)
    assert compact_run(run, remove=True)
    return run


def test_a_long_run_is_compared_without_reading_it_whole(compacted: Path, monkeypatch):
    monkeypatch.setenv("GRADIOMETER_RUNS", str(compacted.parent))
    monkeypatch.setattr("app.charts.smooth.LONG_ROWS", 500)
    plain = open_run(compacted).series("train_loss")
    monkeypatch.setattr(LongSignal, "whole", lambda self: pytest.fail("read whole"))
    with comparing([compacted.name]) as compared:
        (entry,) = compared.entries
        charts = compare_charts(compared.entries, axis="relative time", smoothing=0.9)
        header, body = frame.unpack(frame.build(charts, frame.Window(200)) or b"")
        result = result_of(entry)
    raw, smooth = chart_of(header, "train_loss")["traces"]
    assert array(body, raw["y"]).max() == np.float32(97.25)
    assert result.train_last == plain.value[-1] and result.train_best == plain.value.min()
    sampled = drawn(entry.run, "train_loss").sampled(500)
    assert len(sampled) <= 502 and len(plain) / len(sampled) == pytest.approx(smooth["every"], abs=1)
    at = np.searchsorted(plain.step, sampled.step)
    np.testing.assert_array_equal(sampled.value, plain.value[at])
    np.testing.assert_array_equal(np.diff(at)[:-1], np.diff(at)[0])
    assert smooth["last"] == pytest.approx(tensorboard(sampled.value.tolist(), 0.9)[-1])


def test_a_long_signal_up_to_a_step_is_that_of_its_rows(compacted: Path):
    signal = drawn(open_run(compacted), "train_loss")
    plain = open_run(compacted).series("train_loss")
    assert isinstance(signal, LongSignal)
    for last in (0, 1, 777, 15_000, 10**9):
        until, expected = signal.until(last), plain.between(None, last)
        np.testing.assert_array_equal(until.step, expected.step)
        assert last_of(until) == last_of(expected) and best_of(until) == best_of(expected)
        np.testing.assert_array_equal(until.whole().value, expected.value)
        if len(expected):
            ours, theirs = until.zoom(None, None, 50), zoom.zoom_rows(expected.step, expected.value, 50)
            assert ours.count == theirs.count and ours.value.max() == theirs.value.max()


# ---- metrics ------------------------------------------------------------------------------------------------------


def test_metrics_are_found_by_a_pattern_in_any_case(runs: Runs):
    opened = [open_run(runs.folder / runs.healthy), open_run(runs.folder / runs.measured)]
    assert metrics_of(opened) == [name for name in SHOWN if any(name in run.names for run in opened)]
    assert metrics_of(opened, "GRAD.norm|val") == ["grad_norm_postclip", "grad_norm_preclip", "val_loss"]
    assert metrics_of(opened, "nothing") == []


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", ".*.*.*.*x", "(", "[z-a]", "x" * 101, "(?P<a>x){9}"])
def test_a_pattern_that_is_none_or_could_take_for_ever_is_refused(pattern):
    with pytest.raises(ValueError, match="search for metrics"):
        checked_pattern(pattern)


# ---- differences --------------------------------------------------------------------------------------------------


def test_only_what_differs_is_told_one_row_a_key():
    one = {"optimizer": {"lr": 0.002, "name": "adamw"}, "steps": 100, "clip": None, "flag": True, "sizes": [1, 2]}
    two = {"optimizer": {"lr": 0.004, "name": "adamw"}, "steps": 100.0, "clip": 1.0, "flag": 1, "sizes": [1, 2]}
    three = {**two, "extra": "<b>x</b>", "flag": True}
    assert config_difference([one, two]) == [
        ("clip", ("none", "1")),
        ("flag", ("true", "1")),
        ("optimizer.lr", ("0.002", "0.004")),
    ]
    assert config_difference([one, three, None])[1] == ("extra", (ABSENT, "<b>x</b>", ABSENT))
    assert config_difference([one, None]) == config_difference([one, one]) == config_difference([None, None]) == []


def test_the_difference_of_any_two_is_what_a_plain_loop_finds():
    rng = np.random.default_rng(2)
    for _ in range(200):
        configs = [{key: int(rng.integers(3)) for key in "abcde" if rng.random() < 0.7} for _ in range(3)]
        expected = [key for key in "abcde" if len({config.get(key, "absent") for config in configs}) > 1]
        assert [key for key, _ in config_difference(configs)] == expected


# ---- the route ----------------------------------------------------------------------------------------------------


def asked(http: Ask, ids: list[str], **query: object) -> tuple[dict, bytes]:
    answer = http("/api/frame?view=compare" + named(ids) + "".join(f"&{key}={value}" for key, value in query.items()))
    assert answer.status == 200, answer.body
    return frame.unpack(answer.body)


def named(ids: list[str]) -> str:
    return "".join(f"&run={run_id}" for run_id in ids)


def test_each_run_has_its_colour_in_every_chart_and_every_value_is_there(runs: Runs, http: Ask):
    ids = [runs.healthy, runs.newer, runs.nan, runs.resumed]
    header, body = asked(http, ids, px=1000)
    for chart in header["charts"]:
        for trace in chart["traces"]:
            assert trace["colour"] == {"healthy": 0, "goes to NaN": 2, "resumed": 3}[trace["name"]]
    for trace, run_id in zip(chart_of(header, "train_loss")["traces"], (ids[0], *ids[2:]), strict=True):
        recorded = open_run(runs.folder / run_id).series("train_loss")
        finite = np.isfinite(recorded.value)
        drawn_y = array(body, trace["y"])
        np.testing.assert_array_equal(drawn_y[np.isfinite(drawn_y)], recorded.value[finite].astype(np.float32))
        assert trace["nan"] == (~finite).sum()


def test_nothing_is_sent_again_when_nothing_changed_and_all_when_the_axis_does(runs: Runs, http: Ask):
    ids = [runs.healthy, runs.nan]
    wait_for_diagnoses(runs, ids)
    header, _ = asked(http, ids)
    have = {**header["versions"], **{chart["id"]: chart["version"] for chart in header["charts"]}}
    query = "have=" + ",".join(f"{name}:{version}" for name, version in have.items())
    assert http(f"/api/frame?view=compare{named(ids)}&{query}").status == 204
    for change in ("axis=wall%20time", "smooth=0.5", "log=1"):
        answer = http(f"/api/frame?view=compare{named(ids)}&{query}&{change}")
        again, _ = frame.unpack(answer.body)
        already = sum(slot["log"] for slot in header["layout"]) if change == "log=1" else 0
        assert len(again["charts"]) == len(header["charts"]) - already > 0, change


def test_incidents_are_marks_on_the_curve_of_their_run(runs: Runs, http: Ask):
    ids = [runs.healthy, runs.nan]
    wait_for_diagnoses(runs, ids)
    header, _ = asked(http, ids)
    healthy, broken = chart_of(header, "train_loss")["traces"]
    assert "incidents" not in healthy
    marks = {mark["step"]: mark for mark in broken["incidents"]}
    recorded = open_run(runs.folder / runs.nan).series("train_loss")
    assert marks[209]["y"] == recorded.between(209, 209).value[0] and "goes to NaN" in marks[209]["text"]


def wait_for_diagnoses(runs: Runs, ids: list[str]) -> None:
    from app import data

    for run_id in ids:
        with data.READERS.reading(runs.folder / run_id) as run:
            version = run.version
        assert data.DIAGNOSES.of(runs.folder / run_id, version, wait=60).value is not None


def test_a_window_of_another_axis_holds_what_lies_in_it(runs: Runs, http: Ask):
    header, body = asked(http, [runs.healthy], axis="relative%20time", x0=5, x1=10, px=1000)
    x = array(body, chart_of(header, "train_loss")["traces"][0]["x"])
    inside = x[(x >= 5) & (x <= 10)]
    np.testing.assert_allclose(inside, np.arange(100, 201) * 0.05, atol=1e-6)  # a step takes 50 ms
    assert len(x) <= len(inside) + 4


@pytest.mark.parametrize(
    "query", ["axis=epoch", "smooth=1", "smooth=-1", "smooth=x", "metrics=(a%2B)%2B", "metrics=(", "px=0"]
)
def test_a_bad_question_is_refused_with_what_is_accepted(runs: Runs, http: Ask, query):
    answer = http(f"/api/frame?view=compare{named([runs.healthy])}&{query}")
    assert answer.status == 400 and len(json.loads(answer.body)["error"]) > 20


@pytest.mark.parametrize("ids", [[], ["nothing-here"], ["../../etc", "a/b"], ["from-the-future"]])
def test_without_a_readable_run_there_are_words(runs: Runs, http: Ask, ids):
    answer = http(f"/api/frame?view=compare{named(ids)}")
    assert answer.status == 404 and len(json.loads(answer.body)["error"]) > 20


# ---- forks --------------------------------------------------------------------------------------------------------


def forked(folder: Path, parent: str, step: int, last: int) -> str:
    path = create_run(folder, name="fork", run_id="fork", parent={"run": parent, "attempt": 0, "step": step})
    begin_attempt(path)
    writer = RankWriter(path, 0)
    for at in range(step + 1, last + 1):
        writer.scalars(at, made.START + 1e6 + at, {"train_loss": 2.0})
    writer.close()
    write_exit(path, 0, outcome="finished", step=last, reason="")
    return path.name


def test_a_fork_is_drawn_with_its_parents_line_up_to_where_it_began(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    parent = made.healthy_run(tmp_path, steps=100, run_id="parent").name
    fork = forked(tmp_path, parent, 60, 90)
    with comparing([fork]) as compared:
        before, own = compare_charts(compared.entries)[0].traces
        assert (before.role, before.signal.step[0], before.signal.step[-1]) == ("parent", 1, 60)
        assert own.signal.step[0] == 61 and before.colour == own.colour
        before, own = compare_charts(compared.entries, axis="relative time")[0].traces
        assert before.axis is not None and own.axis is not None
        assert before.axis.of(np.array([60])) == pytest.approx(59 * 0.05) == own.axis.of(np.array([61]))
    with comparing([fork, parent]) as compared:
        assert [trace.role for trace in compare_charts(compared.entries)[0].traces] == ["line", "line"]
    shutil.rmtree(tmp_path / parent)
    with comparing([fork]) as compared:
        assert [trace.role for trace in compare_charts(compared.entries)[0].traces] == ["line"]


# ---- the page -----------------------------------------------------------------------------------------------------


def test_an_address_without_runs_says_how_to_choose(runs: Runs, open_page: Open):
    page = open_page("compare")
    assert not page.exception and "Choose 2 to 10 runs" in page.info[0].value


def test_no_runs_at_all_shows_the_command(no_runs, open_page: Open):
    page = open_page("compare")
    assert not page.exception and "gradiometer train" in words(page)


def test_the_table_has_a_row_a_run_and_the_differences_a_row_a_key(runs: Runs, open_page: Open, tmp_path):
    wait_for_diagnoses(runs, [runs.nan])
    page = open_page("compare", run=[runs.healthy, runs.nan, runs.newer, "nothing-here"])
    assert not page.exception
    table = page.dataframe[0].value.set_index("run")
    assert list(table.index) == ["healthy", "goes to NaN"]
    assert table.loc["goes to NaN", "last train loss"] == "NaN" and table.loc["healthy", "steps"] == "400 of 400"
    assert "incident" in table.loc["goes to NaN", "health"]
    said = words(page).replace("\\", "").replace("\u2060", "")
    assert "from-the-future cannot be read" in said.replace("*", "") and "nothing-here" in said
    assert "Nowhere: they are the same." in said
    mounted = json.loads(page.get("bidi_component")[0].proto.json)
    assert mounted["run"] == [runs.healthy, runs.nan, runs.newer, "nothing-here"]


def test_the_address_brings_the_view_back(runs: Runs, open_page: Open):
    page = open_page(
        "compare",
        run=[runs.healthy, runs.nan],
        axis="wall time",
        smooth="0.6",
        metrics="loss",
        log="true",
        x1="9",
        x0="1",
    )
    mounted = json.loads(page.get("bidi_component")[0].proto.json)
    assert mounted["query"] == {"axis": "wall time", "smooth": "0.6", "metrics": "loss", "log": "1"}
    assert mounted["span"] == [1.0, 9.0]
    page.segmented_control(key="axis").set_value("tokens").run()
    assert "x0" not in page.query_params and page.query_params["run"] == [runs.healthy, runs.nan]
    said = words(page)
    assert "has not recorded its tokens" in said.replace("\\", "")


def test_one_run_is_shown_and_asks_for_another(runs: Runs, open_page: Open):
    page = open_page("compare", run=runs.healthy)
    assert not page.exception and "One run is shown" in page.info[0].value
    page.text_input(key="find").set_value("gpt -sample state:crashed").run()
    page.button(key="add_found").click().run()
    assert page.query_params["run"] == [runs.healthy, runs.nan]


def test_what_cannot_be_compared_is_said(tmp_path, monkeypatch, open_page: Open):
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    for run_id, name, value in (("a", "only_a", 1.0), ("b", "only_b", float("nan"))):
        path = create_run(tmp_path, name=run_id, run_id=run_id)
        begin_attempt(path)
        writer = RankWriter(path, 0)
        writer.scalars(1, made.START, {name: value})
        writer.close()
    made.half_written(tmp_path)
    page = open_page("compare", run=["a", "b", "half-written"])
    said = words(page).replace("\\", "")
    assert not page.exception
    assert "none of the metrics below in common" in said
    assert "only_b has no finite value" in said and "half written has no points yet" in said
    for pattern, expected in (("nothing", "No metric matches"), ("(", "no regular expression")):
        page = open_page("compare", run=["a", "b"], metrics=pattern)
        assert not page.exception and expected in words(page).replace("\\", "")


def test_more_runs_than_colours_are_cut_with_a_word(runs: Runs, open_page: Open):
    page = open_page("compare", run=[f"run-{at}" for at in range(MOST_RUNS + 3)])
    assert not page.exception and "the first 10 are compared" in words(page)


def test_hostile_words_are_shown_as_text(tmp_path, monkeypatch, open_page: Open, http: Ask):
    from app.text import markdown, plain

    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    ids = []
    for index, name in enumerate(made.HOSTILE[:9]):
        path = create_run(tmp_path, name=name, run_id=f"hostile-{index}", config={name: name, "key": index})
        begin_attempt(path)
        writer = RankWriter(path, 0)
        writer.scalars(1, made.START, {name: float("nan")})
        writer.close()
        ids.append(path.name)
    page = open_page("compare", run=ids)
    assert not page.exception
    assert set(page.dataframe[0].value["run"]) == {plain(name, 120) for name in made.HOSTILE[:9]}
    assert set(page.dataframe[1].value["key"]) == {*(plain(name, 200) for name in made.HOSTILE[:9]), "key"}
    said = "\n".join(element.value for element in page.markdown)
    for name in made.HOSTILE[:9]:
        assert markdown(name) in said and name not in said
    header, _ = asked(http, ids)
    assert all(set(chart["id"]) <= set("x.0123456789abcdef") for chart in header["layout"])


def test_every_axis_of_the_page_is_one_of_the_route(runs: Runs, http: Ask):
    for axis in AXES:
        header, _ = asked(http, [runs.measured], axis=axis.replace(" ", "%20"))
        assert header["layout"][0]["x_title"] == AXES[axis].title
