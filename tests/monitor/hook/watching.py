"""A model with a monitor that has the probes given, and a slow record of what its modules returned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from monitor.hook.handle import Monitor
from monitor.hook.probe import Probe
from monitor.runfile.writer import RankWriter, begin_attempt, create_run
from tests.monitor.hook.problems import Problem


def watched(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, probes: Sequence[Probe], **options):
    run = create_run(folder)
    begin_attempt(run)
    options = {"scaler": None, **options}
    return Monitor(
        model, [optimizer], RankWriter(run, 0), run, 0,
        rank=0, world_size=1, planned_steps=None, tokens_per_step=None, probes=probes, **options,
    )  # fmt: skip


def train(
    mon: Monitor | None, model: nn.Module, optimizer: torch.optim.Optimizer, problem: Problem, steps: Sequence[int]
) -> None:
    for number in steps:
        optimizer.zero_grad()
        loss = problem.loss(model, *problem.batch(number))
        loss.backward()
        optimizer.step()
        if mon is not None:
            mon.step(loss=loss)


@contextmanager
def outputs(model: nn.Module) -> Iterator[dict[str, list[np.ndarray]]]:
    """Every float output of every named module inside the block, copied, in float64."""
    seen: dict[str, list[np.ndarray]] = defaultdict(list)

    def saw(name: str, output: object) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(output, Tensor) and output.is_floating_point():
            seen[name].append(output.detach().double().numpy().copy())

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: saw(name, output))
        for name, module in model.named_modules()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
