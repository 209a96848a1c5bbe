"""Which layer moved first."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.diagnosis.localise import first_moved, lone_jumps, nonfinite_layers, nonfinite_steps
from monitor.signals import LayerMatrix

NAMES = tuple(f"layer{i}" for i in range(8))


def matrix(value: np.ndarray, present: np.ndarray | None = None) -> LayerMatrix:
    step = np.arange(1, len(value) + 1, dtype=np.int64)
    shown = np.ones(value.shape, bool) if present is None else present
    return LayerMatrix("grad_norm_preclip", step, NAMES, value.astype(np.float32), shown)


def healthy(seed: int = 0, rows: int = 300, sd: float = 0.15) -> np.ndarray:
    return np.geomspace(0.1, 2, 8) * np.exp(np.random.default_rng(seed).normal(0, sd, (rows, 8)))


@pytest.mark.parametrize("seed", range(10))
def test_the_earliest_layer_wins(seed: int):
    value = healthy(seed)
    value[202:, :] *= 10
    value[200:, 5] *= 6
    moved = first_moved(matrix(value), 203, 210)
    assert moved is not None and (moved.layer, moved.step, moved.moved) == ("layer5", 201, 1)


@pytest.mark.parametrize("seed", range(10))
def test_of_a_backward_disturbance_the_layer_nearest_the_output_is_the_origin(seed: int):
    value = healthy(seed)
    value[200, :5] *= 30
    moved = first_moved(matrix(value), 201, 201)
    assert moved is not None and moved.layer == "layer4" and "input side" in moved.reason


@pytest.mark.parametrize("seed", range(10))
def test_when_all_move_together_it_says_so(seed: int):
    value = healthy(seed)
    value[200] *= 30
    moved = first_moved(matrix(value), 201, 201)
    assert moved is not None and moved.moved == 8 and moved.concentration < 3


def test_a_layer_of_rounding_noise_is_left_out():
    value = healthy()
    value[:, 0] = 1e-9 * np.exp(np.random.default_rng(1).normal(0, 0.1, 300))
    value[200, 0] *= 1e4
    value[200, 6] *= 20
    moved = first_moved(matrix(value), 201, 201)
    assert moved is not None and moved.layer == "layer6" and moved.total == 7


def test_layers_without_a_gradient_are_left_out():
    present = np.ones((300, 8), bool)
    present[:, 2] = False
    value = healthy()
    value[:, 2] = np.nan
    value[200, 3] *= 20
    moved = first_moved(matrix(value, present), 201, 201)
    assert moved is not None and moved.layer == "layer3" and moved.total == 7
    assert len(nonfinite_steps(matrix(value, present), np.zeros(0, np.int64))) == 0


def test_nothing_moved_and_too_little_history_are_different_answers():
    quiet = first_moved(matrix(healthy()), 201, 201)
    assert quiet is not None and quiet.layer is None and "no layer" in quiet.reason
    assert first_moved(matrix(healthy()), 5, 5) is None
    assert first_moved(None, 201, 201) is None


def test_a_subset_of_non_finite_layers_points_at_the_one_nearest_the_output():
    value = healthy()
    value[200, :4] = np.nan
    value[201:] = np.nan
    origin = nonfinite_layers(matrix(value), 150, 300)
    assert origin is not None and (origin.layer, origin.step) == ("layer3", 201)
    assert origin.nonfinite == NAMES[:4] and origin.finite == NAMES[4:]


def test_all_layers_at_once_cannot_be_told_apart():
    value = healthy()
    value[200] = np.inf
    origin = nonfinite_layers(matrix(value), 150, 300)
    assert origin is not None and origin.layer is None and "every layer" in origin.reason
    assert nonfinite_layers(matrix(healthy()), 1, 300) is None


@pytest.mark.parametrize("row", [64, 127, 128, 200, 299])
def test_a_lone_jump_is_found_in_any_row(row: int):
    value = healthy()
    value[row, 1] *= 60
    (jump,) = lone_jumps(matrix(value))
    assert (jump.step, jump.layer) == (row + 1, "layer1") and jump.ratio > 20


def test_a_jump_of_all_layers_or_a_return_of_a_vanished_one_is_no_lone_jump():
    together, returning = healthy(), healthy()
    together[200] *= 60
    returning[100:200, 1] *= 1e-3
    assert lone_jumps(matrix(together)) == []
    assert lone_jumps(matrix(returning)) == []


@pytest.mark.parametrize(("batch", "fault", "found"), [(5.0, 50.0, True), (5.0, 10.0, False), (60.0, 1.0, False)])
def test_a_layer_that_jumps_on_a_step_whose_batch_moves_all_is_told_from_the_batch(
    batch: float, fault: float, found: bool
):
    value = healthy()
    value[200] *= batch
    value[200, 6] *= fault
    jumps = lone_jumps(matrix(value))
    assert [(jump.step, jump.layer) for jump in jumps] == ([(201, "layer6")] if found else [])
    assert all(jump.concentration == pytest.approx(jump.ratio / batch, rel=0.5) for jump in jumps)


def test_a_layer_that_strays_from_the_others_by_itself_is_no_fault_on_a_large_batch():
    value = healthy(sd=0.05)
    value[::23, 6] *= 40.0  # as an embedding of rare tokens does
    value[207] *= 5.0
    value[207, 6] = 40.0 * 5.0 * np.median(value[:200, 6])
    assert 208 not in [jump.step for jump in lone_jumps(matrix(value))]


def test_lone_jumps_of_a_prefix_are_those_of_the_whole():
    value = healthy()
    value[[100, 250], 3] *= 60
    whole = [jump.step for jump in lone_jumps(matrix(value))]
    assert whole == [101, 251]
    for cut in range(64, 300, 13):
        assert [jump.step for jump in lone_jumps(matrix(value[:cut]))] == [step for step in whole if step <= cut]
