"""The loss of a token against its definition, and what is summed over however it is split up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.trainer.conftest import Desk
from trainer.losses import IGNORED, token_loss
from trainer.tasks import build_task


def by_definition(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float, z_loss: float) -> float:
    """One token after another, in float64."""
    total = 0.0
    rows = logits.double().reshape(-1, logits.shape[-1]).numpy()
    for row, target in zip(rows, targets.flatten().tolist(), strict=True):
        if target == IGNORED:
            continue
        log_z = np.log(np.exp(row - row.max()).sum()) + row.max()
        wanted = np.full(len(row), label_smoothing / len(row))
        wanted[target] += 1 - label_smoothing
        total += (wanted * (log_z - row)).sum() + z_loss * log_z**2
    return total


@given(
    seed=st.integers(0, 99),
    size=st.floats(0.1, 30),
    label_smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    z_loss=st.sampled_from([0.0, 1e-4, 0.5]),
    ignored=st.integers(0, 12),
)
def test_loss_is_its_definition_summed_over_tokens(
    seed: int, size: float, label_smoothing: float, z_loss: float, ignored: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = size * torch.randn(3, 4, 7, generator=generator)
    targets = torch.randint(7, (3, 4), generator=generator)
    targets.view(-1)[torch.randperm(12, generator=generator)[:ignored]] = IGNORED
    loss = token_loss(logits, targets, label_smoothing=label_smoothing, z_loss=z_loss)
    assert float(loss) == pytest.approx(by_definition(logits, targets, label_smoothing, z_loss), rel=1e-5, abs=1e-6)


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.randn(500, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.zeros(500, dtype=torch.int64)
    loss = token_loss(logits, targets, z_loss=1e-4)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(by_definition(logits, targets, 0.0, 1e-4), rel=1e-5)


def test_z_loss_draws_log_z_to_zero_where_cross_entropy_has_no_slope() -> None:
    logits = torch.full((1, 4), 50.0, requires_grad=True)
    (plain,) = torch.autograd.grad(token_loss(logits, torch.tensor([2])).sum(), logits)
    (drawn,) = torch.autograd.grad(token_loss(logits, torch.tensor([2]), z_loss=1e-4), logits)
    assert float(plain.sum()) == pytest.approx(0.0, abs=1e-6)  # moving all logits together changes nothing
    assert float(drawn.sum()) == pytest.approx(2e-4 * (50 + math.log(4)), rel=1e-3)


@pytest.mark.parametrize("kind", ["gpt", "charmlp"])
def test_what_is_added_in_training_is_not_in_validation(desk: Desk, kind: str) -> None:
    task = build_task(desk.config(f"task.kind={kind}", "loss.label_smoothing=0.2", "loss.z_loss=0.01"))
    model: nn.Module = task.build_model()
    batch = task.train_batch(torch.arange(2))
    logits = model(batch.inputs).detach()
    with torch.no_grad():
        trained, validated = (float(task.loss(model.train(training), batch)) for training in (True, False))
    assert trained == pytest.approx(float(token_loss(logits, batch.targets, label_smoothing=0.2, z_loss=0.01)))
    assert validated == pytest.approx(float(token_loss(logits, batch.targets)))
