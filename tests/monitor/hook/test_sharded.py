"""FSDP2, tensor parallel and both together on real ranks: numbers are those of one process, nothing else changes."""

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
from monitor.hook import updates
from tests.monitor.hook.problems import MLP, PROBLEMS

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
runs = sys.argv[1]
problem = next(problem for problem in PROBLEMS if problem.name == "gpt")


def spread(model, kind):
    if kind in ("fsdp", "broken", "probe"):
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


sgd_update = updates.sgd_update


def _breaks(*_):
    raise MemoryError("no room for the norms")


def small(kind, steps, **options):
    # The last bias has nothing on the last of four ranks.
    model = fully_shard(MLP.made())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    mon = monitor.attach(model, optimizer, run=runs, name=kind, budget=1.0, **options)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        MLP.loss(model, *MLP.batch(10 * step + rank)).backward()
        optimizer.step()
        mon.step()
        if kind == "armed" and step == 22 and rank == 1:
            mon._probes.arm(4)
    mon.close()
    return {"run": str(mon.run_dir), "weights": [p.detach().full_tensor() for p in model.parameters()]}


def train(kind, watched):
    model = spread(problem.made(), kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mon = monitor.attach(model, optimizer, run=runs, name=kind) if watched else None
    for step in range(1, 4):
        broken = watched and kind == "broken" and step == 2 and rank == 1
        sharded.take_norms = _breaks if broken else take_norms
        updates.sgd_update = _breaks if watched and kind == "probe" and step == 2 and rank == 1 else sgd_update
        optimizer.zero_grad()
        data = rank // 2 if kind == "both" else 0 if kind == "tensor" else rank
        problem.loss(model, *problem.batch(10 * step + data)).backward()
        if kind == "fsdp":  # the broken one does not clip: norms are taken in backward and before the optimizer
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        elif mon and kind not in ("broken", "probe"):
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
bare, _ = train("broken", False)
guard.STRICT = False
for kind in ("broken", "probe"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        weights, mon = train(kind, True)
    said = [str(one.message) for one in caught]
    found[kind] = {"run": str(mon.run_dir), "weights": weights, "said": said, "bare": bare}
guard.STRICT = True
found["armed"] = small("armed", 40)
found["differing"] = small("differing", 3, detail="full" if rank else "standard")
torch.save(found, f"{runs}/rank-{rank}.pt")
dist.destroy_process_group()
"""


def _one_process(groups: int) -> tuple[dict[str, list[list[float]]], list[torch.Tensor]]:
    """Statistics per step and layer, and the weights: the same training on all batches in one process, in float64."""
    problem = next(problem for problem in PROBLEMS if problem.name == "gpt")
    model = problem.made().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found: dict[str, list[list[float]]] = {}
    for step in range(1, 4):
        optimizer.zero_grad()
        for data in range(groups):
            x, y = problem.batch(10 * step + data)
            (torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()) / groups).backward()
        grads = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        before = [parameter.detach().clone() for parameter in model.parameters()]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        after = [parameter.detach() for parameter in model.parameters()]
        row = {
            "grad_norm_preclip": [float(grad.norm()) for grad in grads],
            "grad_abs_max": [float(grad.abs().max()) for grad in grads],
            "weight_norm": [float(weight.norm()) for weight in after],
            "update_norm": [float((now - then).norm()) for now, then in zip(after, before, strict=True)],
        }
        for stat, values in row.items():
            found.setdefault(stat, []).append(values)
    return found, [parameter.detach() for parameter in model.parameters()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of four ranks found, by kind of sharding."""
    folder = tmp_path_factory.mktemp("sharded")
    runs = folder / "runs"
    runs.mkdir()
    run_ranks(folder, _RANKS, 4, str(runs))
    return [torch.load(runs / f"rank-{rank}.pt", weights_only=True) for rank in range(4)]


@pytest.mark.parametrize(("kind", "groups"), [("fsdp", 4), ("tensor", 1), ("both", 2)])
def test_numbers_of_a_sharded_model_are_those_of_one_process(
    trained: list[dict[str, Any]], kind: str, groups: int
) -> None:
    expected, weights = _one_process(groups)
    for rank, of_rank in enumerate(trained):
        found = of_rank[kind]
        run = open_run(found["run"])
        for stat, values in expected.items():
            matrix = run.layers(stat, rank=rank)
            assert matrix.step.tolist() == [1, 2, 3]
            assert matrix.present.all()
            np.testing.assert_allclose(matrix.value, values, rtol=2e-4, atol=1e-6)
            if stat != "grad_abs_max":
                whole = [total(one) for one in values]
                np.testing.assert_allclose(run.series(stat, rank=rank).value, whole, rtol=1e-5)
        np.testing.assert_allclose(run.series("grad_norm_postclip", rank=rank).value, 0.3, rtol=1e-4)
        for ours, theirs in zip(found["weights"], weights, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert any("reduced over the ranks" in event.fields["text"] for event in run.events("note"))


@pytest.mark.parametrize("kind", ["fsdp", "broken", "probe"])
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


def test_a_probe_that_fails_on_one_rank_has_no_values_on_any_and_nobody_waits(trained: list[dict[str, Any]]) -> None:
    for rank, of_rank in enumerate(trained):
        run = open_run(of_rank["probe"]["run"])
        assert run.layers("update_norm", rank=rank).step.tolist() == [1]
        assert run.layers("grad_abs_max", rank=rank).step.tolist() == [1, 2, 3]
        told = [text for text in of_rank["probe"]["said"] if "no room for the norms" in text]
        assert len(told) == (rank == 1)


def test_an_early_sign_on_one_rank_makes_every_rank_measure(trained: list[dict[str, Any]]) -> None:
    armed = range(23, 27)  # what rank 1 alone would measure
    for rank, of_rank in enumerate(trained):
        run = open_run(of_rank["armed"]["run"])
        cruise = {*range(1, 11), 20, 40}
        dense = {*run.layers("weight_norm", rank=rank).step.tolist()} - cruise
        assert dense == {step + 5 for step in armed}
        weights = run.layers("weight_norm", rank=rank).value[-1]
        truth = [float(weight.norm()) for weight in of_rank["armed"]["weights"]]
        np.testing.assert_allclose(weights, truth, rtol=1e-6)  # the last rank has nothing of the last layer's bias
        assert run.layers("adam_rms", rank=rank).present[0].all()


def test_ranks_with_different_options_add_nothing_up(trained: list[dict[str, Any]]) -> None:
    for rank, of_rank in enumerate(trained):
        run = open_run(of_rank["differing"]["run"])
        assert "weight_norm" not in run.layer_stats
        assert run.layers("grad_norm_preclip", rank=rank).step.tolist() == [1, 2, 3]
    assert any("different options" in event.fields["text"] for event in run.events("warning"))
