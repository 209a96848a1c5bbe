"""The ranks of a run on its page: who is marked, and the part's states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app import frame
from app.charts.ranks import MOST_CURVES, most_apart
from app.views.ranks import Measured, by_middle, of_row, of_window, remarked, rows, worst_window
from monitor.runfile.ranks import RankTable, rank_table
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from monitor.signals import Signal
from tests.app import runs_for_tests as made
from tests.app.conftest import Ask, Open, Runs, words

LAYERS = ("embed.weight", "<b>head</b>.weight")


def with_ranks(folder: Path, *, apart: bool = True, ranks: int = 3) -> Path:
    """200 steps; rank 1 is slow in steps 101 to 120, the weights of rank 2 are others from step 150 on."""
    path = create_run(folder, name="ranks", run_id="ranks")
    begin_attempt(path, world_size=ranks)
    for rank in range(ranks):
        writer = RankWriter(path, 0, rank)
        writer.define_layers(LAYERS, [(1,)] * len(LAYERS))
        for step in range(1, 201):
            slow = 0.03 if rank == 1 and 100 < step <= 120 else 0.01
            odd = apart and rank == 2 and step >= 150
            values = {
                "step_time_s": 0.05, "first_gradient_s": slow, "comm_exposed_s": 0.002, "train_loss": 2.0,
                "grad_norm_local": 1.0 + 0.01 * rank, "parameter_checksum": float(step * 7 + odd),
            }  # fmt: skip
            writer.scalars(step, made.START + step, values)
            if step >= 149:
                checks = np.array([1.0, 2.0 + odd], np.float32)
                writer.layers(step, made.START + step, {"parameter_checksum": checks})
        writer.close()
    write_exit(path, 0, outcome="finished", step=200, reason="")
    return path


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    return with_ranks(tmp_path)


def test_the_slow_rank_and_the_first_step_apart_are_named(ranks: Path, open_page: Open):
    page = open_page("run", run=ranks.name, section="Ranks")
    assert not page.exception
    recent, worst = (table.value for table in page.dataframe)
    assert recent["rank"].tolist() == ["0", "1", "2"] and recent["remark"].tolist() == ["", "", ""]
    assert worst["remark"].tolist() == ["", "▲ slow: 3.00 times the middle of all", ""]
    said = words(page).replace("\\", "")
    assert "Apart since step 150, at 51 of 200 steps compared. Odd: rank 2." in said
    assert page.code[-1].value == LAYERS[1]
    assert "ranks" in [json.loads(one.proto.json).get("view") for one in page.get("bidi_component")]


def test_equal_weights_and_unknown_ones_are_different_words(tmp_path, monkeypatch, open_page: Open):
    monkeypatch.setenv("GRADIOMETER_RUNS", str(tmp_path))
    with_ranks(tmp_path, apart=False)
    page = open_page("run", run="ranks", section="Ranks")
    assert "Equal on all ranks at each of the 200 steps" in page.success[0].value
    path = create_run(tmp_path, run_id="bare")
    begin_attempt(path, world_size=2)
    for rank in range(2):
        writer = RankWriter(path, 0, rank)
        writer.scalars(1, made.START, {"train_loss": float("nan")})
        writer.close()
    page = open_page("run", run="bare", section="Ranks")
    assert not page.exception and "is not known" in words(page)


def test_a_run_of_one_rank_has_no_such_part(runs: Runs, open_page: Open):
    assert "Ranks" not in open_page("run", run=runs.healthy).segmented_control(key="section").options


def test_the_worst_window_is_the_one_of_the_slow_rank(ranks: Path):
    table = rank_table(open_run(ranks), window=20)
    worst = worst_window(table)
    assert worst is not None and table.first_step[worst] == 100


def test_what_is_odd_is_held_against_the_middle():
    np.testing.assert_allclose(by_middle(np.array([1.0, 2.0, 1.0])), [1.0, 2.0, 1.0])
    np.testing.assert_allclose(by_middle(np.array([1.0, np.nan, 4.0])), [0.25, np.nan, 4.0])
    assert np.isnan(by_middle(np.array([5.0]))).all() and np.isnan(by_middle(np.zeros(2))).all()
    norms = measured(grad_norm_local=np.array([1.0, np.inf, 1.1, 9.0]))
    assert remarked(norms, 4) == ["", "▲ gradient norm not finite", "", "▲ gradient norm 8.18 times the middle of all"]
    waiting = measured(step_time_s=np.full(2, 0.1), comm_exposed_s=np.array([0.05, 0.0]))
    assert remarked(waiting, 2) == ["", "▲ slow: 2.00 times the middle of all"]
    assert remarked(measured(grad_norm_local=np.full(2, np.nan)), 2) == ["", ""]


def test_a_value_that_a_rank_does_not_have_is_a_dash_and_nothing_odd():
    norms = np.array([1.0, np.nan, np.nan])
    some = Measured({"grad_norm_local": norms}, {"grad_norm_local": np.array([True, True, False])})
    assert [row["local gradient norm"] for row in rows(some, (0, 1, 2))] == ["1.000", "NaN", "–"]
    assert remarked(some, 3) == ["", "▲ gradient norm not finite", ""]
    step = np.arange(4)
    table = RankTable(
        0, (0, 1), step, step,
        {"step_time_s": np.ones((4, 2)), "first_gradient_s": np.array([[0.1, 0.2]] + 3 * [[np.nan, np.nan]])},
        {"step_time_s": np.ones((4, 2), int), "first_gradient_s": np.array([[1, 1]] + 3 * [[0, 0]])},
        np.empty(0, int), np.empty(0, int), (),
    )  # fmt: skip
    assert set(of_row(table, 2).values) == {"step_time_s"}, "measured in other steps alone"
    np.testing.assert_allclose(of_window(table).values["first_gradient_s"], [0.1, 0.2])


def measured(**values: np.ndarray) -> Measured:
    return Measured(values, {name: np.ones(len(one), bool) for name, one in values.items()})


def test_of_very_many_ranks_the_odd_ones_are_drawn():
    step = np.arange(3)
    signals = [(rank, Signal("grad_norm_local", step, np.full(3, 1.0 + 0.001 * rank))) for rank in range(40)]
    signals[20] = (20, Signal("grad_norm_local", step, np.array([1.0, np.nan, 1.0])))
    signals[17] = (17, Signal("grad_norm_local", step, np.full(3, 50.0)))
    drawn = [rank for rank, _ in most_apart(signals)]
    assert len(drawn) == MOST_CURVES and {17, 20} <= set(drawn) and drawn == sorted(drawn)


def test_the_charts_have_a_curve_a_rank(ranks: Path, http: Ask):
    header, _ = frame.unpack(http(f"/api/frame?run={ranks.name}&view=ranks").body)
    assert [chart["id"] for chart in header["charts"]] == ["first_gradient_s", "grad_norm_local", "step_time_s"]
    for chart in header["charts"]:
        assert [trace["name"] for trace in chart["traces"]] == ["rank 0", "rank 1", "rank 2"]
