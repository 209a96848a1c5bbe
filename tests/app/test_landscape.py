"""The pictures of the landscape show each point that was taken, and say which were not; hostile details are text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app import control
from app.charts.landscape import connect_figure, contour_figure, slice_figure, slices_of, surface_figure, trajectory_of
from app.charts.story import landscape_charts
from app.views.landscape import too_high
from monitor.errors import RunError
from monitor.runfile.landscapes import write_landscape
from monitor.runfile.reader import open_run
from monitor.runfile.records import LandscapeSample
from tests.app import runs_for_tests as made
from tests.app.conftest import Open, Runs, words
from trainer.launch import looking

AXIS = np.linspace(-1.0, 1.0, 5)
HOSTILE = "<b>x</b> %{y} ![](http://evil.example/p.png)"


def plane(step: int = 400, *, missing: int = 0, nonfinite: bool = False, **detail: object) -> LandscapeSample:
    """A bowl on a 5 x 5 grid, the last ``missing`` points not taken yet, the first one infinite if wanted."""
    x, y = (own.ravel() for own in np.meshgrid(AXIS, AXIS))
    loss = 1.0 + x**2 + 2 * y**2
    if nonfinite:
        loss[0] = np.inf
    keep = slice(0, len(x) - missing)
    told = json.dumps({"points": 25, "directions": ["pca", "random"], "loss_unit": "nats"} | detail)
    return LandscapeSample(step, 1.0, "plane", "pca", 1.0, x[keep], loss[keep], 1.0, 0, y[keep], told)


def line(step: int, direction: str, loss: np.ndarray | None = None) -> LandscapeSample:
    return LandscapeSample(step, 1.0, "line", direction, 1.0, AXIS, 1 + AXIS**2 if loss is None else loss, 1.0)


def test_slices_are_grouped_by_what_they_run_along_and_the_latest_is_in_front() -> None:
    random = [line(step, f"filter-normalised gaussian, seed {step}") for step in range(100, 1100, 100)]
    found = slices_of([*random, line(500, "update")])
    assert {along: len(lines) for along, lines in found.items()} == {"random": 10, "update": 1}
    figure = slice_figure(found["random"])
    assert [trace.name for trace in figure.data] == [f"step {step}" for step in (100, 300, 500, 800)] + [
        "step 1\u202f000"
    ]
    assert np.allclose(figure.data[-1].y, 1 + AXIS**2)
    assert slices_of([plane()]) == {}


def test_a_loss_that_is_not_finite_is_a_mark_in_each_picture() -> None:
    loss = np.array([np.nan, 2.0, 1.0, 2.0, np.inf])
    for figure in (slice_figure([line(1, "update", loss)]), connect_figure(line(1, "", loss))):
        (marks,) = [trace for trace in figure.data if trace.name == "not finite"]
        assert list(marks.x) == [-1.0, 1.0] and min(marks.y) > 2.0
    (marks,) = [trace for trace in contour_figure(plane(nonfinite=True)).data if trace.name == "not finite"]
    assert (list(marks.x), list(marks.y)) == ([-1.0], [-1.0])
    everything = slice_figure([line(1, "update", np.full(5, np.nan))])
    assert len(everything.data[-1].x) == 5, "all of them, when nothing is finite"


def test_a_plane_shows_its_points_and_leaves_open_what_was_not_taken() -> None:
    heat = contour_figure(plane(missing=7)).data[0]
    z = np.array(heat.z, float)
    assert np.isfinite(z).sum() == 18
    assert z[2, 2] == 1.0 and np.isclose(z[2, 4], 2.0) and np.isclose(z[0, 2], 3.0)
    assert "not taken yet" in heat.customdata[3][4]
    assert np.isfinite(np.array(surface_figure(plane()).data[0].z, float)).all()


def test_the_trajectory_lies_where_the_checkpoints_are_and_a_strange_one_is_none() -> None:
    path = {"step": [100, 200, 400], "x": [-1.0, 0.5, 0.0], "y": [1.0, 0.5, 0.0], "off": [0, 0, 0]}
    figure = contour_figure(plane(trajectory=path))
    (drawn,) = [trace for trace in figure.data if trace.name == "checkpoints"]
    assert all(trace.name or trace.type == "heatmap" or trace.showlegend is False for trace in figure.data)
    assert (list(drawn.x), list(drawn.y)) == (path["x"], path["y"])
    heights = surface_figure(plane(trajectory=path)).data[1].z
    assert np.allclose(heights, [1 + 1 + 2, 1 + 0.25 + 0.5, 1.0])
    for strange in (
        7,
        {},
        {"step": [1], "x": [1, 2], "y": [1]},
        {"step": [1], "x": ["NaN"], "y": [1]},
        {"step": "abc"},
    ):
        step, _ = trajectory_of(plane(trajectory=strange))
        assert len(step) == 0


def test_words_in_a_detail_are_text() -> None:
    hostile = plane(directions=[HOSTILE, HOSTILE], loss_unit=HOSTILE, variance_explained=["x", None])
    for figure in (contour_figure(hostile), surface_figure(hostile)):
        said = json.dumps(figure.to_plotly_json()["layout"], default=str)
        assert "<b>" not in said and "%{y}" not in said


def test_sharpness_is_drawn_against_its_limit(tmp_path: Path) -> None:
    from monitor.runfile.writer import RankWriter, begin_attempt, create_run

    run_dir = create_run(tmp_path, name="edge")
    writer = RankWriter(run_dir, begin_attempt(run_dir))
    for step in range(1, 41):
        more = {"sharpness": 10.0 * step, "sharpness_limit": 200.0} if step % 10 == 0 else {}
        writer.scalars(step, float(step), {"train_loss": 1.0} | more)
    writer.close()
    chart = landscape_charts(open_run(run_dir))[0]
    assert chart.id == "sharpness" and [trace.role for trace in chart.traces][-1] == "limit"


def curved(step: int, over: float | None, **detail: object) -> LandscapeSample:
    told = {"sharpness": None if over is None else 50.0 * over, "limit": 50.0, "lr": 0.04} | detail
    return LandscapeSample(
        step, 1.0, "curvature", "", np.nan, np.empty(0), np.empty(0), 1.0, detail_json=json.dumps(told)
    )


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ([0.3, 0.1, 0.31, 0.4], "No. The curvature is 0.31 of the limit"),
        ([0.2, 0.3, 0.95, 1.1], "It is as high as it can be. The curvature is at the limit of stability (0.95 of it)"),
        ([4.0], "Yes, unless the loss still falls. The curvature is 4.00 times the limit"),
        ([0.5, 2.0, None, 2.0, 2.0], "a rate of about 0.020 would be at the limit"),
        ([5.0, 0.5, None], "From the last 2 samples, up to step 2;"),
        ([0.5], "From one sample only, up to step 1;"),
    ],
)
def test_the_page_says_whether_the_learning_rate_is_too_high(over: list[float | None], words: str) -> None:
    assert words in " ".join(too_high([curved(step, each) for step, each in enumerate(over, 1)]))


def test_without_a_limit_there_is_no_telling() -> None:
    for strange in (None, 0.0, -1.0, "NaN", HOSTILE, [1], 1e-320):
        assert too_high([curved(1, 2.0, limit=strange)])[0].startswith("There is no telling")
    assert "limit of stability is not known" in too_high([curved(1, 2.0, limit=None)])[0]
    assert "no sample has found the curvature yet" in too_high([curved(1, None)])[0]
    assert too_high([plane()]) == ("", "")


# The page ------------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_was_computed_from_checkpoints(tmp_path: Path, open_page: Open, monkeypatch) -> None:
    runs = tmp_path / "runs"
    run_dir = made.healthy_run(runs)
    monkeypatch.setenv("GRADIOMETER_RUNS", str(runs))
    sharp = {"sharpness": 12.0, "limit": 10.0, "rule": HOSTILE, "eigenvalues": [12.0, "NaN"], "trace": 30.0}
    curvature = LandscapeSample(
        400, 1.0, "curvature", "", np.nan, np.empty(0), np.empty(0), 1.0, detail_json=json.dumps(sharp)
    )
    write_landscape(run_dir, "00000400-plane-00000000", [plane(missing=3)])
    write_landscape(run_dir, "00000400-curvature-00000000", [curvature])
    page = open_page("run", run=run_dir.name, section="Landscape")
    assert not page.exception
    said = words(page)
    assert "22 of 25 points so far" in said
    table = page.dataframe[-1].value
    assert table["Of the limit"].tolist() == ["1.20"]
    assert "Is the learning rate too high now?" in said and "It is as high as it can be" in said
    assert "![](" not in said


def test_a_sample_run_and_a_page_that_only_shows_compute_nothing(runs: Runs, monkeypatch) -> None:
    path = runs.folder / runs.healthy
    monkeypatch.setattr("app.data.SAMPLES", runs.folder)
    monkeypatch.setattr(control, "read_only_reason", lambda: None)
    with pytest.raises(RunError, match="sample run"):
        control.look_at_landscape(path, ["--kind", "line"], "a line")
    monkeypatch.setattr(control, "read_only_reason", lambda: "Read-only")
    with pytest.raises(RunError, match="Read-only"):
        control.stop_looking(path)


# The process ---------------------------------------------------------------------------------------------------------


def test_one_process_looks_at_a_run_at_a_time_and_its_refusal_is_kept(tmp_path: Path) -> None:
    from tests.waiting import until

    run_dir = made.healthy_run(tmp_path)  # without a checkpoint: refused by the process, in words
    assert not looking.looking(run_dir).running
    looking.look(run_dir, ["--kind", "line"], "a line")
    with pytest.raises(RunError, match="being looked at already"):
        looking.look(run_dir, ["--kind", "line"], "a line")
    until(lambda: not looking.looking(run_dir).running, "the end of the process")
    assert "no complete checkpoint" in (looking.looking(run_dir).problem or "")


def test_a_forged_record_ends_no_other_process(tmp_path: Path) -> None:
    import psutil

    run_dir = made.healthy_run(tmp_path)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        created = psutil.Process(stranger.pid).create_time()
        (run_dir / "landscape").mkdir(exist_ok=True)
        (run_dir / "landscape" / "process.json").write_text(
            json.dumps({"pid": stranger.pid, "pid_create_time": created, "asked": "x"})
        )
        looking.stop_looking(run_dir)
        with pytest.raises(subprocess.TimeoutExpired):
            stranger.wait(1.0)
    finally:
        stranger.kill()
        stranger.wait()
