"""What a training would take: parameters, tokens, memory by part, arithmetic and time, from a few real steps.

Everything runs as in the training, on one process, and nothing is written: no run directory is made or touched.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import CurriculumConfig, TrainConfig, describe
from trainer.loop import Session, build_session, next_micro_batches, training_step
from trainer.memory import Held, measured, mib, saved_bytes
from trainer.parallel import Parallel, start_parallel
from trainer.progress import Silent, duration
from trainer.unmonitored import Unmonitored

MEASURED_STEPS = 5
"""After one that is not counted: the first step pays for allocation and for the optimizer's state."""
OPTIMAL_TOKENS_PER_PARAMETER = 20
"""Where a given amount of arithmetic lowers the loss most. Source: Hoffmann et al. 2022 (Chinchilla),
https://arxiv.org/abs/2203.15556, table 3: some 20 from 0.4 to 67 billion parameters."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the training takes; memory and time of one process, the rest of all together."""

    parameters: int
    tokens_per_step: int
    held: Held
    """Measured; gradients are as large as the parameters that train."""
    checkpoint_copy: int
    """Bytes of host memory while a checkpoint is written in the background; 0 when none is."""
    flops_per_step: float
    """6 N D by arithmetic, N parameters that multiply, D tokens; attention adds 12 n_layer d_model seq_len per token.

    Source: Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1; Chowdhery et al. 2022 (PaLM), appendix B.
    """
    counted_flops_per_step: int
    """Of matrix products, convolutions and attention, forward and backward, counted by torch on one micro-batch."""
    step_time_s: float
    """Median of ``MEASURED_STEPS`` real steps, without evaluation, checkpoints and communication."""
    train_tokens: int
    """Training data, in tokens."""


def dry_run(config: TrainConfig, as_json: bool = False) -> int:
    """Print the plan of ``config``, for people or as one JSON object; gives back the exit code."""
    plan = make_plan(config)
    if as_json:
        print(json.dumps({"describes": describe(config), "rows": plan_rows(plan, config)}))
        return 0
    print(describe(config))
    for name, value in plan_rows(plan, config):
        print(f"  {name:<42}{value}")
    return 0


def make_plan(config: TrainConfig) -> Plan:
    """Build everything, run a few steps without writing anything, and measure."""
    alone = config.parallel.model_copy(update={"processes": 1, "mode": "ddp", "tensor_processes": 1})
    changes = {"fault": [], "parallel": alone, "batch_size": config.batch_size // config.parallel.data_processes}
    own = config.model_copy(update={**changes, "curriculum": CurriculumConfig()})  # full-length steps
    parallel = start_parallel(own.parallel, own.device)
    if own.threads is not None:
        torch.set_num_threads(own.threads)
    session = build_session(own, parallel)
    model = session.state.model
    activations = saved_bytes(session, next_micro_batches(session)[0])
    counted = _counted_flops(session) * config.grad_accum_steps * config.parallel.data_processes
    step_time_s = _step_time(session, parallel)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    state = measured(session, activations)
    held = replace(state, gradients=sum(parameter.nbytes for parameter in parameters))
    tokens_per_step = config.batch_size * session.task.tokens_per_example
    return Plan(
        parameters=sum(parameter.numel() for parameter in parameters),
        tokens_per_step=tokens_per_step,
        held=held,
        checkpoint_copy=(held.parameters + held.optimizer + held.running_mean) * config.checkpoint.background,
        flops_per_step=_flops_per_token(config, model) * tokens_per_step,
        counted_flops_per_step=counted,
        step_time_s=step_time_s,
        train_tokens=session.task.train_size * session.task.tokens_per_example,
    )


def plan_rows(plan: Plan, config: TrainConfig) -> list[tuple[str, str]]:
    """The plan as (name, value with unit) rows."""
    tokens = plan.tokens_per_step * config.steps
    passes, speed = tokens / plan.train_tokens, plan.tokens_per_step / plan.step_time_s
    each = f", each of {config.parallel.processes} processes" if config.parallel.processes > 1 else ""
    if config.parallel.mode != "ddp":
        each = f", one process with the whole model; {config.parallel.mode} splits it over {config.parallel.processes}"
    held = plan.held.told()
    return [
        ("parameters", f"{plan.parameters:,}"),
        ("tokens per step", f"{plan.tokens_per_step:,}"),
        ("tokens in all", f"{tokens:,} ({passes:.1f} x the data)"),
        ("tokens per parameter", _against_optimal(tokens / plan.parameters)),
        *[(f"memory: {name}", f"{mib(size)}{each}") for name, size in held],
        ("memory: sum, without torch itself", f"{mib(sum(size for _, size in held))}{each}"),
        ("host memory while a checkpoint is written", mib(plan.checkpoint_copy)),
        ("arithmetic per step: 6 N D + attention", f"{plan.flops_per_step / 1e9:,.1f} GFLOP"),
        ("arithmetic per step: counted", f"{plan.counted_flops_per_step / 1e9:,.1f} GFLOP"),
        (
            f"time per step, median of {MEASURED_STEPS}",
            f"{plan.step_time_s * 1e3:,.0f} ms: {1 / plan.step_time_s:,.2f} steps/s, {speed:,.0f} tokens/s, "
            f"{plan.counted_flops_per_step / plan.step_time_s / 1e9:,.0f} GFLOP/s",
        ),
        ("planned time, without evaluation", duration(plan.step_time_s * config.steps)),
    ]


def _against_optimal(tokens_per_parameter: float) -> str:
    share = tokens_per_parameter / OPTIMAL_TOKENS_PER_PARAMETER
    return (
        f"{tokens_per_parameter:,.1f}, {share:,.2g} x the compute-optimal {OPTIMAL_TOKENS_PER_PARAMETER} "
        "(Hoffmann et al. 2022)"
    )


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


def _counted_flops(session: Session) -> int:
    """Forward and backward of one micro-batch; attention written out, since torch does not count its CPU kernel."""
    batch = next_micro_batches(session)[0].to(session.parallel.device)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        with session.precision.autocast():
            loss = session.task.loss(session.state.model, batch)
        loss.backward()
    session.state.optimizer.zero_grad(set_to_none=True)
    return counter.get_total_flops()


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
