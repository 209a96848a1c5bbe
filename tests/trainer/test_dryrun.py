"""The plan of a training, against counting by hand."""

from __future__ import annotations

import pytest

from tests.trainer.conftest import Desk
from trainer.dryrun import dry_run, make_plan


def test_plan_counts_parameters_memory_and_arithmetic(desk: Desk) -> None:
    plan = make_plan(desk.config("steps=100"))
    d, layers, seq = 32, 2, 32
    blocks = layers * (3 * d * d + d * d + 8 * d * d + 4 * d)
    head, norm, embeddings = 256 * d, 2 * d, 256 * d + seq * d
    assert plan.parameters == blocks + head + norm + embeddings
    assert plan.parameter_bytes == plan.gradient_bytes == 4 * plan.parameters
    assert plan.optimizer_bytes == pytest.approx(8 * plan.parameters, rel=0.01)  # AdamW's two moments
    per_token = 6 * (plan.parameters - embeddings) + 12 * layers * d * seq
    assert plan.flops_per_step == per_token * 16 * 32
    logits = 16 * 32 * 256 * 4
    assert logits < plan.activation_bytes < 50 * logits
    assert plan.step_time_s > 0


def test_tied_embedding_multiplies_in_the_head(desk: Desk) -> None:
    tied = make_plan(desk.config("model.tied_head=true"))
    free = make_plan(desk.config())
    assert tied.flops_per_step == free.flops_per_step
    assert tied.parameters == free.parameters - 256 * 32


def test_dry_run_prints_and_writes_nothing(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(desk.config("steps=100")) == 0
    shown = capsys.readouterr().out
    for word in (
        "parameters",
        "tokens per step",
        "512",
        "memory: optimizer state",
        "GFLOP",
        "tokens/s",
        "planned time",
    ):
        assert word in shown
    assert not desk.runs.exists()
