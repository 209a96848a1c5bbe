"""Parameters that do not train are named; what does not train on purpose, or does, is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import monitor
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import MLP, PROBLEMS


def _run(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = 24,
    each: Callable[[int], None] = lambda step: None,
    problem: Any = MLP,
) -> list[dict[str, Any]]:
    """Train, and return the warnings that name layers."""
    with monitor.attach(model, optimizer, run=folder) as mon:
        for step in range(1, steps + 1):
            each(step)
            optimizer.zero_grad()
            problem.loss(model, *problem.batch(step)).backward()
            optimizer.step()
            mon.step()
    return [event for event in recorded.events(mon.run_dir, "warning") if "about" in event]


class Detached(nn.Module):
    """The middle of an MLP whose output nobody's loss sees."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MLP.model()
        self.aside = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + 0 * self.aside(x).detach().sum()


def test_a_detached_layer_is_named_after_three_steps(tmp_path: Path) -> None:
    model = Detached()
    (event,) = _run(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert (event["about"], event["step"]) == ("missing_gradients", 3)
    assert event["layers"] == ["aside.weight", "aside.bias"]
    assert "aside.weight, aside.bias" in event["text"]


def test_a_frozen_layer_is_named_only_if_it_has_no_gradient_once_unfrozen(tmp_path: Path) -> None:
    model = Detached()
    model.requires_grad_(False)
    model.inner[5].requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def unfreeze(step: int) -> None:
        if step == 15:
            model.requires_grad_(True)

    (event,) = _run(tmp_path, model, optimizer, 45, unfreeze)
    assert (event["about"], event["step"], event["layers"]) == (
        "missing_gradients", 40, ["aside.weight", "aside.bias"],
    )  # fmt: skip


def test_a_layer_put_in_after_the_optimizer_was_made_is_named(tmp_path: Path) -> None:
    model = MLP.made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model[5] = nn.Linear(32, 5)
    (event,) = _run(tmp_path, model, optimizer)
    assert (event["about"], event["step"], event["layers"]) == ("not_in_optimizer", 3, ["5.weight", "5.bias"])
    assert event["strangers"] == 2
    assert "built before the model was changed" in event["text"]


class Forgetful(torch.optim.AdamW):
    """Writes one group's weights to a copy that the model does not use, as a broken write-back does."""

    def step(self, closure=None):
        kept = [p.detach().clone() for p in self.param_groups[0]["params"]]
        super().step(closure)
        with torch.no_grad():
            for p, old in zip(self.param_groups[0]["params"], kept, strict=True):
                p.copy_(old)


def test_a_layer_put_in_after_attach_is_said_to_be_in_no_optimizer(tmp_path: Path) -> None:
    model = MLP.made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def replace(step: int) -> None:
        if step == 1:
            model[5] = nn.Linear(32, 5)

    (event,) = _run(tmp_path, model, optimizer, each=replace)
    assert (event["about"], event["step"], event["layers"]) == ("not_in_optimizer", 3, ["5.weight", "5.bias"])


class Late(nn.Module):
    """An MLP in front of which a layer is made when the first batch comes."""

    def __init__(self, optimizer_of: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.first: nn.Linear | None = None
        self.inner = MLP.model()
        self.optimizer = optimizer_of(self)
        self.joins = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.first is None:
            self.first = nn.Linear(10, 10)
            if self.joins:
                self.optimizer.add_param_group({"params": self.first.parameters()})
        return self.inner(self.first(x))


@pytest.mark.parametrize("joins", [False, True])
def test_a_layer_made_with_the_first_batch_is_named_unless_it_joins_the_optimizer(tmp_path: Path, joins: bool) -> None:
    model = Late(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    model.joins = joins
    told = _run(tmp_path, model, model.optimizer)
    assert [(event["about"], event["step"], event["layers"]) for event in told] == (
        [] if joins else [("not_in_optimizer", 3, ["first.weight", "first.bias"])]
    )


def test_weights_that_the_step_does_not_change_are_named(tmp_path: Path) -> None:
    model = MLP.made()
    groups = [{"params": list(model[3].parameters())}, {"params": [*model[0].parameters(), *model[5].parameters()]}]
    (event,) = _run(tmp_path, model, Forgetful(groups, lr=1e-2))
    assert (event["about"], event["layers"]) == ("unmoved", ["3.weight", "3.bias"])
    assert event["step"] <= 5


def test_updates_lost_in_half_precision_are_named_as_such(tmp_path: Path) -> None:
    class Half(nn.Module):
        """A normalisation's gains are 1, where neighbouring bf16 numbers are 0.004 and 0.008 apart."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(10, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 5)).bfloat16()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.bfloat16())

    torch.manual_seed(0)
    model = Half()
    (event,) = _run(tmp_path, model, torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0), 45)
    assert event["about"] == "unmoved"
    assert "inner.1.weight" in event["layers"]
    assert "inner.1.bias" not in event["layers"]  # begins at 0, where the numbers are dense
    assert "resolution of bfloat16" in event["text"]


def test_what_is_still_on_purpose_is_not_named(tmp_path: Path) -> None:
    model = MLP.made()
    model[0].requires_grad_(False)
    groups = [{"params": list(model[3].parameters()), "lr": 0.0}, {"params": list(model[5].parameters())}]
    assert _run(tmp_path, model, torch.optim.SGD(groups, lr=0.1), 60) == []


def test_whole_numbers_among_the_parameters_are_no_reason_to_stop(tmp_path: Path) -> None:
    model = MLP.made()
    model[2].codes = nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False)
    assert _run(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1)) == []


def test_the_first_steps_of_a_long_warm_up_are_not_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(10, 32), nn.LayerNorm(32), nn.Linear(32, 5))
    start = model[1].weight.detach().clone()
    assert _run(tmp_path, model, torch.optim.AdamW(model.parameters(), lr=1e-9, weight_decay=0.0), 45) == []
    assert torch.equal(model[1].weight, start)  # though nothing of it moved


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize(
    "kind",
    [lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=1e-3)],
    ids=["SGD", "AdamW"],
)
def test_a_healthy_training_has_no_warning(tmp_path: Path, problem, kind) -> None:
    model = problem.made()
    assert _run(tmp_path, model, kind(model.parameters()), 60, problem=problem) == []


def test_a_layer_whose_gradient_comes_and_goes_is_not_named(tmp_path: Path) -> None:
    class Gated(nn.Module):
        """An expert that is used in the first step only, and one that is used in every second."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.rare, self.often = MLP.model(), nn.Linear(10, 5), nn.Linear(10, 5)
            self.step = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.step += 1
            out = self.inner(x)
            if self.step == 1:
                out = out + self.rare(x)
            return out + self.often(x) if self.step % 2 == 0 else out

    model = Gated()
    assert _run(tmp_path, model, torch.optim.AdamW(model.parameters(), lr=1e-3), 40) == []
