"""The benchmark script runs. Its figures are for people to read: no time is asserted."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tests.bench.hook_cost import default_in_call, in_call


def test_the_script_measures_both():
    clip_ms, monitor_ms = in_call("1M", repeats=3)
    assert len(clip_ms) == len(monitor_ms) == 3
    assert min(clip_ms) > 0
    assert min(monitor_ms) > 0


def test_the_script_measures_the_default_set():
    bare, norms, by_probe, default = default_in_call("1M", cycles=1)
    assert min(bare, norms, default) > 0
    assert len(by_probe) >= 7
    assert sum(by_probe.values()) > 0
