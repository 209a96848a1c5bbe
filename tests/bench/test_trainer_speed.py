"""The trainer and the bare loop that it is measured beside do the same work."""

from __future__ import annotations

import pytest

from tests.bench.run_directory import Rounds
from tests.bench.trainer_speed import Blocks, config_of, lines_of, measured

BLOCK, STEPS = 4, 12


def test_the_bare_loop_and_the_trainer_train_the_same_model_in_turns() -> None:
    found = {kind: measured(kind, config_of(kind, STEPS, 1, quick=True), BLOCK) for kind in ("trainer", "unmonitored")}
    assert found["trainer"]["loss"] == found["unmonitored"]["loss"]  # measuring changes not one bit
    for figures in found.values():
        assert figures["bare_loss"] == pytest.approx(figures["loss"], rel=1e-4)
        assert figures["cpu"] == pytest.approx(figures["bare_cpu_ms"] / figures["trainer_cpu_ms"])
        assert figures["peak_mb"] > 0
    alone = measured("bare", config_of("bare", STEPS, 1, quick=True), 0)
    assert alone["bare_loss"] == found["trainer"]["bare_loss"]


def test_the_first_block_is_not_timed() -> None:
    blocks = Blocks()
    blocks.spent = {"trainer": [(9.0, 9.0), (0.5, 0.25), (0.3, 0.25)], "bare": [(1.0, 1.0), (0.2, 0.2), (0.2, 0.2)]}
    result = blocks.result(block=10)
    assert (result["trainer_wall_ms"], result["trainer_cpu_ms"]) == pytest.approx((40.0, 25.0))
    assert (result["wall"], result["cpu"]) == pytest.approx((0.5, 0.8))


def test_the_goal_is_a_share_of_the_bare_loop_s_tokens() -> None:
    found = Rounds()
    steps = {"bare_cpu_ms": 1.0, "trainer_cpu_ms": 1.0, "bare_wall_ms": 1.0, "trainer_wall_ms": 1.0}
    for kind in ("unmonitored", "trainer"):
        for share in (0.97, 0.98, 1.0):
            found.add(kind, {"cpu": share, "wall": share, **steps})
    for who in ("bare alone", "unmonitored alone", "trainer alone"):
        found.add(who, {"peak_mb": 400.0})
    rated = [line for line in lines_of(found) if line.goal is not None]
    assert [line.measured for line in rated] == [0.98, 0.98]
    assert all(line.ratio is not None and line.ratio > 1 for line in rated)
