"""The trainer and the bare loop that it is measured beside do the same work."""

from __future__ import annotations

import pytest

from tests.bench.run_directory import Rounds
from tests.bench.trainer_speed import KINDS, Stopwatch, config_of, lines_of, measured

STEPS = 12


def test_the_bare_loop_and_the_trainer_train_the_same_model() -> None:
    found = {kind: measured(kind, config_of(kind, STEPS, 1, quick=True), warm=2) for kind in KINDS}
    assert found["trainer"]["loss"] == found["unmonitored"]["loss"]  # measuring changes not one bit
    assert found["bare"]["loss"] == pytest.approx(found["trainer"]["loss"], rel=1e-4)
    for figures in found.values():
        assert figures["tokens_per_s"] == pytest.approx(2 * 16 / figures["step_ms"] * 1e3)
        assert figures["peak_mb"] > 0 and figures["cpu_ms"] > 0


def test_steps_of_the_warm_up_are_not_timed() -> None:
    watch = Stopwatch()
    watch.stamps = [(100.0, 50.0), (101.0, 50.5), (101.5, 50.75), (102.0, 51.0)]
    result = watch.result(tokens_per_step=10, warm=2)
    assert (result["step_ms"], result["cpu_ms"]) == (500.0, 250.0)
    assert (result["tokens_per_s"], result["tokens_per_cpu_s"]) == (20.0, 40.0)


def test_the_goal_is_a_share_of_the_bare_loop_s_tokens() -> None:
    found = Rounds()
    for bare, ours in ((100.0, 97.0), (50.0, 49.0), (200.0, 200.0)):
        for kind, rate in (("bare", bare), ("unmonitored", bare), ("trainer", ours)):
            found.add(kind, {"tokens_per_s": rate, "tokens_per_cpu_s": rate, "peak_mb": 400.0})
    rated = [line for line in lines_of(found) if line.goal is not None]
    assert [line.measured for line in rated] == [0.98, 0.98]
    assert all(line.ratio is not None and line.ratio > 1 for line in rated)
