"""What an optimizer is told is recorded once, and again when it jumps; not while a schedule moves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monitor.hook.hyperparameters import Hyperparameters
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import MLP
from tests.monitor.hook.watching import watched


def _events(folder: Path, optimizer_of: Callable[[Any], torch.optim.Optimizer], each: Callable[[int, Any], None]):
    model = MLP.made()
    optimizer = optimizer_of(list(model.parameters()))
    with watched(folder, model, optimizer, [Hyperparameters()]) as mon:
        for step in range(1, 13):
            optimizer.zero_grad()
            MLP.loss(model, *MLP.batch(step)).backward()
            each(step, optimizer)
            optimizer.step()
            mon.step()
    return recorded.events(mon.run_dir, "optimizer"), recorded.events(mon.run_dir, "optimizer_change")


def _adamw(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    groups = [{"params": parameters[:2], "weight_decay": 0.0}, {"params": parameters[2:]}]
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))


@pytest.mark.parametrize(
    ("key", "value", "name", "before", "after"),
    [
        ("weight_decay", -0.1, "weight_decay", 0.1, -0.1),
        ("weight_decay", 10.0, "weight_decay", 0.1, 10.0),
        ("betas", (0.9, 0.9995), "beta2", 0.95, 0.9995),
        ("eps", 1e-3, "eps", 1e-8, 1e-3),
    ],
)
def test_a_jump_is_told_with_its_group(
    tmp_path: Path, key: str, value: Any, name: str, before: float, after: float
) -> None:
    def each(step: int, optimizer: torch.optim.Optimizer) -> None:
        if step == 7:
            optimizer.param_groups[1][key] = value

    (first,), (event,) = _events(tmp_path, _adamw, each)
    assert [group["weight_decay"] for group in first["groups"]] == [0.0, 0.1]
    assert first["step"] == 1
    told = (event["step"], event["group"], event["name"], event["before"], event["after"])
    assert told == (7, 1, name, before, after)


def test_what_a_schedule_moves_is_not_told(tmp_path: Path) -> None:
    def each(step: int, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["weight_decay"] = 1e-4 * 1.5**step
        optimizer.param_groups[0]["momentum"] = 0.95 - 0.01 * step

    def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1e-2, momentum=0.95, weight_decay=1e-4)

    (first,), changes = _events(tmp_path, sgd, each)
    assert first["name"] == "SGD"
    assert changes == []


def test_a_setting_on_a_device_or_of_another_kind_is_passed_over(tmp_path: Path) -> None:
    def each(step: int, optimizer: torch.optim.Optimizer) -> None:
        if step == 5:
            optimizer.param_groups[1]["rho"] = "half"

    (first,), changes = _events(tmp_path, _adamw, each)
    assert set(first["groups"][1]) == {"weight_decay", "beta1", "beta2", "eps"}
    assert changes == []


def test_a_state_that_is_gone_is_told_each_time(tmp_path: Path) -> None:
    def each(step: int, optimizer: torch.optim.Optimizer) -> None:
        if step in (5, 9):
            optimizer.state.clear()

    _, changes = _events(tmp_path, _adamw, each)
    tensors = len(list(MLP.made().parameters()))
    told = [(event["step"], event["name"], event["before"], event["after"]) for event in changes]
    assert told == [(5, "state", tensors, 0), (9, "state", tensors, 0)]


def test_an_optimizer_that_remembers_nothing_forgets_nothing(tmp_path: Path) -> None:
    _, changes = _events(
        tmp_path, lambda parameters: torch.optim.SGD(parameters, lr=1e-2), lambda step, optimizer: None
    )
    assert changes == []
