"""The cells of a heatmap: what is kept of several steps, what is not measured, and which colour a value gets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import frame, heatmap
from app.charts.describe import Chart, Trace
from app.heatmap import colour_scale, picture_of, quantise
from monitor.signals import LayerMatrix, Signal


def matrix(step, value, present=None) -> LayerMatrix:
    values = np.array(value, np.float32)
    there = np.ones_like(values, bool) if present is None else np.array(present)
    return LayerMatrix("s", np.array(step), tuple("abc"[: values.shape[1]]), values, there)


def measured_every(cadence: int, last: int, first: int = 10) -> LayerMatrix:
    """One layer of ones, at the first steps and then every so many."""
    step = np.array([at for at in range(1, last + 1) if at <= first or at % cadence == 0])
    return matrix(step, np.ones((len(step), 1)))


@pytest.mark.parametrize(("keep", "kept"), [("largest", 0.5), ("smallest", -0.9), ("farthest", -0.9)])
def test_a_cell_keeps_what_its_measure_names(keep, kept):
    value = np.zeros((10_000, 2))
    value[4_321] = [0.5, 0.5]
    value[4_322] = [-0.9, 0.1]
    seen = picture_of(matrix(np.arange(1, 10_001), value), keep, 100, None, None)
    (column,) = np.flatnonzero((seen.edges[:-1] < 4_323) & (seen.edges[1:] > 4_323))
    assert seen.value[0, column] == np.float32(kept)
    assert seen.value[1, column] == np.float32(0.5 if keep != "smallest" else 0.0)
    assert not seen.nonfinite.any() and seen.present.all()


def test_steps_between_the_measured_ones_are_blank():
    seen = picture_of(measured_every(50, 400), "largest", 300, None, None)
    assert (seen.rows, seen.span) == (18, 400)
    assert seen.at[seen.present[0]].tolist() == [*range(1, 11), *range(50, 401, 50)]
    assert (seen.at[~seen.present[0]] == -1).all()
    width = np.diff(seen.edges)
    assert (width > 0).all() and width[seen.present[0]].max() < 3, "a measured step is no wider than it must be"
    for step, place in zip(seen.at[seen.present[0]], np.flatnonzero(seen.present[0]), strict=True):
        assert seen.edges[place] < step < seen.edges[place + 1]


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=150, unique=True), st.integers(0, 1))
def test_each_measured_step_of_a_sparse_statistic_has_its_own_value_in_order(steps, absent):
    steps = sorted(steps)
    value = np.array(steps, np.float32)[:, None] * [1, -1]
    present = np.ones((len(steps), 2), bool)
    present[::2, 1] = absent == 0
    seen = picture_of(matrix(steps, value, present), "largest", 300, None, None)
    assert (np.diff(seen.edges) > 0).all()
    if seen.at is None:
        assert seen.span <= heatmap.SPARSE * seen.rows
        return
    own = seen.at >= 0
    assert seen.at[own].tolist() == steps
    assert np.array_equal(seen.value[0, own], np.array(steps, np.float32))
    assert np.array_equal(seen.present[:, own], present.T) and not seen.present[:, ~own].any()


def test_a_statistic_of_every_step_is_drawn_whole():
    seen = picture_of(matrix(np.arange(1, 101), np.ones((100, 1))), "largest", 300, None, None)
    assert seen.at is None and seen.edges.tolist() == [step - 0.5 for step in range(1, 102)]


def test_a_window_of_a_sparse_statistic_has_the_steps_in_it():
    seen = picture_of(measured_every(50, 400), "largest", 300, 90, 260)
    assert seen.at[seen.present[0]].tolist() == [100, 150, 200, 250]


def test_a_signed_scale_has_zero_in_its_middle_and_the_same_on_both_sides():
    cells = np.array([[-0.3, 0.0, 0.3, 99.0, np.nan]], np.float32)
    bottom, top = colour_scale(matrix([1, 2, 3], [[-0.3], [0.0], [0.3]]), "signed")
    assert bottom == -top == -0.5
    absent = np.array([[True, True, True, True, False]])
    code = quantise(cells, np.zeros_like(absent), absent, bottom, top, "signed")
    assert code.tolist() == [[50, 125, 200, heatmap.STEPS, heatmap.ABSENT]]


def test_a_share_is_linear_from_zero_and_zero_is_one_of_its_values():
    shares = matrix([1, 2, 3], [[0.0], [0.07], [0.04]])
    assert colour_scale(shares, "linear") == pytest.approx((0, 0.1))
    code = quantise(shares.value.T, np.zeros((1, 3), bool), np.ones((1, 3), bool), 0, 0.1, "linear")
    assert code.tolist() == [[0, 175, 100]]
    assert colour_scale(matrix([1], [[0.0]]), "linear") == (0, 1)


def test_a_limit_known_beforehand_is_the_end_of_the_scale():
    assert colour_scale(matrix([1], [[0.01]]), "signed", 1.0) == (-1.0, 1.0)


def test_the_message_says_how_many_steps_were_measured_and_which():
    chart = Chart("heat", "H", kind="heat", matrix=lambda: measured_every(50, 400), scale="signed", keep="farthest")
    header, body = frame.unpack(frame.build([chart], frame.Window(500)) or b"")
    heat = header["charts"][0]
    assert heat["measured"] == [18, 400] and heat["scale_kind"] == "signed" and heat["ratio"] == 1
    at = frame.array_at(body, heat["at"])
    cells = frame.array_at(body, heat["cells"])
    assert ((at >= 0) == (cells != heatmap.ABSENT)).all()


def test_charts_that_are_folded_away_are_sent_only_when_asked_for():
    line = (Trace("t", Signal("t", np.arange(1, 6), np.ones(5))),)
    charts = [Chart("seen", "S", traces=line), Chart("folded", "F", traces=line, section="Input")]
    header, _ = frame.unpack(frame.build(charts, frame.Window(100)) or b"")
    assert [chart["id"] for chart in header["charts"]] == ["seen"]
    assert [spec["section"] for spec in header["layout"]] == ["", "Input"]
    header, _ = frame.unpack(frame.build(charts, frame.Window(100), want={"folded"}) or b"")
    assert [chart["id"] for chart in header["charts"]] == ["folded"]
