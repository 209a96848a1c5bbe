"""Samples of the landscape keep to their share of the time at every moment, and none of them starves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.allowance import Allowance
from trainer.config import TrainConfig, load_config
from trainer.parallel import Parallel
from trainer.precision import build_precision
from trainer.samples import GRADIENTS, WEIGHTS, LandscapeSamples
from trainer.tasks import Batch, Task, build_task


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    st.floats(0.001, 0.2),
    st.floats(0.001, 5.0),
    st.floats(0.01, 50.0),
    st.floats(0.1, 10.0),
    st.floats(0.2, 3.0),
)
def test_the_share_is_kept_at_every_moment_but_for_what_was_expected_too_low(
    share: float, cheap: float, dear: float, step_s: float, guess: float
) -> None:
    clock = Clock()
    cost, taken = {"cheap": cheap, "dear": dear}, {"cheap": 0, "dear": 0}
    allowance = Allowance(share, {"cheap": 1.0, "dear": 3.0}, lambda kind: guess * cost[kind], clock)
    over = max(0.0, 1 - guess) * (cheap + dear)
    for _ in range(400):
        clock.now += step_s
        while (kind := allowance.next_of(list(cost))) and allowance.affords(kind):
            with allowance.spending(kind):
                clock.now += cost[kind]
                taken[kind] += 1
            assert sum(cost[each] * taken[each] for each in cost) <= share * clock.now * (1 + 1e-9) + over
    if share * 400 * step_s > (2 + guess) * 6 * (cheap + dear):
        assert min(taken.values()) >= 2, "each has its turn"


def test_the_weightiest_comes_first_and_the_others_leave_room_for_it() -> None:
    clock = Clock()
    allowance = Allowance(0.5, {"a": 2.0, "b": 1.0}, lambda kind: 1.0, clock)
    clock.now += 3  # room for 1.5: for a, but not for b and a after it
    assert allowance.next_of(["b"]) == "b" and not allowance.affords("b") and allowance.affords("a")
    clock.now += 1
    assert allowance.affords("b")
    allowance, turns = Allowance(1.0, {"a": 2.0, "b": 1.0}, lambda kind: 1.0, clock), ""
    for _ in range(9):
        kind = allowance.next_of(["a", "b"])
        assert kind is not None
        turns += kind
        with allowance.spending(kind):
            clock.now += 1
    assert turns == "aabaabaab"
    assert allowance.next_of([]) is None


def test_what_fails_is_counted_all_the_same() -> None:
    clock = Clock()
    allowance = Allowance(0.5, {"a": 2.0, "b": 1.0}, lambda kind: 0.0, clock)
    with pytest.raises(ZeroDivisionError), allowance.spending("b"):
        clock.now += 4
        raise ZeroDivisionError
    assert not allowance.affords("a")
    clock.now += 4
    assert allowance.affords("a") and not allowance.affords("b")


PRODUCTS = (5, 7, 4, 4, 6, 6, 7, 5, 4, 5)
"""Of searches in the default training, at steps 100 to 1,000."""


class Costly:
    """Stands for the monitor: samples that only take time. A search of so many products keeps to its budget."""

    def __init__(self, clock: Clock, gradient_s: float, products: Sequence[int]) -> None:
        self._clock, self._gradient_s, self._products = clock, gradient_s, itertools.cycle(products)
        self.step, self.spent = 0, 0.0
        self.taken: dict[str, list[int]] = {kind: [] for kind in WEIGHTS}
        self.found = 0

    @property
    def landscape_due(self) -> bool:
        return self.step % 200 == 0

    def _take(self, kind: str, seconds: float) -> None:
        self.taken[kind].append(self.step)
        self._clock.now += seconds
        self.spent += seconds

    def curvature_sample(self, loss: Callable[[], Any], *, budget_s: float) -> None:
        needed = (1.6 + 2.4 * (2 + next(self._products))) * self._gradient_s  # a graph, and two products before
        self.found += needed <= budget_s
        self._take("curvature", min(budget_s, needed))

    def landscape_sample(self, loss: Callable[[], Any], *, split: bool) -> None:
        self._take("loss", GRADIENTS["loss"] * self._gradient_s)

    def slices_sample(self, loss: Callable[[], Any], *, split: bool) -> None:
        self._take("slices", GRADIENTS["slices"] * self._gradient_s)


@pytest.fixture(scope="module")
def by_default(texts: Path) -> tuple[TrainConfig, Task]:
    config = load_config(None, [f"task.data={texts}"])
    return config, build_task(config)


@given(st.floats(0.001, 10.0), st.floats(0.5, 1.25), st.permutations(PRODUCTS))
def test_default_settings_have_five_curvatures_in_1200_steps_within_two_percent(
    by_default: tuple[TrainConfig, Task], step_s: float, dearer: float, products: list[int]
) -> None:
    """Costs as they were measured, in gradients of 2 of the 16 sequences of a step."""
    (config, task), clock = by_default, Clock()
    mon = Costly(clock, dearer * step_s / 8, products)
    model, place = nn.Linear(1, 1), torch.device("cpu")
    samples = LandscapeSamples(
        config, Parallel(0, 1, place), model, task, build_precision(config.precision, place), clock
    )
    batch = Batch(torch.zeros(2, 8), torch.zeros(2, 8))
    for mon.step in range(1, 1201):
        clock.now += 1.1 * step_s  # with evaluations and checkpoints
        samples.after_step(mon.step, mon, batch)
        assert mon.spent < 0.02 * clock.now
    assert mon.found >= 5 and mon.taken["loss"] and mon.taken["slices"], (mon.found, mon.taken)
