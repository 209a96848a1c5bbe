"""Schedules against torch's own, against closed forms, and at their edges."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from trainer.config import ScheduleConfig
from trainer.schedules import SHAPES, lr_multiplier


def ours(steps: int, **schedule: object) -> list[float]:
    config = ScheduleConfig.model_validate(schedule)
    return [lr_multiplier(config, step, steps) for step in range(1, steps + 1)]


def torchs(steps: int, build: Callable[[torch.optim.Optimizer], LRScheduler]) -> list[float]:
    """The learning rates that a loop with torch's scheduler uses, from a peak of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = build(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "build"),
    [
        ({"kind": "cosine"}, lambda o: CosineAnnealingLR(o, T_max=50, eta_min=0.1)),
        ({"kind": "linear"}, lambda o: LinearLR(o, 1.0, 0.1, total_iters=50)),
        (
            {"kind": "cosine_restarts", "period_steps": 7, "cycle_factor": 2},
            lambda o: CosineAnnealingWarmRestarts(o, T_0=7, T_mult=2, eta_min=0.1),
        ),
        ({"kind": "cosine_restarts"}, lambda o: CosineAnnealingWarmRestarts(o, T_0=16, eta_min=0.1)),
        ({"kind": "step", "period_steps": 9, "gamma": 0.7}, lambda o: StepLR(o, 9, 0.7)),
        ({"kind": "exponential", "period_steps": 1, "gamma": 0.98}, lambda o: ExponentialLR(o, 0.98)),
        ({"kind": "one_cycle"}, lambda o: OneCycleLR(o, 1.0, total_steps=50, final_div_factor=0.04 / 0.1)),
        (
            {"kind": "one_cycle", "peak_at": 0.5, "start_ratio": 0.25},
            lambda o: OneCycleLR(o, 1.0, total_steps=50, pct_start=0.5, div_factor=4, final_div_factor=0.25 / 0.1),
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_shape_is_torchs_at_every_step(
    schedule: dict[str, object], build: Callable[[torch.optim.Optimizer], LRScheduler]
) -> None:
    assert ours(50, warmup_steps=0, min_lr_ratio=0.1, **schedule) == pytest.approx(torchs(50, build), abs=1e-12)


def test_exponential_falls_by_gamma_over_each_period() -> None:
    rates = ours(61, kind="exponential", warmup_steps=0, gamma=0.5, min_lr_ratio=0.0)
    assert rates[::20] == pytest.approx([1, 0.5, 0.25, 0.125])  # a third of 61 steps
    assert rates[1] / rates[0] == pytest.approx(0.5 ** (1 / 20))


@pytest.mark.parametrize("warmup_steps", [0, 1, 10])
def test_inverse_sqrt_is_the_transformers(warmup_steps: int) -> None:
    """Vaswani et al.'s min(s^-1/2, s w^-3/2), from its peak on one step late: every shape starts after its warm-up."""
    rates = ours(50, kind="inverse_sqrt", warmup_steps=warmup_steps, min_lr_ratio=0.0)
    w = max(1, warmup_steps)
    expected = [min(s**-0.5, s * w**-1.5) / w**-0.5 for s in range(1, 51)]
    assert rates[:warmup_steps] == pytest.approx(expected[:warmup_steps])
    assert rates[warmup_steps:] == pytest.approx(expected[w - 1 : w - 1 + 50 - warmup_steps])


@pytest.mark.parametrize("kind", ["step", "exponential", "inverse_sqrt"])
def test_endless_fall_stops_at_the_floor(kind: str) -> None:
    rates = ours(200, kind=kind, warmup_steps=0, min_lr_ratio=0.3, period_steps=10)
    assert min(rates) == rates[-1] == 0.3
    assert rates == sorted(rates, reverse=True)


def test_warmup_rises_to_where_one_cycle_starts() -> None:
    rates = ours(100, kind="one_cycle", warmup_steps=4, start_ratio=0.2)
    assert rates[:5] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2])
    assert max(rates) == pytest.approx(1.0, abs=1e-2)
    assert rates[-1] == pytest.approx(0.1)


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
    for kind in SHAPES:
        assert ours(3, kind=kind, warmup_steps=10, start_ratio=1.0) == pytest.approx([0.1, 0.2, 0.3])


@given(
    kind=st.sampled_from(sorted(SHAPES)),
    warmup_steps=st.integers(0, 60),
    steps=st.integers(1, 60),
    min_lr_ratio=st.floats(0, 1),
    decay_steps=st.none() | st.integers(1, 100),
    period_steps=st.none() | st.integers(1, 100),
    peak_at=st.floats(0.01, 0.99),
    beyond=st.integers(0, 20),
)
def test_factor_stays_between_zero_and_one_also_beyond_the_end(
    kind: str, warmup_steps: int, steps: int, beyond: int, **more: object
) -> None:
    config = ScheduleConfig.model_validate({"kind": kind, "warmup_steps": warmup_steps, **more})
    floor = min(config.min_lr_ratio, config.start_ratio) if kind == "one_cycle" else config.min_lr_ratio
    for step in range(1, steps + 1 + beyond):
        factor = lr_multiplier(config, step, steps)
        assert 0 <= factor <= 1
        if step > warmup_steps:
            assert factor >= floor - 1e-12
