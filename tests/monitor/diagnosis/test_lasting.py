"""Stretches of measurements against a slow loop over every layer and row."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from monitor.diagnosis.lasting import measured, named, spaced, stretches
from monitor.signals import LayerMatrix


def matrix(present: np.ndarray) -> LayerMatrix:
    names = tuple(f"l{i}" for i in range(present.shape[1]))
    return LayerMatrix("s", 10 * np.arange(1, len(present) + 1), names, np.ones(present.shape, np.float32), present)


def slow(present: np.ndarray, holds: np.ndarray, rows: int) -> set[tuple[int, int, int, int, bool]]:
    found = set()
    for column in range(present.shape[1]):
        run: list[int] = []
        told = False
        steps = [10 * (row + 1) for row in range(len(present)) if present[row, column]]
        for row in range(len(present)):
            if not present[row, column]:
                continue
            if holds[row, column]:
                run.append(10 * (row + 1))
                continue
            if len(run) >= rows:
                told = True
                break
            run = []
        if told or len(run) >= rows:
            found.add((column, run[0], run[rows - 1], run[-1], run[-1] == steps[-1]))
    return found


booleans = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 3)))


@given(st.data(), booleans, st.integers(1, 4))
def test_stretches_are_those_of_a_loop(data, present, rows):
    holds = data.draw(arrays(bool, present.shape)) & present
    fast = {(s.column, s.onset, s.told, s.last, s.to_the_end) for s in stretches(matrix(present), holds, rows)}
    assert fast == slow(present, holds, rows)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=60), st.integers(1, 20))
def test_spaced_rows_are_the_earliest_ones_that_far_apart(gaps, apart):
    step = np.cumsum(gaps)
    whole = LayerMatrix("s", step, ("a",), step[:, None].astype(np.float32), np.ones((len(step), 1), bool))
    thin = spaced(whole, apart)
    assert thin.step[0] == step[0] and (np.diff(thin.step) >= apart).all()
    np.testing.assert_array_equal(thin.value[:, 0], thin.step)
    for before, after in zip(thin.step, [*thin.step[1:], np.inf], strict=True):
        assert not ((step >= before + apart) & (step < after)).any()


def test_what_is_absent_or_not_finite_is_nan():
    whole = LayerMatrix(
        "s", np.array([1]), ("a", "b", "c"), np.array([[1.0, 2.0, np.inf]]), np.array([[True, False, True]])
    )
    np.testing.assert_array_equal(measured(whole), [[1.0, np.nan, np.nan]])


def test_names_are_cut():
    assert named(["a", "b"]) == "a, b" and named(list("abcdefg"), 5) == "a, b, c, d, e and 2 more"
