"""One training of each kind beside slow, independent measurements of every step; for test_matrix.py.

Run by torchrun with a folder as its argument, it does so for the kinds that take several ranks, in one start of torch,
and leaves what each rank found in FOLDER/matrix-N.pt.
"""

from __future__ import annotations

import contextlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import monitor
from tests.monitor.hook.problems import PROBLEMS, Problem, TinyGPT
from tests.monitor.hook.twin import norms_by_autograd

STEPS, CLIPPED_STEPS = 4, 3
MAX_NORM = 0.1
BETA2, EPS = 0.95, 1e-8


@dataclass(frozen=True)
class Kind:
    name: str
    precision: torch.dtype | None = None
    scaled: bool = False
    micro_steps: int = 1
    ranks: str | None = None
    """``ddp``, ``fsdp2``, or ``tensor``, where the ranks share a batch."""


ALONE = (
    Kind("fp32"), Kind("bf16", torch.bfloat16), Kind("fp16", torch.float16, scaled=True), Kind("x4", micro_steps=4),
)  # fmt: skip
SPREAD = (Kind("ddp", ranks="ddp"), Kind("fsdp2", ranks="fsdp2"), Kind("tensor", ranks="tensor"))


def measured(problem: Problem, kind: Kind, folder: Path, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Train; gives back the run's folder and, by step, what plain arithmetic on copies says that it must hold."""
    inner = problem.made()
    model = _spread(inner, kind)
    if kind.ranks == "tensor":
        rank, world = 0, 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, BETA2), eps=EPS)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if kind.scaled else None
    second = [np.zeros(tuple(p.shape)) for p in inner.parameters()]
    truth: list[dict[str, Any]] = []
    with monitor.attach(
        model, optimizer, run=folder, name=f"{problem.name}-{kind.name}", scaler=scaler, detail="full", budget=1.0
    ) as mon:
        for step in range(1, STEPS + 1):
            row: dict[str, Any] = {}
            batches = [[100 * step + 10 * r + micro for micro in range(kind.micro_steps)] for r in range(world)]
            before = _weights(inner)
            with mon.phase("eval"):
                plain = problem.made()
                for parameter, value in zip(plain.parameters(), before, strict=True):
                    parameter.data.copy_(value)
                row["by_autograd"] = norms_by_autograd(problem, plain, [batch for own in batches for batch in own])
                row["local"] = norms_by_autograd(problem, plain, batches[rank])
            optimizer.zero_grad()
            for batch in batches[rank]:
                with torch.autocast("cpu", kind.precision) if kind.precision else contextlib.nullcontext():
                    loss = problem.loss(model, *problem.batch(batch)) / kind.micro_steps
                (scaler.scale(loss) if scaler else loss).backward()
            scale = scaler.get_scale() if scaler else 1.0
            grads = [grad / scale for grad in _grads(inner)]
            row |= {"preclip": _norms(grads), "abs_max": [float(np.abs(grad).max()) for grad in grads]}
            row["zero_share"] = [float((grad == 0).mean()) for grad in grads]
            if step <= CLIPPED_STEPS:  # after them a loss scale is still in the gradients when they are measured
                mon.clip_grad_norm_(MAX_NORM)
            used = _grads(inner) if step <= CLIPPED_STEPS else grads
            row |= {"postclip": _norms(used), "rms": _rms(second, used, step)}
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            mon.step()
            after = _weights(inner)
            row |= {"weight": _norms(after), "update": _norms([b - a for a, b in zip(before, after, strict=True)])}
            truth.append(row)
    return {"run": str(mon.run_dir), "truth": truth}


def _spread(inner: nn.Module, kind: Kind) -> nn.Module:
    if kind.ranks == "ddp":
        return nn.parallel.DistributedDataParallel(inner)
    if kind.ranks == "fsdp2":
        for block in inner.blocks if isinstance(inner, TinyGPT) else ():
            fully_shard(block)
        fully_shard(inner)
    if kind.ranks == "tensor":
        mesh = init_device_mesh("cpu", (2,))
        if isinstance(inner, TinyGPT):
            for block in inner.blocks:
                parallelize_module(block.mlp, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        else:  # the last layer by its input: pieces of weights, and a bias of which every rank has a copy
            parallelize_module(inner, mesh, {str(len(inner) - 1): RowwiseParallel(input_layouts=Replicate())})
    return inner


def _array(tensor: Tensor) -> Any:
    whole = tensor.full_tensor() if isinstance(tensor, torch.distributed.tensor.DTensor) else tensor
    return whole.detach().double().numpy().copy()


def _weights(model: nn.Module) -> list[Any]:
    return [torch.from_numpy(_array(parameter)) for parameter in model.parameters()]


def _grads(model: nn.Module) -> list[Any]:
    return [_array(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]


def _norms(arrays: list[Any]) -> list[float]:
    return [math.sqrt(float((array * array).sum())) for array in arrays]


def _rms(second: list[np.ndarray], grads: list[np.ndarray], step: int) -> list[float]:
    """Adam's second moment from the definition, and how far the gradient has outgrown it."""
    found = []
    for at, grad in enumerate(grads):
        second[at] = BETA2 * second[at] + (1 - BETA2) * grad**2
        found.append(float(np.sqrt(np.mean(grad**2 / np.maximum(second[at] / (1 - BETA2**step), EPS**2)))))
    return found


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, folder = dist.get_rank(), Path(sys.argv[1])
    found = {
        f"{problem.name}-{kind.name}": measured(problem, kind, folder, rank, dist.get_world_size())
        for kind in SPREAD
        for problem in PROBLEMS
    }
    torch.save(found, folder / f"matrix-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
