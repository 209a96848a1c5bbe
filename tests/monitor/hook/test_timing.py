"""The parts of a step add up to its wall time, whatever the loop does."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import monitor
from monitor.hook.timing import GAP, PARTS, StepClock, as_signals
from monitor.runfile.writer import create_run
from monitor.signals import TIME_PARTS
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import MLP


class HandClock:
    """Nanoseconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


_ACTIONS = st.one_of(
    st.tuples(st.just("switch"), st.sampled_from([*PARTS, GAP])),
    st.tuples(st.just("settle"), st.sampled_from(["data_wait", "other"])),
    st.tuples(st.just("pass"), st.integers(0, 10**12)),
    st.tuples(st.just("end"), st.none()),
)


@given(st.lists(_ACTIONS, max_size=60))
def test_parts_add_up_exactly(actions):
    hand = HandClock()
    clock = StepClock(hand)
    step_began = 0
    for what, value in [*actions, ("end", None)]:
        if what == "switch":
            clock.switch(value)
        elif what == "settle":
            clock.settle(value)
        elif what == "pass":
            hand.now += value
        else:
            spent = clock.end_step()
            assert set(spent) == set(PARTS)
            assert all(ns >= 0 for ns in spent.values())
            assert sum(spent.values()) == hand.now - step_began
            signals = as_signals(spent)
            parts = [signals.get(part, 0.0) for part in TIME_PARTS]
            assert sum(parts) == pytest.approx(signals["step_time_s"], rel=1e-12, abs=1e-15)
            step_began = hand.now


def test_a_gap_is_named_by_what_follows():
    hand = HandClock()
    clock = StepClock(hand)
    hand.now += 5  # waiting for data
    clock.switch("monitor")
    clock.settle("data_wait")
    clock.switch("forward")
    hand.now += 7
    clock.switch("backward")
    hand.now += 11
    clock.switch(GAP)
    hand.now += 3  # the scheduler
    spent = clock.end_step()
    assert (spent["data_wait"], spent["forward"], spent["backward"], spent["other"]) == (5, 7, 11, 3)


def test_a_real_loop_charges_the_right_parts(tmp_path):
    """Sleeps of known length in every place of a loop with two micro-steps turn up where they belong."""

    class Slow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = MLP.made()

        def forward(self, x):
            time.sleep(0.02)
            return SlowBackward.apply(self.inner(x))

    class SlowBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            time.sleep(0.03)
            return grad

    class SlowSGD(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(0.05)
            return super().step(closure)

    model = Slow()
    optimizer = SlowSGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for _ in range(2):
            for micro in range(2):
                time.sleep(0.01)
                x, y = MLP.batch(micro)
                MLP.loss(model, x, y).backward()
            mon.clip_grad_norm_(1.0)
            optimizer.step()
            optimizer.zero_grad()
            time.sleep(0.04)
            mon.step()
            with mon.phase("eval"):
                time.sleep(0.06)
                MLP.loss(model, x, y)
            with mon.phase("checkpoint"):
                time.sleep(0.07)
    rows = recorded.scalars(mon.run_dir)
    for row in rows.values():
        assert row["step_time_s"] == pytest.approx(sum(row.get(part, 0.0) for part in TIME_PARTS), rel=1e-9)
        assert row["data_wait_s"] >= 0.02
        assert row["forward_s"] >= 0.04
        assert row["backward_s"] >= 0.06
        assert row["optimizer_s"] >= 0.05
        assert row["other_s"] >= 0.04
    assert "eval_s" not in rows[1]
    assert rows[2]["eval_s"] >= 0.08  # the sleep and the slow forward pass
    assert rows[2]["checkpoint_s"] >= 0.07
    names = [event["name"] for event in recorded.events(mon.run_dir, "phase")]
    assert names == ["eval", "checkpoint"] * 2


def test_an_evaluation_outside_a_phase_is_not_training(tmp_path):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for number in range(2):
            MLP.loss(model, *MLP.batch(number)).backward()
            optimizer.step()
            mon.step()
            model.eval()
            with torch.no_grad():
                model(MLP.batch(0)[0])
                time.sleep(0.02)
            mon.log({"late": 1.0})  # still the row of the step that ended
            model.train()
    rows = recorded.scalars(mon.run_dir)
    assert rows[2]["eval_s"] >= 0.02
    assert rows[1]["late"] == rows[2]["late"] == 1.0


def test_reentrant_checkpointing_is_one_backward(tmp_path):
    from torch.utils.checkpoint import checkpoint

    inner = MLP.made()

    class Checkpointed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x.requires_grad_(), use_reentrant=True)

    model = Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for number in itertools.islice(itertools.count(), 3):
            x, y = MLP.batch(number)
            MLP.loss(model, x, y).backward()
            assert mon._loop.gradients.micro_steps == 1
            optimizer.step()
            optimizer.zero_grad()
            mon.step()
    assert len(recorded.layers(mon.run_dir)) == 3


@pytest.mark.parametrize(("given", "ranks", "expected"), [(None, 1, 24), (7, 1, 7), (None, 2, None), (48, 2, 48)])
def test_samples_are_given_or_the_first_dimension_of_all_micro_steps(tmp_path, given, ranks, expected):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"rank": 0, "world_size": ranks, "attempt": None if ranks == 1 else 0}
    run = tmp_path if ranks == 1 else create_run(tmp_path)
    with monitor.attach(model, optimizer, run=run, **options) as mon:
        for number in range(2):
            for size in (16, 8):
                x, y = (part[:size] for part in MLP.batch(number))
                MLP.loss(model, x, y).backward()
            optimizer.step()
            with mon.phase("eval"), torch.no_grad():
                model(MLP.batch(0)[0])
            mon.step(samples=given)
    for row in recorded.scalars(mon.run_dir).values():
        assert row.get("samples") == expected
        rate = None if expected is None else pytest.approx(expected / row["step_time_s"])
        assert row.get("samples_per_s") == rate


def test_the_loop_s_own_value_of_that_name_stays(tmp_path):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        MLP.loss(model, *MLP.batch(0)).backward()
        optimizer.step()
        mon.step()
        mon.log({"samples_per_s": 3.0, "samples": 2.0})
    (row,) = recorded.scalars(mon.run_dir).values()
    assert (row["samples"], row["samples_per_s"]) == (2.0, 3.0)
