"""Who moved and when: planted departures are told in order, and nothing else is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monitor.diagnosis.timeline import MOST, Departure, departures
from monitor.diagnosis.view import Signals
from monitor.signals import LayerMatrix
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, changed, hit, layer_norms, level, norms, only, put
from tests.monitor.diagnosis.controls import CONTROLS, LAYERS, falling

ONSET = AT + 1


def found(signals: Signals, last: int = ONSET + 10) -> dict[str, Departure]:
    return {d.layer or d.signal: d for d in departures(signals, ONSET, last)}


def test_signals_are_told_in_the_order_in_which_they_moved():
    layers = hit(layer_norms(), AT - 2, 4, 30.0)
    signals = Signals.from_arrays(
        {
            "train_loss": changed(level(), slice(AT + 3, AT + 9), 3.0),
            "grad_norm_preclip": changed(norms(), slice(AT, AT + 5), 20.0),
            "loss_scale": put(np.full(STEPS, 65536.0), slice(AT + 1, None), 1024.0),
        },
        layers={"grad_norm_preclip": (LAYERS, layers)},
    )
    told = departures(signals, ONSET, ONSET + 10)
    assert [(d.layer or d.signal, d.step) for d in told] == [
        (LAYERS[4], AT - 1),
        ("grad_norm_preclip", ONSET),
        ("loss_scale", ONSET + 1),
        ("train_loss", ONSET + 3),
    ]
    loss = told[-1]
    assert loss.value == pytest.approx(3.0 * loss.before, rel=0.1) and loss.before == pytest.approx(2.0, rel=0.1)


def test_what_moves_before_or_long_after_is_not_of_the_incident():
    assert not found(only(train_loss=changed(level(), AT - 25, 5.0)))
    assert not found(only(train_loss=changed(level(), slice(AT + 60, None), 5.0)), last=STEPS)


def test_only_a_harmful_direction_is_told():
    assert not found(only(train_loss=changed(level(), slice(AT, None), 0.3)))
    assert found(only(grad_norm_preclip=changed(norms(), slice(AT, None), 0.01)))
    assert found(only(my_accuracy=changed(0.9 + 0.001 * norms(), slice(AT, None), 0.5)))


def test_a_non_finite_value_is_the_strongest_departure():
    moved = found(only(train_loss=put(level(), AT + 2, math.nan), lr=np.full(STEPS, 1e-3)))
    assert moved["train_loss"].step == ONSET + 2 and moved["train_loss"].z == math.inf
    assert math.isnan(moved["train_loss"].value)


def test_of_one_step_the_signal_that_moved_most_in_it_is_told_first_whatever_becomes_of_all():
    a_little = put(changed(level(), AT, 1.6), AT + 5, math.nan)
    very_much = put(changed(norms(), AT, 1000.0), AT + 5, math.nan)
    told = departures(only(train_loss=a_little, grad_norm_preclip=very_much), ONSET, ONSET + 10)
    assert [(d.signal, d.step, d.z) for d in told] == [
        ("grad_norm_preclip", ONSET, math.inf),
        ("train_loss", ONSET, math.inf),
    ]
    told = departures(only(a=a_little, b=a_little), ONSET, ONSET + 10)
    assert [d.signal for d in told] == ["a", "b"]


def test_a_jump_of_the_learning_rate_is_told_and_its_schedule_is_not():
    assert not found(only(lr=np.geomspace(1e-2, 1e-5, STEPS)))
    jumped = found(only(lr=changed(np.full(STEPS, 1e-3), slice(AT, None), 30.0)))
    assert (jumped["lr"].step, jumped["lr"].value) == (ONSET, pytest.approx(3e-2))


def test_a_mean_that_changes_its_sign_about_zero_has_not_moved():
    small = 0.01 + 0.004 * np.random.default_rng(0).normal(size=STEPS).clip(-2, 2)
    mean = put(small, slice(AT, None), -1e-10)
    modules = {"activation_mean": (("act",), mean[:, None])}
    moved = departures(Signals.from_arrays({"train_loss": level()}, modules=modules), ONSET, ONSET + 10)
    assert all(np.isfinite(departure.z) for departure in moved)


def test_absent_layers_are_neither_moved_nor_a_baseline():
    value = layer_norms()
    present = np.ones(value.shape, bool)
    present[AT:, 2] = False
    present[:AT, 3] = False
    value[AT:, 2] = np.nan
    value[AT:, 3] = 1e6
    matrix = LayerMatrix("grad_norm_preclip", np.arange(1, STEPS + 1), LAYERS, value, present)
    assert not found(Signals.from_arrays({"train_loss": level()}, layers={"grad_norm_preclip": matrix}))


def test_a_curve_that_flattens_has_not_moved():
    loss = falling(STEPS, scale=10) * np.exp(np.random.default_rng(0).normal(0, 0.005, STEPS))
    for onset in (30, 50, 80, 150):
        assert not departures(only(train_loss=loss), onset, onset + 40)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.__name__)
def test_little_moves_in_a_healthy_run(control):
    """A departure is no alarm, so a few are allowed; on most signals nothing happens."""
    moved = judged = 0
    for seed in range(3):
        signals = control(np.random.default_rng(seed), 2 * STEPS)  # what they have planted lies elsewhere
        first, last = int(signals["train_loss"].step[170]), int(signals["train_loss"].step[180])
        moved += len(departures(signals, first, last))
        matrix = signals.layers("grad_norm_preclip")
        judged += len(signals.names) + (len(matrix.names) if matrix is not None else 0)
    assert moved <= 0.2 * judged


def test_no_more_than_a_page_is_told():
    loud = {f"metric_{i}": changed(level(i), slice(AT, None), 9.0) for i in range(60)}
    assert len(departures(only(**loud), ONSET, ONSET + 5)) == MOST
    assert departures(Signals.from_arrays({}), 10, 20) == ()
