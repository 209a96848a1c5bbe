"""What a training would take: parameters, tokens, memory by part, arithmetic and time, from three real steps."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig, describe
from trainer.loop import Session, build_session, next_micro_batches, training_step
from trainer.optim import state_bytes
from trainer.parallel import Parallel, start_parallel
from trainer.progress import Silent, duration
from trainer.unmonitored import Unmonitored

MEASURED_STEPS = 3
"""After one that is not counted: the first step pays for allocation and for the optimizer's state."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one process of the training takes; all figures measured unless said otherwise."""

    parameters: int
    tokens_per_step: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """Kept by one micro-batch's forward for its backward."""
    flops_per_step: float
    """6 N D by arithmetic, N parameters that multiply, D tokens; attention adds 12 n_layer d_model seq_len per token.

    Source: Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1; Chowdhery et al. 2022 (PaLM), appendix B.
    """
    step_time_s: float
    train_bytes: int
    """Training data in memory, in tokens."""


def dry_run(config: TrainConfig) -> int:
    """Print the plan of ``config``; gives back the exit code."""
    plan = make_plan(config)
    print(describe(config))
    for name, value in plan_rows(plan, config):
        print(f"  {name:<42}{value}")
    return 0


def make_plan(config: TrainConfig) -> Plan:
    """Build everything, run a few steps without writing anything, and measure."""
    config = config.model_copy(update={"fault": []})
    parallel = start_parallel(config.parallel, config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    session = build_session(config, parallel)
    model = session.state.model
    activation_bytes = _saved_bytes(session)
    step_time_s = _step_time(session, parallel)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameter_bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return Plan(
        parameters=sum(parameter.numel() for parameter in parameters),
        tokens_per_step=config.tokens_per_step,
        parameter_bytes=parameter_bytes,
        gradient_bytes=parameter_bytes,
        optimizer_bytes=state_bytes(session.state.optimizer),
        activation_bytes=activation_bytes,
        flops_per_step=_flops_per_token(config, model) * config.tokens_per_step,
        step_time_s=step_time_s,
        train_bytes=session.task.train_size * config.task.seq_len,
    )


def plan_rows(plan: Plan, config: TrainConfig) -> list[tuple[str, str]]:
    """The plan as (name, value with unit) rows."""
    tokens = plan.tokens_per_step * config.steps
    passes, speed = tokens / plan.train_bytes, plan.tokens_per_step / plan.step_time_s
    total = plan.parameter_bytes + plan.gradient_bytes + plan.optimizer_bytes + plan.activation_bytes
    return [
        ("parameters", f"{plan.parameters:,}"),
        ("tokens per step", f"{plan.tokens_per_step:,}"),
        ("tokens in all", f"{tokens:,} ({passes:.1f} x the data), {tokens / plan.parameters:.1f} per parameter"),
        ("memory: parameters", _mib(plan.parameter_bytes)),
        ("memory: gradients", _mib(plan.gradient_bytes)),
        ("memory: optimizer state", _mib(plan.optimizer_bytes)),
        ("memory: activations of a micro-batch", _mib(plan.activation_bytes)),
        ("memory: sum, without torch itself", _mib(total)),
        ("arithmetic per step (6 N D + attention)", f"{plan.flops_per_step / 1e9:.1f} GFLOP"),
        (f"time per step, median of {MEASURED_STEPS}", f"{plan.step_time_s * 1e3:.0f} ms, {speed:,.0f} tokens/s"),
        ("planned time, without evaluation", duration(plan.step_time_s * config.steps)),
    ]  # fmt: skip


def _step_time(session: Session, parallel: Parallel) -> float:
    monitor, display = Unmonitored(session.state.model), Silent()
    training_step(session, monitor, display)
    times = []
    for _ in range(MEASURED_STEPS):
        start = time.perf_counter()
        training_step(session, monitor, display)
        if parallel.device.type == "cuda":
            torch.cuda.synchronize()  # the step is only queued until then
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def _saved_bytes(session: Session) -> int:
    """Bytes that autograd keeps from one micro-batch's forward for its backward: each storage once, no parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in session.state.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = next_micro_batches(session)[0].to(session.parallel.device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), session.precision.autocast():
        loss = session.task.loss(session.state.model, batch)
    del loss
    return sum(kept.values())


def _flops_per_token(config: TrainConfig, model: nn.Module) -> float:
    looked_up = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Embedding) and not _is_head(model, module)
    )
    used = sum(parameter.numel() for parameter in model.parameters()) - looked_up
    attention = (
        12 * config.model.n_layer * config.model.d_model * config.task.seq_len if config.task.kind == "gpt" else 0
    )
    return 6 * used + attention


def _is_head(model: nn.Module, embedding: nn.Embedding) -> bool:
    """Whether the output layer multiplies by the embedding's own weights."""
    return any(isinstance(module, nn.Linear) and module.weight is embedding.weight for module in model.modules())


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
