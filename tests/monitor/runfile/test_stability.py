"""Steadiness of a loss against slow twins that take every window by itself."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.runfile.reader import open_run
from monitor.runfile.stability import (
    DERIVED,
    FEWEST,
    SIGMAS,
    STRIDE,
    WINDOW,
    derived,
    loss_deviation,
    loss_spike_share,
    spikes,
)
from monitor.runfile.writer import RankWriter, begin_attempt, create_run
from monitor.signals import CATALOGUE, Signal


def _loss(values) -> Signal:
    return Signal("train_loss", 10 + 3 * np.arange(len(values)), np.asarray(values, float))


def _noisy(count: int, seed: int = 0, spread: float = 0.02) -> np.ndarray:
    return 2 * np.exp(spread * np.random.default_rng(seed).standard_normal(count) - np.arange(count) / 5000)


@given(
    st.integers(0, 3 * WINDOW + 5),
    st.dictionaries(
        st.integers(0, 3 * WINDOW), st.sampled_from([math.nan, math.inf, 1e9, 30.0, 0.0, -1.0]), max_size=8
    ),
)
def test_spikes_are_those_of_the_definition(count, odd):
    values = _noisy(count)
    for place, value in odd.items():
        if place < count:
            values[place] = value
    found = spikes(_loss(values))
    expected = []
    for at, value in enumerate(values):
        before = [float(v) for v in values[max(0, at - WINDOW) : at] if math.isfinite(v)]
        far = len(before) >= FEWEST and value > statistics.fmean(before) + SIGMAS * statistics.stdev(before)
        expected.append(not math.isfinite(value) or far)
    assert found.tolist() == expected
    share = loss_spike_share(_loss(values))
    assert share.step.tolist() == [10 + 3 * at for at in range(FEWEST - 1, count)]
    slow = [np.mean(expected[max(0, at + 1 - WINDOW) : at + 1]) for at in range(FEWEST - 1, count)]
    np.testing.assert_allclose(share.value, slow, atol=1e-12)


def test_a_spike_leaves_no_rounding_behind():
    values = _noisy(4 * WINDOW)
    values[10] = 1e12
    values[3 * WINDOW] *= 1.2  # ten standard deviations
    assert np.flatnonzero(spikes(_loss(values))).tolist() == [3 * WINDOW]  # before FEWEST nothing finite is one


@given(st.integers(0, 2 * WINDOW + 70), st.sets(st.integers(0, 2 * WINDOW), max_size=40))
def test_deviation_is_the_median_of_the_moves(count, missing):
    values = _noisy(count, spread=0.1)
    values[[at for at in missing if at < count]] = math.nan
    found = loss_deviation(_loss(values))
    expected = {}
    for end in range(FEWEST, count, STRIDE):
        logs = np.log(values[max(0, end - WINDOW) : end + 1])
        moves = np.abs(np.diff(logs))
        moves = moves[np.isfinite(moves)]
        if 2 * len(moves) >= FEWEST:
            expected[10 + 3 * end] = 1.4826 * float(np.median(moves)) / math.sqrt(2)
    assert dict(zip(found.step.tolist(), found.value.tolist(), strict=True)) == pytest.approx(expected)


def test_deviation_measures_the_noise_and_not_the_trend():
    found = loss_deviation(_loss(_noisy(4000, spread=0.05)))
    assert np.median(found.value) == pytest.approx(0.05, rel=0.1)
    assert len(loss_deviation(_loss(-_noisy(1000)))) == 0  # no logarithm


@given(st.lists(st.integers(0, 400), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.sampled_from(list(DERIVED)))
def test_what_is_made_step_by_step_is_what_is_made_at_once(pieces, seed, name):
    values = _noisy(sum(pieces), seed % 7)
    random = np.random.default_rng(seed)
    values[random.random(len(values)) < 0.02] = random.choice([math.nan, 9.0, 1e12, 0.0])
    made, length = None, 0
    for piece in pieces:
        length += piece
        made = derived(name, _loss(values[:length]), made)
    whole = DERIVED[name][1](_loss(values))
    np.testing.assert_array_equal(made.result.step, whole.step)
    np.testing.assert_array_equal(made.result.value, whole.value)
    changed = derived(name, _loss(np.append(values + 1, values)), made)  # another line of attempts
    np.testing.assert_array_equal(changed.result.value, DERIVED[name][1](_loss(np.append(values + 1, values))).value)


def test_a_run_has_them_unless_it_recorded_its_own(tmp_path):
    run_dir = create_run(tmp_path)
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0)
    values = _noisy(300)
    for step, value in enumerate(values, 1):
        writer.scalars(step, float(step), {"train_loss": value, "loss_spike_share": 7.0})
    writer.close()
    run = open_run(run_dir)
    assert set(run.series("loss_spike_share").value) == {7.0}
    own = loss_deviation(Signal("train_loss", np.arange(1, 301), values))
    np.testing.assert_array_equal(run.series("loss_deviation").value, own.value)
    assert "loss_deviation" not in run.names
    assert set(DERIVED) == {name for name, spec in CATALOGUE.items() if spec.stream == "derived"}
