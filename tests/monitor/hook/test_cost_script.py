"""The benchmark script runs. Its figures are for people to read: no time is asserted."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tests.bench.hook_cost import in_call


def test_the_script_measures_both():
    clip_ms, monitor_ms = in_call("1M", repeats=3)
    assert len(clip_ms) == len(monitor_ms) == 3
    assert min(clip_ms) > 0
    assert min(monitor_ms) > 0
