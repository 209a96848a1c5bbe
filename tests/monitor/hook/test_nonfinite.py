"""A NaN put in at a known place is found there: in the batch, the weights, a module, the loss, the backward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from monitor.hook.inputs import Inputs
from monitor.hook.nonfinite import BLOCKS, NonFinite, _blocks
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import CNN, GPT, MLP, Problem, TinyGPT
from tests.monitor.hook.watching import watched


class Breaks(nn.Module):
    """Passes its input on; at will with one value broken, or with its gradient broken."""

    forward_at: float | None = None
    backward_at: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.forward_at is not None:
            hole = torch.zeros_like(x)
            hole.view(-1)[0] = self.forward_at
            x = x + hole
        if self.backward_at is not None:
            x = x.clone()
            x.register_hook(lambda grad: grad + self.backward_at)
        return x


def _train(folder: Path, model: nn.Module, problem: Problem, change, steps: int, *, skip=False, loss_given=True):
    """Train, with ``change(step)`` before each step; ``skip``: leave out the optimizer step when it would harm."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watched(folder, model, optimizer, [Inputs(), NonFinite(model, blocks=4)]) as mon:
        for step in range(1, steps + 1):
            x, y = problem.batch(step)
            changed = change(step, x)
            x = x if changed is None else changed
            optimizer.zero_grad()
            loss = problem.loss(model, x, y)
            loss.backward()
            finite = all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
            if finite or not skip:
                optimizer.step()
            mon.step(loss=loss if loss_given else None)
    return [
        (event["step"], event["origin"], event["where"], event["exact"])
        for event in recorded.events(mon.run_dir, "nonfinite")
    ]


def _gpt() -> tuple[TinyGPT, Breaks]:
    """Of its modules token, blocks.0, norm and head are watched in every step; what breaks lies before norm."""
    model = GPT.made()
    broken = Breaks()
    model.blocks[1].mlp.insert(2, broken)
    return model, broken


def _between(at: int, until: int, module: nn.Module, **values):
    def change(step: int, _x: Tensor) -> None:
        for name, value in values.items():
            setattr(module, name, value if at <= step < until else None)

    return change


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_forward_names_the_block_at_once_and_the_module_when_it_happens_again(tmp_path: Path, value: float) -> None:
    model, broken = _gpt()
    told = _train(tmp_path, model, GPT, _between(3, 6, broken, forward_at=value), 8, skip=True)
    assert told == [(3, "forward", "norm", False), (4, "forward", "blocks.1.mlp.2", True)]


def test_what_the_broken_step_did_to_the_weights_is_no_new_origin(tmp_path: Path) -> None:
    model, broken = _gpt()
    told = _train(tmp_path, model, GPT, _between(3, 4, broken, forward_at=torch.nan), 6)
    assert [(step, origin) for step, origin, *_ in told] == [(3, "forward")]


def test_backward_names_the_first_layer_of_the_backward_pass(tmp_path: Path) -> None:
    model, broken = _gpt()
    told = _train(tmp_path, model, GPT, _between(3, 4, broken, backward_at=torch.nan), 5)
    assert told == [(3, "backward", "blocks.1.mlp.0.bias", True)]  # what comes before the broken module


def test_backward_without_a_loss_is_said_with_less_certainty(tmp_path: Path) -> None:
    model, broken = _gpt()
    change = _between(3, 4, broken, backward_at=torch.nan)
    told = _train(tmp_path, model, GPT, change, 4, loss_given=False)
    assert told == [(3, "backward", "blocks.1.mlp.0.bias", False)]


def test_a_loss_function_that_breaks(tmp_path: Path) -> None:
    problem = Problem("log", MLP.model, MLP.batch, lambda m, x, y: MLP.loss(m, x, y) + (m(x).sum() * 0).log())
    told = _train(tmp_path, MLP.made(), problem, lambda *_: None, 2, skip=True)
    assert told == [(1, "loss", None, True)]


def test_a_batch_that_is_broken(tmp_path: Path) -> None:
    def change(step: int, x: Tensor) -> Tensor:
        return torch.where(torch.arange(10) == 3, torch.nan, x) if step == 2 else x

    assert _train(tmp_path, MLP.made(), MLP, change, 4, skip=True) == [(2, "input", None, True)]


def test_weights_that_were_broken_before_the_step(tmp_path: Path) -> None:
    model = CNN.made()

    def change(step: int, x: Tensor) -> None:
        if step == 3:
            with torch.no_grad():
                model[3].weight[1, 2] = torch.nan

    told = _train(tmp_path, model, CNN, change, 6)
    assert told == [(3, "weights", "3.weight", True)]


def test_a_new_episode_is_told_of_again(tmp_path: Path) -> None:
    model, broken = _gpt()

    def change(step: int, _x: Tensor) -> None:
        broken.forward_at = torch.nan if step in (2, 5) else None

    told = _train(tmp_path, model, GPT, change, 6, skip=True)
    # The fifth step is within the dense measurement that the second one began.
    assert [(step, where, exact) for step, _, where, exact in told[1:]] == [(5, "blocks.1.mlp.2", True)]
    assert told[0][0] == 2


def test_an_overflow_under_a_scaler_is_routine(tmp_path: Path) -> None:
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with watched(tmp_path, model, optimizer, [NonFinite(model)], scaler=scaler) as mon:
        for step in range(1, 4):
            optimizer.zero_grad()
            loss = 1e4 * MLP.loss(model, *MLP.batch(step))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            mon.step(loss=loss)
        assert not mon._probes.armed
    assert recorded.scalars(mon.run_dir)[1]["skipped_steps"] == 1
    assert recorded.events(mon.run_dir, "nonfinite") == []


def test_a_finite_training_tells_nothing_and_arms_nothing(tmp_path: Path) -> None:
    model, _ = _gpt()
    assert _train(tmp_path, model, GPT, lambda *_: None, 5) == []


def test_few_modules_are_watched_in_every_step() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = TinyGPT(blocks=20)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    for model in (Nested(), CNN.made(), GPT.made(), nn.Linear(2, 2), nn.Sequential(nn.Sequential(nn.Linear(2, 2)))):
        for most in (1, 4, BLOCKS):
            chosen = [name for name, module in model.named_modules() if id(module) in _blocks(model, most)]
            assert 1 <= len(chosen) <= most
            assert not any(a != b and b.startswith(f"{a}.") for a in chosen for b in chosen)
        assert _blocks(model, 0) == set()
    small = GPT.made()
    chosen = [name for name, module in small.named_modules() if id(module) in _blocks(small, BLOCKS)]
    named = [name for name, _ in small.named_parameters() if "." in name]
    assert all(name.startswith(tuple(f"{part}." for part in chosen)) for name in named), "no piece is left out"
    nested = Nested()
    chosen = [name for name, module in nested.named_modules() if id(module) in _blocks(nested, BLOCKS)]
    assert {"model.token", "model.head"} <= set(chosen)
    assert len(chosen) == BLOCKS


def test_a_small_model_on_the_cpu_has_its_blocks_looked_at_when_its_output_is_broken(tmp_path: Path) -> None:
    model, broken = _gpt()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watched(tmp_path, model, optimizer, [NonFinite(model)]) as mon:
        for step in (1, 2, 3):
            broken.forward_at = torch.nan if step > 1 else None
            loss = GPT.loss(model, *GPT.batch(step))
            loss.backward()
            mon.step(loss=loss)
    told = [(event["step"], event["where"], event["exact"]) for event in recorded.events(mon.run_dir, "nonfinite")]
    assert told == [(2, "blocks.1.mlp", False), (3, "blocks.1.mlp.2", True)]
