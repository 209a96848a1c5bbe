"""FSDP2, tensor parallel and both together on real ranks: norms are those of one process, nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from monitor.runfile.reader import open_run
from tests.monitor.hook.problems import PROBLEMS
from tests.monitor.hook.torchrun import run_ranks
from tests.monitor.hook.twin import total

_RANKS = """
import sys, warnings, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
import monitor
from monitor import guard
from monitor.hook import sharded
from monitor.hook.norms import take_norms
from tests.monitor.hook.problems import PROBLEMS

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
runs = sys.argv[1]
problem = next(problem for problem in PROBLEMS if problem.name == "gpt")


def spread(model, kind):
    if kind in ("fsdp", "broken"):
        for block in model.blocks:
            fully_shard(block)
        return fully_shard(model)
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "tensor"))
    for block in model.blocks:
        parallelize_module(block.mlp, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    if kind == "both":
        for block in model.blocks:
            fully_shard(block, mesh=mesh["data"])
        fully_shard(model, mesh=mesh["data"])
    return model


def _breaks(grads):
    raise MemoryError("no room for the norms")


def train(kind, watched):
    model = spread(problem.made(), kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mon = monitor.attach(model, optimizer, run=runs, name=kind) if watched else None
    for step in range(1, 4):
        broken = watched and kind == "broken" and step == 2 and rank == 1
        sharded.take_norms = _breaks if broken else take_norms
        optimizer.zero_grad()
        data = rank // 2 if kind == "both" else 0 if kind == "tensor" else rank
        problem.loss(model, *problem.batch(10 * step + data)).backward()
        if kind == "fsdp":  # the broken one does not clip: norms are taken in backward and before the optimizer
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        elif mon and kind != "broken":
            mon.clip_grad_norm_(0.3)
        optimizer.step()
        if mon:
            mon.step()
    if mon:
        mon.close()
    return [p.detach().full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()], mon


found = {}
for kind in ("fsdp", "tensor", "both"):
    weights, mon = train(kind, True)
    found[kind] = {"run": str(mon.run_dir), "weights": weights}
found["fsdp"]["bare"], _ = train("fsdp", False)  # of the others torch cannot clip the gradients
guard.STRICT = False
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    weights, mon = train("broken", True)
found["broken"] = {"run": str(mon.run_dir), "weights": weights, "said": [str(one.message) for one in caught]}
found["broken"]["bare"], _ = train("broken", False)
torch.save(found, f"{runs}/rank-{rank}.pt")
dist.destroy_process_group()
"""


def _one_process(groups: int) -> tuple[list[list[float]], list[torch.Tensor]]:
    """Norms per layer and step, and the weights: the same training on all batches in one process, in float64."""
    problem = next(problem for problem in PROBLEMS if problem.name == "gpt")
    model = problem.made().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = []
    for step in range(1, 4):
        optimizer.zero_grad()
        for data in range(groups):
            x, y = problem.batch(10 * step + data)
            (torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()) / groups).backward()
        norms.append([float(parameter.grad.norm()) for parameter in model.parameters() if parameter.grad is not None])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
    return norms, [parameter.detach() for parameter in model.parameters()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of four ranks found, by kind of sharding."""
    folder = tmp_path_factory.mktemp("sharded")
    runs = folder / "runs"
    runs.mkdir()
    run_ranks(folder, _RANKS, 4, str(runs))
    return [torch.load(runs / f"rank-{rank}.pt", weights_only=True) for rank in range(4)]


@pytest.mark.parametrize(("kind", "groups"), [("fsdp", 4), ("tensor", 1), ("both", 2)])
def test_norms_of_sharded_gradients_are_those_of_one_process(
    trained: list[dict[str, Any]], kind: str, groups: int
) -> None:
    norms, weights = _one_process(groups)
    for rank, of_rank in enumerate(trained):
        found = of_rank[kind]
        run = open_run(found["run"])
        matrix = run.layers("grad_norm_preclip", rank=rank)
        assert matrix.step.tolist() == [1, 2, 3]
        np.testing.assert_allclose(matrix.value, norms, rtol=2e-4, atol=1e-6)
        whole = [total(one) for one in norms]
        np.testing.assert_allclose(run.series("grad_norm_preclip", rank=rank).value, whole, rtol=1e-5)
        np.testing.assert_allclose(run.series("grad_norm_postclip", rank=rank).value, 0.3, rtol=1e-4)
        for ours, theirs in zip(found["weights"], weights, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert any("reduced over the ranks" in event.fields["text"] for event in run.events("note"))


@pytest.mark.parametrize("kind", ["fsdp", "broken"])
def test_sharded_weights_are_bitwise_those_without_it(trained: list[dict[str, Any]], kind: str) -> None:
    for of_rank in trained:
        for ours, bare in zip(of_rank[kind]["weights"], of_rank[kind]["bare"], strict=True):
            assert torch.equal(ours, bare)


def test_an_error_on_one_rank_leaves_that_step_out_on_every_rank(trained: list[dict[str, Any]]) -> None:
    for rank, of_rank in enumerate(trained):
        run = open_run(of_rank["broken"]["run"])
        assert run.layers("grad_norm_preclip", rank=rank).step.tolist() == [1, 3]
        assert run.series("grad_norm_preclip", rank=rank).step.tolist() == [1, 3]
        told = [text for text in of_rank["broken"]["said"] if "no room for the norms" in text]
        assert len(told) == (rank == 1)
