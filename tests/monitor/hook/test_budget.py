"""Above its budget the monitor measures less often, the dearest first, and says so."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import monitor
from monitor.hook import budget as module
from monitor.hook.budget import MOST_SLOWED, SETTLE_STEPS, WINDOW_STEPS, Budget
from monitor.hook.handle import Monitor
from monitor.hook.probe import Probe
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run
from tests.monitor.hook.problems import MLP


def _probe(name: str, every: int, spent_ms: float) -> Probe:
    probe = Probe()
    probe.name, probe.every, probe.spent_ns = name, every, int(spent_ms * 1e6)
    return probe


class _Told(list[tuple[str, dict[str, Any]]]):
    def __call__(self, kind: str, **fields: Any) -> None:
        self.append((kind, fields))


def _window(budget: Budget, steps: int, share: float, *probes: Probe, asked_for: bool = False) -> None:
    """``steps`` steps of one second."""
    for step in range(1, steps + 1):
        measured = [probe for probe in probes if step % probe.every == 0]
        budget.end_step(share, 1.0, measured, asked_for)


def test_the_dearest_probe_is_made_half_as_frequent_until_the_budget_holds() -> None:
    told = _Told()
    budget = Budget(0.02, told)
    cheap, dear = _probe("cheap", 1, 2.0), _probe("dear", 5, 100.0)
    _window(budget, SETTLE_STEPS, 0.9, cheap, dear)
    _window(budget, WINDOW_STEPS, 0.03, cheap, dear)
    _window(budget, WINDOW_STEPS, 0.025, cheap, dear)
    _window(budget, WINDOW_STEPS, 0.0199, cheap, dear)
    assert (cheap.every, dear.every) == (1, 20)
    assert [(kind, fields["what"], fields["before"], fields["after"]) for kind, fields in told] == [
        ("cadence", "dear", 5, 10),
        ("cadence", "dear", 10, 20),
    ]
    assert told[0][1]["monitor_share"] == pytest.approx(0.03)


def test_steps_whose_price_was_accepted_and_the_first_ones_are_not_held_against_it() -> None:
    told = _Told()
    budget = Budget(0.02, told)
    dear = _probe("dear", 1, 100.0)
    _window(budget, SETTLE_STEPS, 0.9, dear)
    _window(budget, 10 * WINDOW_STEPS, 0.9, dear, asked_for=True)
    assert (dear.every, told) == (1, [])


def test_a_probe_keeps_an_eighth_of_its_cadence_and_one_without_gaps_all_of_it() -> None:
    told = _Told()
    budget = Budget(0.02, told)
    slowed, whole = _probe("slowed", 5, 5000.0), _probe("whole", 1, 100.0)
    whole.every_step = True
    _window(budget, SETTLE_STEPS + 10 * WINDOW_STEPS, 0.5, slowed, whole)
    assert (slowed.every, whole.every) == (5 * MOST_SLOWED, 1)
    assert [kind for kind, _ in told] == ["cadence"] * 3 + ["warning"]


def test_what_no_cadence_can_change_is_said_once() -> None:
    told = _Told()
    budget = Budget(0.02, told)
    cheap = _probe("cheap", 1, 0.01)
    _window(budget, SETTLE_STEPS + 3 * WINDOW_STEPS, 0.5, cheap)
    assert cheap.every == 1
    assert [kind for kind, _ in told] == ["warning"]
    assert "50.0% of the step, above its budget of 2.0%" in told[0][1]["text"]


class Slow(Probe):
    """Costs more than the whole step."""

    name = "a slow probe"
    every = 1

    def after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        time.sleep(0.002)


def test_a_real_loop_ends_within_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_STEPS", 20)
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = create_run(tmp_path)
    begin_attempt(run)
    probe = Slow()
    with Monitor(
        model, [optimizer], RankWriter(run, 0), run, 0,
        rank=0, world_size=1, scaler=None, planned_steps=None, tokens_per_step=None, probes=[probe], budget=0.5,
    ) as mon:  # fmt: skip
        for number in range(200):
            optimizer.zero_grad()
            MLP.loss(model, *MLP.batch(number)).backward()
            optimizer.step()
            mon.step()
    changes = open_run(run).events("cadence")
    assert changes
    assert changes[0].fields["what"] == "a slow probe"
    assert probe.every == changes[-1].fields["after"] > 1


def test_a_landscape_that_the_loop_asked_for_is_not_held_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_STEPS", 10)
    told = _Told()
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with monitor.attach(model, optimizer, run=tmp_path, detail="norms", landscape_every=2) as mon:
        mon._costs = Budget(0.6, told)  # a sample is twenty forward passes: most of its step
        for number in range(60):
            optimizer.zero_grad()
            MLP.loss(model, *MLP.batch(number)).backward()
            optimizer.step()
            time.sleep(0.001)
            mon.step()
            if mon.landscape_due:
                mon.landscape_sample(lambda: time.sleep(0.002) or MLP.loss(model, *MLP.batch(0)))
    assert told == []
