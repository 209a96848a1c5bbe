"""Whatever the series, no extreme of a bucket and no non-finite value is lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.runfile.downsample import heat, min_max
from monitor.signals import LayerMatrix

VALUES = st.floats(allow_nan=True, allow_infinity=True, width=64)


@st.composite
def series(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    gaps = draw(st.lists(st.integers(1, 50), max_size=300))
    steps = np.cumsum(np.array(gaps, np.int64)) if gaps else np.empty(0, np.int64)
    values = draw(st.lists(VALUES, min_size=len(gaps), max_size=len(gaps)))
    return steps, np.array(values, np.float64)


def slow_buckets(step: np.ndarray, value: np.ndarray, buckets: int) -> dict[int, list[float]]:
    """bucket -> finite values, with exact arithmetic."""
    width = int(step[-1] - step[0]) + 1
    found: dict[int, list[float]] = {}
    for s, v in zip(step.tolist(), value.tolist(), strict=True):
        found.setdefault((s - int(step[0])) * buckets // width, []).append(v)
    return found


@given(series(), st.integers(1, 40))
def test_every_bucket_keeps_its_extremes_and_every_non_finite_value(
    given_series: tuple[np.ndarray, np.ndarray], buckets: int
) -> None:
    step, value = given_series
    reduced = min_max(step, value, buckets)
    finite = np.isfinite(value)

    np.testing.assert_array_equal(reduced.nonfinite_step, step[~finite])
    np.testing.assert_array_equal(reduced.nonfinite_value, value[~finite])
    assert reduced.nan_count == sum(math.isnan(v) for v in value)
    assert reduced.posinf_count == sum(v == math.inf for v in value)
    assert reduced.neginf_count == sum(v == -math.inf for v in value)

    shown = dict(zip(reduced.step.tolist(), reduced.value.tolist(), strict=True))
    truth = dict(zip(step.tolist(), value.tolist(), strict=True))
    assert all(truth[s] == v for s, v in shown.items())
    assert (np.diff(reduced.step) > 0).all()
    assert len(shown) <= 2 * buckets + 2
    if not finite.any():
        assert shown == {}
        assert reduced.ratio == 1.0
        return
    assert step[finite][0] in shown
    assert step[finite][-1] in shown
    assert reduced.ratio == finite.sum() / len(shown)
    kept = slow_buckets(step[finite], value[finite], buckets)
    for bucket, values in kept.items():
        inside = [
            v
            for s, v in shown.items()
            if (s - int(step[finite][0])) * buckets // (int(step[finite][-1] - step[finite][0]) + 1) == bucket
        ]
        assert min(inside) == min(values)
        assert max(inside) == max(values)


@given(series(), st.integers(0, 200), st.integers(0, 200), st.integers(1, 9))
def test_a_range_is_the_series_cut_first(
    given_series: tuple[np.ndarray, np.ndarray], first: int, length: int, buckets: int
) -> None:
    step, value = given_series
    inside = (step >= first) & (step <= first + length)
    cut, whole = min_max(step[inside], value[inside], buckets), min_max(step, value, buckets, first, first + length)
    for name in ("step", "value", "nonfinite_step", "nonfinite_value"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name))


def test_a_spike_of_one_step_in_200_000_is_kept() -> None:
    step = np.arange(1, 200_001)
    value = np.ones(200_000)
    value[123_456] = 1000.0
    reduced = min_max(step, value, 800)
    assert reduced.value.max() == 1000.0
    assert reduced.step[reduced.value.argmax()] == 123_457
    assert reduced.ratio > 100


def test_no_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match="buckets is 0"):
        min_max(np.arange(3), np.ones(3), 0)


def matrix(value: np.ndarray, present: np.ndarray | None = None, step: np.ndarray | None = None) -> LayerMatrix:
    rows, layers = value.shape
    return LayerMatrix(
        "grad_norm_preclip",
        np.arange(1, rows + 1) if step is None else step,
        tuple(f"w{index}" for index in range(layers)),
        value.astype(np.float32),
        np.ones(value.shape, bool) if present is None else present,
    )


@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
)
def test_every_cell_of_the_heatmap_tells_its_largest_and_its_non_finite(
    rows: int, layers: int, columns: int, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    value = chance.normal(size=(rows, layers)).astype(np.float32)
    value[chance.random(value.shape) < 0.1] = np.nan
    value[chance.random(value.shape) < 0.1] = np.inf
    present = chance.random(value.shape) < 0.8
    step = np.cumsum(chance.integers(1, 9, rows))
    reduced = heat(matrix(value, present, step), columns)
    assert reduced.edges[0] == step[0]
    assert reduced.edges[-1] == step[-1] + 1
    assert reduced.value.shape == (layers, len(reduced.edges) - 1)
    for column, (low, high) in enumerate(zip(reduced.edges, reduced.edges[1:], strict=False)):
        inside = (step >= low) & (step < high)
        for layer in range(layers):
            cells = value[inside, layer][present[inside, layer]]
            finite = cells[np.isfinite(cells)]
            assert reduced.present[layer, column] == (len(cells) > 0)
            assert reduced.nonfinite[layer, column] == (len(finite) < len(cells))
            shown = reduced.value[layer, column]
            assert shown == finite.max() if len(finite) else np.isnan(shown)


def test_an_empty_heatmap_has_no_columns() -> None:
    reduced = heat(matrix(np.ones((5, 2))), 10, first=100)
    assert reduced.value.shape == (2, 0)
