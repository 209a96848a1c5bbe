"""Decay groups and optimizers, against torch's own, slow twins in numpy, and what the monitor says of their updates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

import monitor
from monitor.landscape.directions import last_update
from monitor.landscape.stability import stability
from trainer.config import ModelConfig, OptimizerConfig
from trainer.optim import (
    LAMB,
    LARS,
    ParameterGroups,
    StableAdamW,
    build_optimizer,
    decay_groups,
    load_optimizer,
    set_lr,
    state_bytes,
)
from trainer.tasks.gpt import GPT

SMALL = ModelConfig(n_layer=1, n_head=2, d_model=16)
KINDS = get_args(OptimizerConfig.model_fields["kind"].annotation)
Array = np.ndarray


def built(model: nn.Module, **options: object) -> torch.optim.Optimizer:
    return build_optimizer(model, OptimizerConfig.model_validate(options))


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Steps on fixed random data; the gradient of every third is 30 times larger, so that Adam's v lags behind."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        x, y = torch.randn(5, 6, generator=generator), torch.randn(5, 4, generator=generator)
        set_lr(optimizer, 0.002 * (1 + step))
        optimizer.zero_grad()
        ((model(x) - y).square().mean() * (30 if step % 3 == 2 else 1)).backward()
        optimizer.step()


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    model = GPT(SMALL, seq_len=8)
    decayed, plain = decay_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in plain["params"]} == {name for name in names.values() if "norm" in name}
    assert all(p.dim() == 2 for p in decayed["params"])
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_tied_head_is_in_one_group_once() -> None:
    model = GPT(SMALL.model_copy(update={"tied_head": True}), seq_len=8)
    listed = [id(p) for group in decay_groups(model, 0.1) for p in group["params"]]
    assert model.head.weight is model.token.weight
    assert len(listed) == len(set(listed)) == sum(1 for _ in model.parameters())


def test_frozen_parameters_are_left_out_and_no_group_is_empty() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    model[1].requires_grad_(False)
    (group,) = decay_groups(model, 0.1)
    assert group["params"] == [model[0].weight]


@pytest.mark.parametrize("kind", ["adamw", "stable_adamw", "sgd"])
def test_without_gradient_matrices_shrink_by_the_decay_alone(kind: str) -> None:
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = built(model, kind=kind, lr=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(model.weight, before[0] * (1 - 0.1 * 0.5), atol=1e-7)
    assert torch.equal(model.bias, before[1])


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("adamw", lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False)),
        ("adam", lambda groups: torch.optim.Adam(groups, betas=(0.9, 0.95), foreach=False)),
        ("sgd", lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True, foreach=False)),
    ],
)
def test_torchs_optimizers_have_their_options_and_are_fused_to_rounding(
    kind: str, theirs: Callable[[ParameterGroups], torch.optim.Optimizer]
) -> None:
    one, other = small_model(), small_model()
    train(one, built(one, kind=kind, nesterov=True), 12)
    train(other, theirs(decay_groups(other, 0.1)), 12)
    for ours, expected in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)


class Twin:
    """One tensor's optimizer in float64, from the paper's algorithm, entry by entry where torch would use a kernel."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.first = self.second = 0.0
        self.steps = 0

    def lars(self, w: Array, g: Array, lr: float) -> Array:
        weight, grad = math.sqrt((w**2).sum()), math.sqrt((g**2).sum())
        local = 1e-3 * weight / (grad + self.decay * weight) if w.ndim > 1 and weight and grad else 1.0
        self.first = 0.9 * self.first + lr * local * (g + self.decay * w)
        return w - self.first

    def adam(self, w: Array, g: Array) -> tuple[Array, Array]:
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * g
        self.second = 0.95 * self.second + 0.05 * g**2
        v = self.second / (1 - 0.95**self.steps)
        return self.first / (1 - 0.9**self.steps) / (np.sqrt(v) + 1e-8) + self.decay * w, v

    def lamb(self, w: Array, g: Array, lr: float) -> Array:
        update, _ = self.adam(w, g)
        trust = math.sqrt((w**2).sum() / (update**2).sum()) if w.ndim > 1 and w.any() and update.any() else 1.0
        return w - lr * trust * update

    def stable_adamw(self, w: Array, g: Array, lr: float) -> Array:
        update, v = self.adam(w, g)
        rms = math.sqrt((g**2 / np.maximum(v, 1e-16)).mean())
        return w - lr / max(1.0, rms) * update


@pytest.mark.parametrize(("kind", "built_as"), [("lars", LARS), ("lamb", LAMB), ("stable_adamw", StableAdamW)])
def test_optimizer_follows_its_slow_twin(kind: str, built_as: type) -> None:
    model = small_model()
    with torch.no_grad():
        model[2].weight.zero_()  # a trust ratio of 0 would keep it there
    optimizer = built(model, kind=kind)
    assert type(optimizer) is built_as
    twins = [(Twin(0.1 if p.dim() > 1 else 0.0), p, p.detach().double().numpy().copy()) for p in model.parameters()]
    for step in range(9):
        grads = [torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) for p in model.parameters()]
        lr = 0.01 * (1 + step % 4)
        set_lr(optimizer, lr)
        for i, (twin, p, w) in enumerate(twins):
            p.grad = grads[i] * (100 if step == 5 else 1)
            twins[i] = twin, p, getattr(twin, kind)(w, p.grad.double().numpy(), lr)
        optimizer.step()
        for _, p, w in twins:
            np.testing.assert_allclose(p.detach().numpy(), w, rtol=2e-5, atol=2e-6)


def test_stable_adamw_is_adamw_until_the_second_moment_lags_behind() -> None:
    weights = []
    for kind in ("adamw", "stable_adamw"):
        model = nn.Linear(6, 8)
        nn.init.ones_(model.weight)
        optimizer = built(model, kind=kind, lr=0.1)
        moved = []
        for size in (1.0, 1.0, 1.0, 100.0):
            before = model.weight.detach().clone()
            model.weight.grad = torch.full_like(before, size)
            optimizer.step()
            moved.append(float((model.weight - before).detach().norm()))
        weights.append(moved)
    plain, stable = weights
    assert stable[:3] == pytest.approx(plain[:3], rel=1e-5)
    v = 0.95 * (1 - 0.95**3) + 0.05 * 100**2
    assert stable[3] == pytest.approx(plain[3] / (100 / math.sqrt(v / (1 - 0.95**4))), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_monitor_reports_the_update_that_was_made(kind: str, tmp_path: Path) -> None:
    model = small_model()
    optimizer = built(model, kind=kind)
    expected = []
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(torch.randn(5, 6)).square().mean()
            loss.backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            moved = [(p - old).detach().norm() for p, old in zip(model.parameters(), before, strict=True)]
            expected.append(float(torch.stack(moved).norm()))
            mon.step(loss=loss.detach())
    recorded = monitor.open_run(mon.run_dir).series("update_norm")
    assert recorded.value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_reloaded_optimizer_goes_on_bit_for_bit(kind: str) -> None:
    model, other = small_model(), small_model()
    optimizer = built(model, kind=kind)
    train(model, optimizer, 4)
    other.load_state_dict(model.state_dict())
    again = built(other, kind=kind)
    load_optimizer(again, copy.deepcopy(optimizer.state_dict()))
    for one in ((model, optimizer), (other, again)):
        train(*one, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_options_of_the_configuration_stand_when_moments_are_reloaded() -> None:
    model = small_model()
    optimizer = built(model, beta2=0.999, weight_decay=0.1)
    train(model, optimizer, 2)
    again = built(model, beta2=0.95, weight_decay=0.3)
    load_optimizer(again, optimizer.state_dict())
    assert [group["betas"] for group in again.param_groups] == [(0.9, 0.95)] * 2
    assert [group["weight_decay"] for group in again.param_groups] == [0.3, 0.0]
    (name, *_) = again.state
    assert torch.equal(again.state[name]["exp_avg"], optimizer.state[name]["exp_avg"])


def test_moments_of_another_optimizer_are_refused() -> None:
    model = small_model()
    optimizer = built(model, kind="sgd")
    with pytest.raises(
        ValueError, match=r"the optimizer here is AdamW and the checkpoint's was another, without .*bet"
    ):
        load_optimizer(built(model), optimizer.state_dict())


def test_set_lr_reaches_every_group_and_state_is_counted() -> None:
    model = nn.Linear(4, 3)
    optimizer = build_optimizer(model, OptimizerConfig())
    assert state_bytes(optimizer) == 0
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert state_bytes(optimizer) == 2 * 15 * 4 + 2 * 4  # two moments of 15 floats, and a step count per tensor


SLOPED = {
    "lars": (lambda p: LARS(p, lr=1e-4, momentum=0.9, trust=1e-3), 1.0, 1e-3),
    "lamb": (lambda p: LAMB(p, lr=1e-6, betas=(0.9, 1 - 1e-12), eps=1e-8), 1.0, 2.0),
    "stable_adamw, braked": (lambda p: StableAdamW(p, lr=1e-6, betas=(0.9, 1 - 1e-12), eps=1e-8), 128**0.5, 0.25),
    "stable_adamw, free": (lambda p: StableAdamW(p, lr=1e-6, betas=(0.9, 1 - 1e-12), eps=1e-8), 0.1, 1.0),
}
"""Each with the slope that it goes down, and the factor that comes of it."""


@pytest.mark.parametrize("name", SLOPED)
@pytest.mark.parametrize(("share", "grows"), [(0.97, False), (1.03, True)])
def test_a_swing_across_the_slope_grows_above_the_limit_and_not_below(name: str, share: float, grows: bool) -> None:
    """One coordinate goes down a slope, the other swings in a parabola. v is frozen at 4 by its beta2."""
    make, slope, factor = SLOPED[name]
    weight = nn.Parameter(torch.tensor([[1.0, 1e-12]]).double())
    optimizer = make([{"params": [weight]}])
    if name != "lars":
        first, second = torch.tensor([[slope, 0.0]]).double(), torch.full((1, 2), 4.0).double()
        optimizer.state[weight] = {"step": 10**8, "exp_avg": first, "exp_avg_sq": second * 1e-4}
    assert stability(optimizer, [weight]) is None  # what the last step was multiplied by is not known
    curve = 0.0
    for step in range(1000):
        optimizer.zero_grad()
        (slope * weight[0, 0] + curve * weight[0, 1] ** 2 / 2).backward()
        optimizer.step()
        if step == 0:
            held = stability(optimizer, [weight])
            assert held is not None and held.scale is not None
            assert float(optimizer.step_factors[weight]) == pytest.approx(factor, rel=2e-3)
            curve = share * held.limit * float(held.scale[0][0, 1])
        if not 1e-14 < abs(weight[0, 1].item()) < 1e-10:
            break
    assert (abs(weight[0, 1].item()) > 1e-10) == grows
    assert weight[0, 0].item() == pytest.approx(1.0, rel=5e-3)


@pytest.mark.parametrize("kind", ["stable_adamw", "lamb"])
def test_the_last_update_of_our_own_kinds_of_adamw_is_what_the_weights_did(kind: str) -> None:
    model = small_model()
    optimizer = built(model, kind=kind, weight_decay=0.1, lr=0.01)
    assert last_update(optimizer, list(model.parameters())) is None
    train(model, optimizer, 4)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, 1)
    update = last_update(optimizer, list(model.parameters()))
    assert update is not None
    for part, start, weight in zip(update, before, model.parameters(), strict=True):
        torch.testing.assert_close(part, weight.detach() - start, rtol=1e-3, atol=1e-7)
