"""The primitives' promises: scale is nothing, constants are silent, a planted event is found, only the past counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from monitor.diagnosis.primitives import (
    DriftSettings,
    SpikeSettings,
    anchored_cusum,
    episodes,
    expanding_median,
    jumps_to_new_height,
    nonfinite_rows,
    restarts,
    robust_spikes,
    rows_at,
    steady_then_changed,
    turning_row,
    warmup_rows,
    word_for,
)
from monitor.diagnosis.primitives import drift as drift_module
from monitor.diagnosis.primitives.drift import Drift

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, deadline=None, derandomize=True)


def healthy(seed: int, rows: int, sd: float = 0.03) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (2 + 3 * np.exp(-np.arange(rows) / 60)) * np.exp(rng.normal(0, sd, rows))


# ---- E


def test_every_non_finite_row_is_found():
    value = np.array([1.0, np.nan, 2.0, np.inf, -np.inf])
    assert nonfinite_rows(value).tolist() == [1, 3, 4]
    assert nonfinite_rows(np.array([[1.0, 2.0], [1.0, np.nan]])).tolist() == [1]
    assert [word_for(x) for x in value[[1, 3, 4]]] == ["NaN", "+Inf", "-Inf"]


def test_episodes_join_rows_that_are_close():
    assert episodes(np.array([3, 4, 9, 40]), gap=5) == [(3, 9), (40, 40)]
    assert episodes(np.array([], int), gap=5) == []


# ---- Z


@few
@given(seed=seeds, exponent=st.integers(-30, 30), at=st.integers(60, 180))
def test_a_spike_track_does_not_depend_on_the_unit(seed: int, exponent: int, at: int):
    value = healthy(seed, 200)
    value[at] *= 1.7
    one, other = robust_spikes(value), robust_spikes(value * 2.0**exponent)
    assert [(s.onset, s.fired, s.last) for s in one.spikes] == [(s.onset, s.fired, s.last) for s in other.spikes]
    np.testing.assert_allclose(one.z, other.z, rtol=1e-6, atol=1e-6)


@few
@given(level=st.floats(-1e6, 1e6, allow_nan=False), rows=st.integers(0, 300))
def test_constant_series_are_silent(level: float, rows: int):
    value = np.full(rows, level)
    assert robust_spikes(value).spikes == ()
    assert anchored_cusum(value).drifts == ()


@few
@given(seed=seeds, at=st.integers(30, 299), size=st.floats(2.0, 1e6))
def test_a_planted_spike_fires_at_its_row_wherever_it_is(seed: int, at: int, size: float):
    value = healthy(seed, 300)
    value[at] *= max(size, 4.0) if at < 100 else size  # the steep beginning fits no line, so small spikes drown in it
    (spike,) = robust_spikes(value).spikes
    assert (spike.onset, spike.fired, spike.peak) == (at, at, at)
    assert spike.baseline == pytest.approx(healthy(seed, 300)[at], rel=0.25)


@few
@given(seed=seeds, at=st.integers(30, 250), cut=st.integers(1, 300))
def test_a_prefix_gives_what_the_whole_gave_up_to_there(seed: int, at: int, cut: int):
    value = healthy(seed, 300)
    value[at : at + 12] *= 1.5
    value[min(at + 30, 299)] = np.nan
    whole, prefix = robust_spikes(value, gates=[100]), robust_spikes(value[:cut], gates=[100])
    np.testing.assert_array_equal(whole.z[:cut], prefix.z)
    np.testing.assert_array_equal(whole.expected[:cut], prefix.expected)
    assert [(s.onset, s.fired) for s in whole.spikes if s.fired < cut] == [(s.onset, s.fired) for s in prefix.spikes]
    assert [s for s in whole.spikes if s.over and s.last + 5 < cut] == [
        s for s in prefix.spikes if s.over and s.last + 5 < cut
    ]


@few
@given(value=arrays(np.float64, st.integers(0, 120), elements=st.floats(allow_nan=True, allow_infinity=True, width=32)))
def test_any_numbers_are_accepted(value: np.ndarray):
    track, drifts = robust_spikes(value), anchored_cusum(value)
    assert len(track.z) == len(drifts.score) == len(value)


def test_effect_size_keeps_quiet_runs_silent_from_both_sides():
    value = np.full(200, 2.0) * np.exp(np.random.default_rng(0).normal(0, 0.001, 200))
    for rise, fires in [(1.07, False), (1.10, True)]:
        raised = value.copy()
        raised[150:153] *= rise
        assert bool(robust_spikes(raised).spikes) is fires, rise


def test_three_of_five_raised_rows_fire_and_two_do_not():
    value = np.full(200, 2.0) * np.exp(np.random.default_rng(0).normal(0, 0.03, 200))
    two, three = value.copy(), value.copy()
    two[[150, 152]] *= 1.25
    three[[150, 152, 154]] *= 1.25
    assert robust_spikes(two).spikes == ()
    (spike,) = robust_spikes(three).spikes
    assert (spike.onset, spike.fired, spike.sustained) == (150, 154, True)


def test_the_baseline_is_frozen_while_firing():
    value = np.full(300, 2.0) * np.exp(np.random.default_rng(0).normal(0, 0.01, 300))
    value[150:190] *= 1.5
    (spike,) = robust_spikes(value).spikes
    assert spike.last == 189 and spike.baseline == pytest.approx(2.0, rel=0.02) and not spike.accepted and spike.over


def test_a_new_level_is_accepted_in_the_end():
    value = np.full(400, 2.0) * np.exp(np.random.default_rng(0).normal(0, 0.01, 400))
    value[150:] *= 1.5
    (spike,) = robust_spikes(value).spikes
    assert spike.accepted and spike.onset == 150 and spike.last == 150 + SpikeSettings().accept - 1


def test_a_series_about_zero_is_judged_by_differences():
    value = np.random.default_rng(0).normal(0, 0.05, 300)
    assert robust_spikes(value).spikes == ()
    value[200] = 5.0
    (spike,) = robust_spikes(value).spikes
    assert spike.onset == 200 and not spike.logarithmic


def test_a_fall_to_zero_or_below_is_never_a_rise():
    value = np.full(200, 2.0) * np.exp(np.random.default_rng(0).normal(0, 0.01, 200))
    value[120:] = 0.0
    assert robust_spikes(value).spikes == ()
    value[120:] = -3.0
    assert robust_spikes(value).spikes == ()


def test_a_steep_fall_that_flattens_is_silent():
    t = np.arange(300)
    assert robust_spikes(2.4 + 3.1 * np.exp(-t / 10)).spikes == ()
    assert anchored_cusum(2.4 + 3.1 * np.exp(-t / 10)).drifts == ()


def test_a_gate_takes_the_new_level_but_not_a_blow_up():
    value = np.full(300, 2.0) * np.exp(np.random.default_rng(0).normal(0, 0.01, 300))
    step_up, blow_up = value.copy(), value.copy()
    step_up[150:] *= 1.3
    blow_up[150:] *= 3.0
    assert robust_spikes(step_up).spikes and not robust_spikes(step_up, gates=[150]).spikes
    assert robust_spikes(blow_up, gates=[150]).spikes


def test_heavy_tails_raise_the_bar_for_single_rows():
    rng = np.random.default_rng(3)
    value = 2 * np.exp(0.05 * rng.standard_t(3, 4000))
    strict = robust_spikes(value, SpikeSettings(tail_factor=0.0))
    assert len(robust_spikes(value).spikes) < len(strict.spikes)


def test_rows_below_the_least_value_do_not_count():
    value = np.full(200, 0.001) * np.exp(np.random.default_rng(0).normal(0, 0.1, 200))
    value[150] = 0.05
    assert robust_spikes(value).spikes
    assert robust_spikes(value, least_value=np.full(200, 0.4)).spikes == ()


# ---- C


@few
@given(seed=seeds, exponent=st.integers(-30, 30))
def test_a_drift_track_does_not_depend_on_the_unit(seed: int, exponent: int):
    value = healthy(seed, 300)
    value[150:] *= 1.003 ** np.arange(150)
    one, other = anchored_cusum(value), anchored_cusum(value * 2.0**exponent)
    assert [(d.onset, d.fired, d.last) for d in one.drifts] == [(d.onset, d.fired, d.last) for d in other.drifts]


@few
@given(seed=seeds, at=st.integers(100, 250))
def test_a_slow_climb_is_found_within_a_hundred_rows(seed: int, at: int):
    value = 2 * np.exp(np.random.default_rng(seed).normal(0, 0.02, 400))
    value[at:] *= 1.002 ** np.arange(400 - at)
    (drift, *_) = anchored_cusum(value).drifts
    assert drift.onset <= drift.fired and at < drift.fired <= at + 100
    assert not drift.over


@few
@given(seed=seeds, at=st.integers(60, 250), cut=st.integers(1, 300))
def test_a_drift_prefix_gives_what_the_whole_gave_up_to_there(seed: int, at: int, cut: int):
    value = healthy(seed, 300)
    value[at:] *= 1.01 ** np.arange(300 - at)
    whole, prefix = anchored_cusum(value, gates=[90]), anchored_cusum(value[:cut], gates=[90])
    np.testing.assert_array_equal(whole.score[:cut], prefix.score)
    np.testing.assert_array_equal(whole.reference[:cut], prefix.reference)
    assert [(d.onset, d.fired) for d in whole.drifts if d.fired < cut] == [(d.onset, d.fired) for d in prefix.drifts]


def test_one_outlier_cannot_fire_the_cusum():
    value = healthy(0, 300)
    value[200] *= 1e6
    assert anchored_cusum(value).drifts == ()


def test_the_reference_only_falls():
    reference = anchored_cusum(healthy(1, 400, sd=0.1)).reference
    known = reference[~np.isnan(reference)]
    assert (np.diff(known) <= 1e-12).all()


def test_a_drift_that_comes_back_is_over_and_the_next_one_is_seen():
    value = 2 * np.exp(np.random.default_rng(2).normal(0, 0.01, 900))
    for start in (200, 600):
        value[start : start + 100] *= 1 + 0.3 * np.sin(np.linspace(0, np.pi, 100))
    drifts = anchored_cusum(value, DriftSettings(wander_factor=0.0)).drifts
    assert [d.over for d in drifts] == [True, True]
    assert drifts[0].rise == pytest.approx(0.3, abs=0.03)


@few
@given(seed=seeds, at=st.integers(40, 100))
def test_the_turn_of_a_curve_is_found(seed: int, at: int):
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.01, 150))
    bent, stepped = 2 * noise, 2 * noise
    bent[at:] *= 1.005 ** np.arange(150 - at)
    stepped[at:] *= 1.2
    assert abs(turning_row(bent) - at) <= 12
    assert turning_row(stepped) == at
    assert turning_row(np.array([1.0, np.nan, -1.0])) == 0


# ---- G


def test_a_restart_is_a_jump_to_a_height_held_before():
    lr = np.array([1.0, 0.6, 0.1, 1.0, 0.1, 3.0, 0.0, 3.0])
    assert restarts(lr).tolist() == [3]
    assert jumps_to_new_height(lr).tolist() == [5]
    assert restarts(np.array([])).tolist() == restarts(np.array([0.0, 0.0])).tolist() == []


def test_warmup_is_the_rise_from_the_start():
    assert warmup_rows(np.array([0.1, 0.2, 0.3, 0.3, 0.2])) == 3
    assert warmup_rows(np.array([0.3, 0.3, 0.4])) == 0
    assert warmup_rows(np.array([0.1, 0.2])) == 2
    assert warmup_rows(np.array([])) == 0


def test_a_change_counts_only_after_a_steady_stretch():
    jitter = np.arange(50.0)
    steady = np.array([8.0] * 30 + [16.0] * 30 + [17.0] * 30)
    assert steady_then_changed(jitter).tolist() == []
    assert steady_then_changed(steady).tolist() == [30]


def test_rows_at_takes_the_first_row_at_or_after_a_mark():
    assert rows_at(np.array([10, 20, 30]), [5, 20, 21, 99]).tolist() == [0, 1, 2]


@few
@given(seed=seeds)
def test_the_expanding_median_follows_numpy(seed: int):
    value = np.exp(np.random.default_rng(seed).normal(0, 1, 200))
    expected = [np.median(value[: row + 1 : 16]) for row in range(0, 200, 16)]
    np.testing.assert_allclose(expanding_median(value)[::16], expected)


@few
@given(seed=seeds, at=st.integers(0, 59))
def test_context_marks_look_only_backwards(seed: int, at: int):
    rng = np.random.default_rng(seed)
    lr = np.abs(rng.normal(1, 1, 60))
    assume(lr.min() > 1e-6)
    for mark in (restarts, jumps_to_new_height):
        assert mark(lr[:at]).tolist() == [row for row in mark(lr).tolist() if row < at]
    assert warmup_rows(lr[:at]) == min(at, warmup_rows(lr)) or at < 2 or warmup_rows(lr) == 0
    assert math.isfinite(expanding_median(lr)[-1])


def in_fives(seed: int, rise: float = 0.0, rows: int = 1500) -> np.ndarray:
    """Five rows on each task, whose losses are a third to three times the usual one; ``rise`` a row from row 700 on."""
    rng = np.random.default_rng(seed)
    task = np.repeat(rng.uniform(-1.1, 1.1, rows // 5), 5)
    return np.exp(task + rng.normal(0, 0.1, rows) + rise * np.clip(np.arange(rows) - 700, 0, None))


def test_rows_that_are_alike_count_for_less_and_a_climb_is_still_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def drifts(rise: float) -> list[list[Drift]]:
        found = [anchored_cusum(in_fives(seed, rise)).drifts for seed in range(12)]
        return [[one for one in each if one.fired > 100] for each in found]

    false, climbs = sum(map(len, drifts(0.0))), drifts(0.004)
    monkeypatch.setattr(drift_module, "ALIKE", math.inf)
    assert false < 0.6 * sum(map(len, drifts(0.0)))
    assert all(each and each[-1].last == 1499 and not each[-1].over for each in climbs)
