"""Above its budget the monitor measures less often, the dearest first, and says so."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import monitor
from monitor.hook import budget as module
from monitor.hook.budget import MOST_SLOWED, ROOM_WINDOWS, SETTLE_STEPS, WINDOW_STEPS, Budget
from monitor.hook.coverage import LEAST, Coverage, of_layers
from monitor.hook.handle import Monitor
from monitor.hook.layers import layer_table
from monitor.hook.probe import Probe
from monitor.hook.updates import Updates
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


def test_fewer_layers_are_the_last_resort_and_the_last_change_is_the_first_taken_back() -> None:
    told = _Told()
    budget = Budget(0.02, told)
    dear = _probe("dear", 10, 1000.0)
    dear.coverage = Coverage([(layer,) for layer in range(40)])
    _window(budget, SETTLE_STEPS + 5 * WINDOW_STEPS, 0.05, dear)
    assert [(kind, fields["before"], fields["after"]) for kind, fields in told] == [
        ("cadence", 10, 20), ("cadence", 20, 40), ("cadence", 40, 80), ("coverage", 40, 20), ("coverage", 20, 10),
    ]  # fmt: skip
    assert told[-1][1]["of"] == 40
    assert "of 10 of 40 instead of 20" in told[-1][1]["text"]
    told.clear()
    dear.spent_ns = int(0.1e9)
    _window(budget, 2 * ROOM_WINDOWS * WINDOW_STEPS, 0.0155, dear)  # 0.00125 of it would come on top: too much
    assert told == []
    _window(budget, 3 * ROOM_WINDOWS * WINDOW_STEPS, 0.005, dear)
    assert [(kind, fields["before"], fields["after"]) for kind, fields in told] == [
        ("coverage", 10, 20), ("coverage", 20, 40), ("cadence", 80, 40),
    ]  # fmt: skip
    assert dear.coverage.whole


def test_what_had_to_be_done_again_stays() -> None:
    told = _Told()
    budget = Budget(0.02, told)
    dear = _probe("dear", 10, 100.0)
    for share in (0.05, 0.001, 0.05, 0.001):
        _window(budget, WINDOW_STEPS if share > 0.02 else 2 * ROOM_WINDOWS * WINDOW_STEPS, share, dear)
    _window(budget, SETTLE_STEPS, 0.001, dear)
    assert [(fields["before"], fields["after"]) for _, fields in told] == [(10, 20), (20, 10), (10, 20)]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=60), st.sets(st.integers(0, 59), max_size=3))
def test_each_half_keeps_the_ends_and_what_was_named_and_is_spread_over_the_depth(
    sizes: list[int], named: set[int]
) -> None:
    ends = np.cumsum(sizes)
    groups = [tuple(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    coverage = Coverage(groups, {groups[at][0] for at in named if at < len(groups)})
    seen: list[int] = []
    while coverage.can_shrink:
        before = coverage.kept
        seen.append(coverage.count)
        coverage.fewer()
        assert coverage.kept is not None
        assert coverage.count < seen[-1]
        assert before is None or coverage.kept < before
        wanted = {0, len(groups) - 1} | {at for at in named if at < len(groups)}
        assert all(place in coverage for at in wanted for place in groups[at])
        assert all(len(coverage.kept & set(group)) in (0, len(group)) for group in groups)
    while seen:
        coverage.more()
        assert coverage.count == seen.pop()
    assert coverage.whole


def test_half_of_the_layers_are_every_second_one() -> None:
    coverage = Coverage([(layer,) for layer in range(33)])
    coverage.fewer()
    assert sorted(coverage.kept or ()) == pytest.approx(np.linspace(0, 32, 16), abs=1.5)


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


class SlowUpdates(Updates):
    """Looks at each layer that it measures as closely as nobody can afford, as long as it is told to."""

    every = 1
    dear = True

    def after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        super().after_optimizer(optimizer)
        for row, parameter in enumerate(self._table.parameters):
            if self.dear and row in self.coverage:
                torch.linalg.svdvals(torch.outer(parameter.detach().flatten()[:64], torch.ones(64)))


def test_a_loop_too_slow_for_any_cadence_measures_fewer_layers_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_STEPS", 10)
    monkeypatch.setattr(module, "MOST_SLOWED", 1)
    monkeypatch.setattr(module, "ROOM_WINDOWS", 1)
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(20)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = create_run(tmp_path)
    begin_attempt(run)
    table = layer_table(model)
    probe = SlowUpdates(table)
    probe.coverage = of_layers(table, {20})
    with Monitor(
        model, [optimizer], RankWriter(run, 0), run, 0,
        rank=0, world_size=1, scaler=None, planned_steps=None, tokens_per_step=None, probes=[probe], budget=0.02,
    ) as mon:  # fmt: skip

        def steps_until(count: int, limit: int = 600) -> int:
            while probe.coverage.count != count and mon.step_number < limit:
                optimizer.zero_grad()
                model(torch.randn(4, 8)).square().mean().backward()
                mon.clip_grad_norm_(0.1)
                optimizer.step()
                mon.step()
            return mon.step_number

        narrow = steps_until(LEAST)
        mon._costs.budget, probe.dear = 0.99, False
        wide = steps_until(40)
        steps_until(-1, wide + 5)
    read = open_run(run)
    events = read.events("coverage")
    counts = [(event.fields["before"], event.fields["after"]) for event in events]
    assert counts == [(40, 20), (20, 10), (10, 8), (8, 10), (10, 20), (20, 40)]
    assert all(event.fields["of"] == 40 for event in events)
    # Every layer's gradient, and the norm of all, in every step.
    assert read.layers("grad_norm_preclip").present.all()
    assert len(read.series("grad_norm_preclip")) == read.last_step == wide + 5
    first = events[0].step or 0
    for stat in ("weight_norm", "update_norm", "update_to_weight_ratio"):
        matrix = read.layers(stat)
        assert matrix.step.tolist() == list(range(1, wide + 6))
        assert np.isfinite(matrix.value[matrix.present]).all()
        measured = dict(zip(matrix.step.tolist(), matrix.present.sum(axis=1).tolist(), strict=True))
        assert (measured[first], measured[first + 1], measured[narrow + 1], measured[wide + 1]) == (40, 20, 8, 40)
        kept = {matrix.names[at] for at in np.flatnonzero(matrix.present[narrow])}
        assert {"0.weight", "0.bias", "10.weight", "10.bias", "19.weight", "19.bias"} <= kept
        # What only all layers say is absent without them: not a sum over fewer.
        assert read.series(stat).step.tolist() == [*range(1, first + 1), *range(wide + 1, wide + 6)]


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
