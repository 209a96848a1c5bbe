"""What a loop does wrong is told once, in words that say what to do; what only looks wrong is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import monitor
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import GPT, MLP

Zero = Callable[[nn.Module, torch.optim.Optimizer], None]


def _behind_the_counter(model: nn.Module, _optimizer: torch.optim.Optimizer) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.data.zero_()


ZEROED: dict[str, Zero] = {
    "set to None": lambda _, optimizer: optimizer.zero_grad(),
    "filled with zeros": lambda _, optimizer: optimizer.zero_grad(set_to_none=False),
    "by the model": lambda model, _: model.zero_grad(),
    "behind the counter": _behind_the_counter,
}


def _warnings(
    folder: Path, zero: Zero | None, where: str, steps: int = 6, micro_steps: int = 1, problem=MLP
) -> list[str]:
    model = problem.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with monitor.attach(model, optimizer, run=folder, detail="norms") as mon:
        for step in range(1, steps + 1):
            if zero and where == "first":
                zero(model, optimizer)
            for micro in range(micro_steps):
                loss = problem.loss(model, *problem.batch(10 * step + micro))
                if zero and where == "before backward" and not micro:
                    zero(model, optimizer)
                loss.backward()
            optimizer.step()
            if zero and where == "after the step":
                zero(model, optimizer)
            mon.step()
    return [event["text"] for event in recorded.events(mon.run_dir, "warning")]


@pytest.mark.parametrize("micro_steps", [1, 3])
def test_gradients_that_are_never_zeroed_are_told_of_once(tmp_path: Path, micro_steps: int) -> None:
    (text,) = _warnings(tmp_path, None, "", micro_steps=micro_steps)
    assert text.startswith("gradients were not zeroed")
    assert "optimizer.zero_grad()" in text


@pytest.mark.parametrize("problem", [MLP, GPT], ids=lambda problem: problem.name)
@pytest.mark.parametrize("where", ["first", "before backward", "after the step"])
@pytest.mark.parametrize("zero", ZEROED.values(), ids=ZEROED.keys())
def test_gradients_zeroed_in_any_way_are_not_told_of(tmp_path: Path, zero: Zero, where: str, problem) -> None:
    assert _warnings(tmp_path, zero, where, micro_steps=2, problem=problem) == []


def test_gradients_zeroed_after_a_backward_of_something_else(tmp_path: Path) -> None:
    model, other = MLP.made(), MLP.made(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with monitor.attach(model, optimizer, run=tmp_path, detail="norms") as mon:
        for step in range(1, 5):
            loss = MLP.loss(model, *MLP.batch(step))
            MLP.loss(other, *MLP.batch(step)).backward()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mon.step()
    assert recorded.events(mon.run_dir, "warning") == []


def test_micro_steps_that_are_each_ended_are_told_of_as_that(tmp_path: Path) -> None:
    """mon.step() after every backward: gradients add up because that is meant."""
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with monitor.attach(model, optimizer, run=tmp_path, detail="norms") as mon:
        for step in range(1, 9):
            MLP.loss(model, *MLP.batch(step)).backward()
            if step % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()
            mon.step()
    (warning,) = recorded.events(mon.run_dir, "warning")
    assert "no optimizer step was seen" in warning["text"]


def test_an_optimizer_step_without_backward_is_told_of_once(tmp_path: Path) -> None:
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with monitor.attach(model, optimizer, run=tmp_path, detail="norms") as mon:
        for step in range(1, 7):
            if step < 3:
                optimizer.zero_grad()
                MLP.loss(model, *MLP.batch(step)).backward()
            optimizer.step()
            mon.step()
    (warning,) = recorded.events(mon.run_dir, "warning")
    assert (warning["step"], "no backward() was seen" in warning["text"]) == (3, True)
