"""The plan of a training, against counting by hand."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.conftest import Desk
from tests.trainer.test_checkpoint import ALONE
from trainer.dryrun import dry_run, make_plan, plan_rows
from trainer.loop import build_session
from trainer.memory import saved_bytes


def test_plan_counts_parameters_memory_and_arithmetic(desk: Desk) -> None:
    plan = make_plan(desk.config("steps=100"))
    d, layers, seq = 32, 2, 32
    matrices = layers * (3 * d * d + d * d + 8 * d * d) + 256 * d
    norms, embeddings = (layers * 4 + 2) * d, 256 * d + seq * d
    tokens = 16 * seq
    assert plan.parameters == matrices + norms + embeddings
    assert plan.held.parameters == plan.held.gradients == 4 * plan.parameters
    assert plan.held.optimizer == pytest.approx(8 * plan.parameters, rel=0.01)  # AdamW's two moments
    assert plan.checkpoint_copy == plan.held.parameters + plan.held.optimizer
    attention = 12 * layers * d * seq
    assert plan.flops_per_step == (6 * (matrices + norms) + attention) * tokens
    assert plan.counted_flops_per_step == (6 * matrices + attention) * tokens
    logits = tokens * 256 * 4
    assert plan.held.activations is not None and logits < plan.held.activations < 50 * logits
    assert plan.step_time_s > 0


def test_running_mean_of_the_weights_is_a_second_set_of_them(desk: Desk) -> None:
    plan = make_plan(desk.config("steps=100", "ema.decay=0.9"))
    assert plan.held.running_mean == plan.held.parameters
    assert plan.checkpoint_copy == 2 * plan.held.parameters + plan.held.optimizer
    assert "memory: running mean of the weights" in dict(plan_rows(plan, desk.config("steps=100")))


def test_activations_are_what_autograd_keeps(desk: Desk) -> None:
    """Of a loss that keeps two tensors of known size: the input of a square, and the weight, which is none."""
    session = build_session(desk.config(), ALONE)
    weight = next(session.state.model.parameters())
    batch = session.task.train_batch(torch.arange(1))

    class Square:
        def loss(self, model: object, batch: object) -> torch.Tensor:
            return (torch.ones(1000) * weight.sum()).square().sum() + (weight * 2.0).sum()

    object.__setattr__(session, "task", Square())
    scalar_and_vectors = 4 + 4000 + 4000  # weight.sum(), the ones, and the input of the square
    assert saved_bytes(session, batch) in (scalar_and_vectors, scalar_and_vectors - 4)


def test_accumulation_and_processes_leave_the_arithmetic_and_lower_the_memory(desk: Desk) -> None:
    whole = make_plan(desk.config("steps=100"))
    parts = make_plan(desk.config("steps=100", "grad_accum_steps=2", "parallel.processes=2"))
    assert parts.counted_flops_per_step == whole.counted_flops_per_step
    assert parts.flops_per_step == whole.flops_per_step
    assert parts.tokens_per_step == whole.tokens_per_step
    assert whole.held.activations is not None and parts.held.activations is not None
    assert parts.held.activations < 0.5 * whole.held.activations
    rows = dict(plan_rows(parts, desk.config("steps=100", "parallel.processes=2")))
    assert rows["memory: parameters"].endswith("each of 2 processes")


def test_tokens_are_held_against_the_compute_optimal_number(desk: Desk) -> None:
    config = desk.config("steps=100")
    plan = make_plan(config)
    per_parameter = 100 * 512 / plan.parameters
    shown = dict(plan_rows(plan, config))["tokens per parameter"]
    assert shown.startswith(f"{per_parameter:.1f}, {per_parameter / 20:.2g} x the compute-optimal 20")


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
        "memory: activations of a micro-batch",
        "host memory while a checkpoint is written",
        "6 N D + attention",
        "counted",
        "steps/s",
        "tokens/s",
        "planned time",
    ):
        assert word in shown
    assert not desk.runs.exists()
