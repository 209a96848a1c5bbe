"""Schedules against torch's own, against closed forms, and at their edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from trainer.config import ScheduleConfig
from trainer.schedules import lr_multiplier


def ours(steps: int, **schedule: object) -> list[float]:
    config = ScheduleConfig.model_validate(schedule)
    return [lr_multiplier(config, step, steps) for step in range(1, steps + 1)]


def torchs(steps: int, build: object) -> list[float]:
    """The learning rates that a loop with torch's scheduler uses, from a peak of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler: LRScheduler = build(optimizer)  # type: ignore[operator]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_torchs_cosine_annealing() -> None:
    expected = torchs(50, lambda optimizer: CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1))
    assert ours(50, kind="cosine", warmup_steps=0, min_lr_ratio=0.1) == pytest.approx(expected, abs=1e-12)


def test_linear_is_torchs_linear() -> None:
    expected = torchs(50, lambda optimizer: LinearLR(optimizer, 1.0, 0.1, total_iters=50))
    assert ours(50, kind="linear", warmup_steps=0, min_lr_ratio=0.1) == pytest.approx(expected, abs=1e-12)


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_warmup_then_cosine_is_torchs_sequence() -> None:
    def build(optimizer: torch.optim.Optimizer) -> SequentialLR:
        # torch's warm-up starts at 1/10 and reaches 1 after 9 steps, that is at step 10, as ours does
        parts = [LinearLR(optimizer, 0.1, 1.0, total_iters=9), CosineAnnealingLR(optimizer, T_max=40, eta_min=0.0)]
        return SequentialLR(optimizer, parts, milestones=[10])

    assert ours(50, kind="cosine", warmup_steps=10, min_lr_ratio=0.0) == pytest.approx(torchs(50, build), abs=1e-12)


def test_warmup_rises_in_equal_steps_to_exactly_one() -> None:
    assert ours(8, kind="constant", warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_wsd_is_flat_and_then_falls_in_a_line() -> None:
    rates = ours(20, kind="wsd", warmup_steps=2, decay_steps=10, min_lr_ratio=0.0)
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:10] == [1.0] * 8
    assert rates[10:] == pytest.approx([1 - i / 10 for i in range(10)])


def test_wsd_decays_over_the_last_fifth_by_default() -> None:
    rates = ours(100, kind="wsd", warmup_steps=0, min_lr_ratio=0.5)
    assert rates[:81] == [1.0] * 81
    assert rates[81] < 1.0
    assert rates[-1] == pytest.approx(1 - 0.5 * 19 / 20)


def test_run_shorter_than_its_warmup_ends_in_the_warmup() -> None:
    for kind in ("cosine", "linear", "constant", "wsd"):
        assert ours(3, kind=kind, warmup_steps=10) == pytest.approx([0.1, 0.2, 0.3])


@given(
    kind=st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    warmup_steps=st.integers(0, 60),
    steps=st.integers(1, 60),
    min_lr_ratio=st.floats(0, 1),
    decay_steps=st.none() | st.integers(1, 100),
    beyond=st.integers(0, 20),
)
def test_factor_stays_between_zero_and_one_also_beyond_the_end(
    kind: str, warmup_steps: int, steps: int, min_lr_ratio: float, decay_steps: int | None, beyond: int
) -> None:
    config = ScheduleConfig(
        kind=kind,  # type: ignore[arg-type]
        warmup_steps=warmup_steps,
        min_lr_ratio=min_lr_ratio,
        decay_steps=decay_steps,
    )
    for step in range(1, steps + 1 + beyond):
        factor = lr_multiplier(config, step, steps)
        assert 0 <= factor <= 1
        if step > warmup_steps:
            assert factor >= min_lr_ratio - 1e-12 or math.isclose(factor, min_lr_ratio)
