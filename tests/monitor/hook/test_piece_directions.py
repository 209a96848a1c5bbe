"""Directions of a model that two ranks share: gradients are what we say, the same in each rank's piece of a tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monitor.runfile.reader import Run, open_run
from tests.monitor.hook.torchrun import run_ranks

_RANKS = """
import sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
import monitor
from tests.monitor.hook.test_piece_directions import SIZES, STEPS, gradients

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, size in SIZES.items():
            setattr(self, name, torch.nn.Parameter(torch.full(size, 0.5)))

    def forward(self, *given):  # its gradient is what is given
        return sum((p * one).sum() for p, one in zip(self.parameters(), given))


def train(watched):
    model = fully_shard(Linear())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    locals_of = {name: p.to_local() for name, p in model.named_parameters()}
    stuck = [locals_of["stuck"], *([locals_of["halved"]] if rank == 1 else [])]
    kept = [one.detach().clone() for one in stuck]

    def restore(*_):
        with torch.no_grad():
            for one, before in zip(stuck, kept):
                one.copy_(before)

    optimizer.register_step_post_hook(restore)
    mon = monitor.attach(model, optimizer, run=sys.argv[1], budget=1.0) if watched else None
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        model(*gradients(step)).backward()
        optimizer.step()
        if mon:
            mon.step()
    if mon:
        mon.close()
    return [p.full_tensor().detach() for p in model.parameters()], str(mon.run_dir) if mon else ""


weights, run = train(True)
bare, _ = train(False)
torch.save({"run": run, "weights": weights, "bare": bare}, f"{sys.argv[1]}/rank-{rank}.pt")
dist.destroy_process_group()
"""
SIZES = {"uneven": (5, 80), "first": (1, 80), "halved": (4, 80), "stuck": (4, 80)}
"""On two ranks: three rows and two, all and nothing, two and two."""
STEPS = 130
LAST = 6


def gradients(step: int) -> list[torch.Tensor]:
    """Of every tensor at ``step``."""
    given = [torch.ones(size) for size in SIZES.values()]
    piece = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])[:, None].expand(5, 80)
    if step in (3, 4, 5):
        given[0] = {3: piece, 4: -3 * piece, 5: torch.zeros(5, 80)}[step]
    return given


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pieces")
    run_ranks(folder, _RANKS, 2, str(folder))
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


def _cosine(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    one, other = (np.concatenate([each.ravel() for each in many]) for many in (a, b))
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def _by_layer(run: Run, stat: str, rank: int, layer: str) -> dict[int, float]:
    matrix = run.layers(stat, rank=rank)
    column = matrix.names.index(layer)
    rows = zip(matrix.step.tolist(), matrix.value[:, column].tolist(), matrix.present[:, column], strict=True)
    return {step: value for step, value, there in rows if there and step <= LAST}


@pytest.mark.parametrize("rank", [0, 1])
def test_cosines_are_those_of_the_whole_tensors(ranks: list[dict[str, Any]], rank: int) -> None:
    run = open_run(Path(ranks[rank]["run"]))
    near = {"abs": 1e-6}
    assert _by_layer(run, "grad_cosine", rank, "uneven") == pytest.approx({2: 1.0, 3: 0.2, 4: -1.0}, **near)
    for layer in ("first", "halved", "stuck"):
        assert _by_layer(run, "grad_cosine", rank, layer) == pytest.approx(dict.fromkeys(range(2, 7), 1.0), **near)
    descent = dict.fromkeys(range(1, 7), 1.0)
    assert _by_layer(run, "update_cosine", rank, "first") == pytest.approx(descent, **near)
    half = dict.fromkeys(range(1, 7), 0.5**0.5)  # only one half of its pieces is moved, by what the gradient says
    assert _by_layer(run, "update_cosine", rank, "halved") == pytest.approx(half, **near)
    del descent[5]
    assert _by_layer(run, "update_cosine", rank, "uneven") == pytest.approx(descent, **near)
    assert _by_layer(run, "update_cosine", rank, "stuck") == {}

    of_all, updates = run.series("grad_cosine", rank=rank), run.series("update_cosine", rank=rank)
    assert of_all.step.tolist()[:9] == list(range(2, 11))
    assert updates.step.tolist()[:10] == list(range(1, 11))
    given = {step: [one.double().numpy() for one in gradients(step)] for step in range(1, 11)}
    for step, value in zip(of_all.step[:9].tolist(), of_all.value[:9].tolist(), strict=True):
        assert value == pytest.approx(_cosine(given[step], given[step - 1]), abs=1e-6)
    for step, value in zip(updates.step[:10].tolist(), updates.value[:10].tolist(), strict=True):
        uneven, first, half_moved, stuck = (one.copy() for one in given[step])
        half_moved[2:], stuck[:] = 0, 0
        assert value == pytest.approx(_cosine(given[step], [uneven, first, half_moved, stuck]), abs=1e-6)


def test_only_what_no_rank_has_moved_is_named(ranks: list[dict[str, Any]]) -> None:
    run = open_run(Path(ranks[0]["run"]))
    told = [event for event in run.events("warning") if event.fields.get("about") == "unmoved"]
    assert sorted(event.rank for event in told) == [0, 1]
    assert [event.fields["layers"] for event in told] == [["stuck"], ["stuck"]]
    assert len({event.step for event in told}) == 1


def test_the_weights_are_bitwise_those_without_it(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert all(torch.equal(one, other) for one, other in zip(found["weights"], found["bare"], strict=True))
