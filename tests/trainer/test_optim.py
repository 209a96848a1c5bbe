"""Decay groups and the two optimizers, against arithmetic by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.config import ModelConfig, OptimizerConfig
from trainer.optim import build_optimizer, decay_groups, set_lr, state_bytes
from trainer.tasks.gpt import GPT

SMALL = ModelConfig(n_layer=1, n_head=2, d_model=16)


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    model = GPT(SMALL, seq_len=8)
    decayed, plain = decay_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in plain["params"]} == {name for name in names.values() if "norm" in name}  # type: ignore[attr-defined]
    assert all(p.dim() == 2 for p in decayed["params"])  # type: ignore[attr-defined]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_tied_head_is_in_one_group_once() -> None:
    model = GPT(SMALL.model_copy(update={"tied_head": True}), seq_len=8)
    listed = [id(p) for group in decay_groups(model, 0.1) for p in group["params"]]  # type: ignore[attr-defined]
    assert model.head.weight is model.token.weight
    assert len(listed) == len(set(listed)) == sum(1 for _ in model.parameters())


def test_frozen_parameters_are_left_out_and_no_group_is_empty() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    model[1].requires_grad_(False)
    (group,) = decay_groups(model, 0.1)
    assert group["params"] == [model[0].weight]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_without_gradient_matrices_shrink_by_the_decay_alone(kind: str) -> None:
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = build_optimizer(model, OptimizerConfig(kind=kind, lr=0.1, weight_decay=0.5))  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(model.weight, before[0] * (1 - 0.1 * 0.5), atol=1e-7)
    assert torch.equal(model.bias, before[1])


def test_adamw_first_step_is_the_sign_of_the_gradient_times_lr() -> None:
    model = nn.Linear(4, 3, bias=False)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.01, weight_decay=0.0))
    model.weight.grad = torch.randn_like(model.weight)
    optimizer.step()
    assert torch.allclose(model.weight, before - 0.01 * model.weight.grad.sign(), atol=1e-5)


def test_fused_adamw_is_the_plain_one_to_rounding() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(8, 8) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    config = OptimizerConfig(lr=0.01)
    optimizers = [
        build_optimizer(models[0], config),
        torch.optim.AdamW(decay_groups(models[1], 0.1), lr=0.01, betas=(0.9, 0.95), eps=1e-8, foreach=False),
    ]
    for _ in range(20):
        x = torch.randn(5, 8)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert torch.allclose(models[0].weight, models[1].weight, atol=1e-6)


def test_set_lr_reaches_every_group_and_state_is_counted() -> None:
    model = nn.Linear(4, 3)
    optimizer = build_optimizer(model, OptimizerConfig())
    assert state_bytes(optimizer) == 0
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert state_bytes(optimizer) == 2 * 15 * 4 + 2 * 4  # two moments of 15 floats, and a step count per tensor
