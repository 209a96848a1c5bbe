"""What was made fast for long runs gives the numbers of the slow way."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from monitor.diagnosis.lasting import measured
from monitor.diagnosis.primitives import medians
from monitor.diagnosis.primitives.medians import running_median
from monitor.diagnosis.rules import overfitting, stale_second_moment, validation_too_good, vanishing_gradient
from monitor.signals import LayerMatrix, Signal

norms = st.one_of(st.sampled_from([0.0, np.nan, np.inf, 1.0]), st.floats(2**-20, 2**20, width=32))


def matrix(value: np.ndarray, present: np.ndarray) -> LayerMatrix:
    names = tuple(f"l{i}" for i in range(value.shape[1]))
    return LayerMatrix("grad_norm_preclip", np.arange(1, len(value) + 1), names, value, present)


@settings(max_examples=60)
@given(st.data(), st.integers(1, 9), st.integers(1, 5))
def test_a_row_s_typical_norm_is_its_nanmedian(data: st.DataObject, rows: int, columns: int) -> None:
    value = data.draw(arrays(np.float32, (rows, columns), elements=norms))
    present = data.draw(arrays(bool, (rows, columns)))
    finite = measured(matrix(value, present))
    usable = np.where(finite > 0, finite, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows without any
        expected = np.where(np.isfinite(usable).sum(axis=1) >= 2, np.nanmedian(usable, axis=1), np.nan)
    np.testing.assert_array_equal(vanishing_gradient._typical(matrix(value, present), slice(None)), expected)


@settings(max_examples=40)
@given(st.data(), st.integers(1, 60), st.integers(1, 3))
def test_the_usual_second_moment_is_the_median_of_the_past(data: st.DataObject, rows: int, columns: int) -> None:
    value = data.draw(arrays(np.float64, (rows, columns), elements=st.one_of(st.just(np.nan), st.floats(0.0, 8.0))))
    expected = np.full_like(value, np.nan)
    for row in range(rows):
        for column in range(columns):
            past = value[: row // 16 * 16, column]
            past = past[np.isfinite(past)]
            if len(past) >= 3:
                expected[row, column] = float(np.median(past))
    wanted = data.draw(arrays(bool, (rows, columns)))
    found = stale_second_moment._usual(value, wanted)
    np.testing.assert_allclose(found[wanted], expected[wanted], rtol=1e-15)
    assert np.isnan(found[:, ~wanted.any(axis=0)]).all()


losses = st.one_of(st.sampled_from([np.nan, np.inf, -np.inf, 1.0]), st.floats(2**-20, 2**20))


def medians_of(windows: list[np.ndarray]) -> np.ndarray:
    return np.array([np.median(window) if len(window) and np.isfinite(window).all() else np.nan for window in windows])


@settings(max_examples=60)
@given(st.lists(st.floats(0.0, 8.0), max_size=40))
def test_a_running_median_is_the_median_of_all_so_far(values: list[float]) -> None:
    expected = [float(np.median(values[: row + 1])) for row in range(len(values))]
    np.testing.assert_array_equal(running_median(np.array(values)), expected)


@settings(max_examples=60)
@given(st.data(), st.integers(1, 80), st.integers(1, 8))
def test_training_losses_round_an_evaluation_have_their_median(data: st.DataObject, rows: int, apart: int) -> None:
    value = data.draw(arrays(np.float64, rows, elements=losses))
    step = np.cumsum(data.draw(arrays(np.int64, rows, elements=st.integers(1, 3))))
    loss = Signal("train_loss", step, value)
    val = Signal("val_loss", at := np.arange(apart, int(step[-1]) + apart, apart), np.ones(len(at)))
    after = [value[step > one][:20] for one in at]
    expected = medians_of([window if len(window) == 20 else np.empty(0) for window in after])
    np.testing.assert_array_equal(validation_too_good._levels_after(loss, val), expected)

    loss = overfitting._finite(loss)
    before = [loss.value[(loss.step <= one) & (loss.step > one - apart)][-20:] for one in at]
    before[0] = loss.value[loss.step <= at[0]][-20:]
    np.testing.assert_array_equal(overfitting._train_levels(loss, val), medians_of(before))


@settings(max_examples=30)
@given(arrays(np.float64, st.integers(0, 40), elements=st.floats(0.1, 8.0)))
def test_what_chance_explains_is_told_from_the_evaluations_so_far(value: np.ndarray) -> None:
    expected = np.zeros(len(value))
    for count in range(5, len(value) + 1):
        sd = 1.4826 * np.median(np.abs(np.diff(np.log(value[:count]), n=2))) / np.sqrt(6)
        expected[count - 1] = np.expm1((3.0 + np.sqrt(2 * np.log(count))) * sd)
    np.testing.assert_allclose(overfitting._beyond_chance(value, 3.0), expected, rtol=1e-12)


def test_many_windows_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medians, "CHUNK", 7)
    random = np.random.default_rng(3)
    value, low = random.normal(size=50), random.integers(0, 50, 40)
    high = np.minimum(50, low + random.integers(0, 9, 40))
    expected = medians_of([value[a:b] for a, b in zip(low, high, strict=True)])
    np.testing.assert_array_equal(medians.window_medians(value, low, high), expected)
