"""What was made fast for long runs gives the numbers of the slow way."""

from __future__ import annotations

import warnings

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from monitor.diagnosis.lasting import measured
from monitor.diagnosis.rules import stale_second_moment, vanishing_gradient
from monitor.signals import LayerMatrix

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
