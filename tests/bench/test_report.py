"""A line of a benchmark's table is judged by its goal, also where that is nothing at all."""

from __future__ import annotations

import math

import pytest

from tests.bench.report import Line, table


@pytest.mark.parametrize(
    ("measured", "goal", "least", "ratio"),
    [(3.0, 2.0, False, 1.5), (3.0, 2.0, True, 2 / 3), (0.0, 0.0, False, 0.0), (5.0, 0.0, False, math.inf),
     (0.0, 2.0, True, math.inf), (5.0, None, False, None)],
)  # fmt: skip
def test_the_ratio_to_the_goal(measured: float, goal: float | None, least: bool, ratio: float | None):
    line = Line("kB sent", measured, "kB", goal, least)
    assert line.ratio == ratio
    word = "" if ratio is None else "met" if ratio <= 1 else "MISSED"
    assert word in table("Live", [line])
