"""Attach the monitor to a training loop.

The loop, and what fires where. ``·`` is seen without a line of yours; ``mon.`` is a line of yours.

    mon = monitor.attach(model, optimizer, run="runs")
    for batch in loader:                                                                         part of step_time_s
        for micro_batch in batch:                        # once per micro-step                   ------------------
            · root module's forward pre-hook             the wait for data is over; the row of   data_wait
              loss = model(...)                          the step before is taken                forward
            · torch.autograd.backward                                                            backward
              loss.backward()                            gradients are counted; no norm is taken
                                                                # once per optimizer step
      (· scaler.unscale_(optimizer))                     known and meant change                  optimizer
        mon.clip_grad_norm_(1.0)                         one fused pass: per-layer norms,        monitor
      or· torch.nn.utils.clip_grad_norm_(...)            global norm, clip                       optimizer
      or· torch.nn.utils.clip_grad_value_(...)           norms before it; those after it below   optimizer
      (· scaler.step(optimizer))                         loss scale; norms if nobody clipped
        · optimizer step pre-hook                        learning rates; norms if nobody clipped
          optimizer.step()                                                                       optimizer
        · optimizer step post-hook
          scheduler.step()                                                                       other
          mon.step(loss=loss)                            ends the step: one vector leaves the    monitor
                                                         device, its row is opened
          mon.log({"accuracy": 0.5})                     goes into the open row
          with mon.phase("eval"): ...                    hooks rest                              eval

``optimizer.step(closure)`` runs the forward and backward of a step inside: the closure is handed on wrapped, and what
is told of the optimizer step pre-hook happens when it returns.

What is between two marks and has no name is ``other``. On the CPU values are read when the step ends; on CUDA they are
copied behind the kernels and read one or two steps later, and the loop never waits for them.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from monitor.alerts import Alerts
from monitor.errors import MonitorWarning, RunError
from monitor.guard import contained
from monitor.hook.background import FLUSH_S
from monitor.hook.detail import Detail, checked, default_probes
from monitor.hook.findings import Told
from monitor.hook.flops import Flops
from monitor.hook.handle import Monitor
from monitor.hook.local_gradients import why_absent
from monitor.hook.probe import Probe
from monitor.hook.ranks import agree, environment, rank_and_world, stages, together
from monitor.runfile import format as fmt
from monitor.runfile.control import KINDS
from monitor.runfile.writer import RankWriter, begin_attempt, create_run


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    run: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    task: str | None = None,
    planned_steps: int | None = None,
    tokens_per_step: float | None = None,
    scaler: Any = None,
    landscape_every: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    attempt: int | None = None,
    writer: RankWriter | None = None,
    budget: float = 0.02,
    detail: Detail = "standard",
    start_step: int = 0,
    start_tokens: float | None = None,
    layer_budget_bytes: int | None = None,
    flops: bool = False,
    peak_flops: float | None = None,
    on_sigterm: bool = True,
    split_layers: bool = False,
    on_critical: Literal["warn"] | Callable[[Told], None] | None = None,
    requests: Sequence[str] = (),
    alerts: Alerts | str | None = None,
) -> Monitor:
    """Measure the training of ``model`` by ``optimizer`` into a run.

    Args:
        model: the module whose forward begins a step; may be wrapped by DistributedDataParallel or torch.compile.
        optimizer: one, or several that step within one ``mon.step()``.
        run: a folder of runs, in which a new run is made; or a run directory, to which an attempt is added. None: the
            environment variable GRADIOMETER_RUNS, else ``./runs``.
        name, config, task: recorded with a new run.
        planned_steps: optimizer steps that the training is going to take, for the progress shown.
        tokens_per_step: tokens of each step over all ranks, unless ``mon.step(tokens=...)`` says otherwise.
        scaler: the loop's ``torch.amp.GradScaler``; ``mon.clip_grad_norm_`` unscales with it.
        landscape_every: steps between the ones at which ``mon.landscape_due`` is true.
        rank, world_size: of this process; by default what torch.distributed says.
        attempt: number of an attempt of the run directory ``run``, for example one that a launcher made.
        writer: write through this one instead of making one; ``run`` and ``attempt`` are then its own.
        budget: share of the step that the monitor may cost: above it, it measures less often, and in the end fewer
            layers. Gradient norms are of every layer in every step.
        detail: what is measured beside the gradient norms of every step. ``standard``: weights, updates, Adam's second
            moment, largest and zero gradients, directions, activations, attention and output logits, each every 10 to
            100 steps, under DDP and FSDP2 this rank's own gradient and when it is ready, fingerprints of the input,
            parameters that do not train, modules in the wrong mode, and where a NaN began; 0.5 % of a step of a 10 M
            parameter GPT, some 3 % of one of 1 M. Half-precision weights, and optimizers other than torch's SGD, Adam
            and AdamW, are copied for each step in which updates are measured.
            ``full``: the same at least every 5 steps, non-finite entries counted too. ``norms``: nothing.
        start_step: optimizer steps done before (resume): the first step recorded is the next one.
        start_tokens: tokens seen before; by default ``start_step * tokens_per_step``.
        layer_budget_bytes: bytes of per-layer statistics of this attempt and rank up to which every step is kept, 256
            MiB by default. Beyond, every 4th, 8th, 16th, ... step is, with the extremes and non-finite values of the
            others, and every step round an early sign of trouble. Not with a ``writer`` of your own.
        flops: count the operations of a step, once for each of the first input shapes: a copy of the model without
            memory runs forward and backward. Gives TFLOP/s and, where the device's peak is known, its share (MFU).
        peak_flops: operations per second that one device can do at most, where that is not known; implies ``flops``.
        on_sigterm: where the process has no handler for SIGTERM, write the last steps and their random states before
            it dies of it; five seconds at most, with the exit status that it would have had.
        split_layers: other ranks hold other layers (pipeline stages); norms of the whole gradient are then taken and
            clipped together. Give it on every rank or on none.
        on_critical: ask the rules while the training goes on, in a process of low priority beside rank 0, some
            seconds behind it. What they find is an event of the run at once, and the next steps are recorded in full.
            A critical finding is warned of (``"warn"``), or your function is called with it, in the loop's thread at
            the end of a step: ``{"id", "severity", "text", "onset_step", "config_patch", ...}``. Save a checkpoint
            there, or raise to leave the loop. On rank 0 only: to stop, all ranks have to agree. None: nobody asks.
        requests: what the loop does when the page or ``gradiometer control`` asks for it: some of ``checkpoint``,
            ``stop``, ``pause``, ``continue``, ``set_lr``, ``set_clip``. It takes them from ``mon.requests()`` and
            answers with ``mon.answer``. Recording the next steps in full needs no line of yours.
        alerts: a webhook that is told, in the background, of what the rules find while the training goes on, and of a
            crash: its address, or ``monitor.Alerts(...)`` with a level and a shape. The address is not recorded.

    Raises:
        RunError: the run cannot be made, found or written. Every rank raises it.
        TypeError: ``model`` or ``optimizer`` is something else.
        ValueError: ``detail``, ``on_critical`` or one of ``requests`` is not one of its words, or ``peak_flops`` is no
            positive number. Once attached, nothing of the monitor raises.
        ConfigError: ``alerts`` is no address.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"attach needs a torch.nn.Module, not {type(model).__name__}: attach(model, optimizer)")
    optimizers = _optimizers(optimizer)
    detail = checked(detail)
    answer = _answer(on_critical)
    if strange := [str(kind) for kind in requests if kind not in KINDS]:
        raise ValueError(f"requests names {', '.join(strange)}; accepted: {', '.join(KINDS)}")
    if peak_flops is not None and not (math.isfinite(peak_flops) and peak_flops > 0):
        raise ValueError(
            f"peak_flops is {peak_flops!r}; a positive number of operations per second is accepted: 312e12"
        )
    rank, world_size = rank_and_world(rank, world_size)
    if writer is not None:
        run_dir, attempt = writer.folder.parents[2], writer.attempt
    else:
        if world_size > 1 and rank > 0 and not together() and attempt is None:
            raise RunError(
                f"rank {rank} cannot know which attempt rank 0 writes: no process group is up. Call attach after "
                "torch.distributed.init_process_group, or give run=<run directory> and attempt=<number>."
            )

        def begin() -> tuple[Path, int]:
            return _begin(
                run, attempt, new_run={"name": name, "config": config, "task": task},
                new_attempt={
                    "resume_step": start_step, "world_size": world_size, "planned_steps": planned_steps,
                    "environment": environment(model),
                },
            )  # fmt: skip

        run_dir, attempt = agree(begin, rank)
        writer = RankWriter(run_dir, attempt, rank, layer_budget_bytes=layer_budget_bytes, seconds_per_batch=FLUSH_S)
    probes: list[Probe] = []
    with contained("what is measured beside the gradient norms"):
        probes = default_probes(detail, model, optimizers, world_size)
        if flops or peak_flops is not None:
            probes.append(Flops(model, peak_flops))
    if start_tokens is None:
        start_tokens = start_step * (tokens_per_step or 0)
    monitor = Monitor(
        model, optimizers, writer, Path(run_dir), attempt,
        rank=rank, world_size=world_size, scaler=scaler, planned_steps=planned_steps, tokens_per_step=tokens_per_step,
        start_step=start_step, start_tokens=start_tokens, landscape_every=landscape_every, budget=budget,
        probes=probes, on_sigterm=on_sigterm, split_layers=split_layers, on_critical=answer,
        requests=requests, alerts=Alerts(alerts) if isinstance(alerts, str) else alerts,
    )  # fmt: skip
    sentence = stages(model, world_size, split_layers=split_layers)
    if sentence is not None:
        monitor.event("note", text=sentence)
    absent = why_absent(model) if detail != "norms" else None
    if absent is not None:
        monitor.event("note", text=f"gradient norms from before the reduction over ranks are absent: {absent}")
    return monitor


def _answer(on_critical: Literal["warn"] | Callable[[Told], None] | None) -> Callable[[Told], None] | None:
    if on_critical is None or callable(on_critical):
        return on_critical
    if on_critical != "warn":
        raise ValueError(f'on_critical is {on_critical!r}; "warn", a function of a finding, or None are accepted')
    return _warn


def _warn(finding: Told) -> None:
    warnings.warn(f"critical finding at step {finding['onset_step']}: {finding['text']}", MonitorWarning, stacklevel=4)


def _optimizers(given: Any) -> list[torch.optim.Optimizer]:
    optimizers = [given] if isinstance(given, torch.optim.Optimizer) else given
    if not isinstance(optimizers, Sequence) or not optimizers:
        raise TypeError(f"attach needs a torch.optim.Optimizer or a list of them, not {type(given).__name__}")
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"attach needs torch.optim.Optimizers, not {type(optimizer).__name__}")
    return list(optimizers)


def _begin(
    run: str | os.PathLike[str] | None,
    attempt: int | None,
    *,
    new_run: dict[str, Any],
    new_attempt: dict[str, Any],
) -> tuple[Path, int]:
    """The run directory and the attempt to write, made when they are not there yet."""
    folder = fmt.runs_folder(run)
    if not (folder / fmt.RUN_FILE).is_file():
        if attempt is not None:
            raise RunError(
                f"{folder} is not a run directory (it has no {fmt.RUN_FILE}), so it has no attempt {attempt}."
            )
        folder = create_run(folder, **new_run)
    if attempt is None:
        return folder, begin_attempt(folder, parent=_newest_attempt(folder), **new_attempt)
    if not (fmt.attempt_dir(folder, attempt) / fmt.ATTEMPT_FILE).is_file():
        begin_attempt(folder, number=attempt, parent=_newest_attempt(folder, attempt), **new_attempt)
    return folder, attempt


def _newest_attempt(run_dir: Path, before: int | None = None) -> int | None:
    """The newest attempt that has begun; None in a new run."""
    begun = (
        int(folder.name)
        for folder in (run_dir / fmt.ATTEMPTS_DIR).iterdir()
        if folder.name.isdecimal() and (folder / fmt.ATTEMPT_FILE).is_file()
    )
    return max((number for number in begun if before is None or number < before), default=None)
