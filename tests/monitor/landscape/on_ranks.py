"""What two ranks run for test_ranks.py: a surface shared out under DistributedDataParallel, and weights in pieces.

Usage: torchrun on_ranks.py FOLDER. Each rank leaves what it found in FOLDER/rank-N.pt.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from monitor.landscape.directions import random_direction
from monitor.landscape.sample import sample_landscape, slices_ahead
from monitor.landscape.surface import Surface, axis, fill
from monitor.landscape.undisturbed import undisturbed
from tests.monitor.hook.problems import CNN

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank, calls = dist.get_rank(), 0
    inner = CNN.made()
    model = nn.parallel.DistributedDataParallel(inner)

    def loss() -> torch.Tensor:
        global calls
        calls += 1
        if rank == 1 and calls == 3 and not complete:
            raise KeyboardInterrupt if surface.known.sum() < 25 else ZeroDivisionError
        return CNN.loss(inner, *CNN.batch(0))

    start = [tensor.clone() for tensor in (*model.parameters(), *model.buffers())]
    surface, complete = Surface.blank(axis(0.5, 5), axis(0.5, 5)), False
    partly = None
    with undisturbed(model) as borrowed:
        directions = [random_direction(borrowed.saved, 0, number) for number in (0, 1)]
        try:
            fill(surface, borrowed, loss, directions, split=True)
        except KeyboardInterrupt:
            partly = surface.known.copy()
        taken = surface.known.copy()
        complete = True
        assert fill(surface, borrowed, loss, directions, split=True)
        alone = Surface.blank(*surface.axes)
        mine = calls
        fill(alone, borrowed, loss, directions)
    given_back = [*model.parameters(), *model.buffers()]
    same = all(torch.equal(a, b) for a, b in zip(start, given_back, strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    CNN.loss(model, *CNN.batch(1)).backward()
    optimizer.step()
    optimizer.zero_grad()
    before = [tensor.clone() for tensor in (*model.parameters(), *model.buffers())]
    sampled, counts = [], []
    for split in (True, False):
        calls = 0
        sample = sample_landscape(model, loss, points=5, seed=3, split=split)
        slices = [sample.perturbation, sample.line, *slices_ahead(model, loss, optimizer, points=5, split=split)]
        sampled.append([(one.direction, one.radius, one.coords.tolist(), one.loss.tolist()) for one in slices])
        counts.append(calls)
    calls, complete = 0, rank == 0
    try:
        slices_ahead(model, loss, optimizer, points=5, split=True)
        failed = ""
    except ZeroDivisionError:
        failed = "rank 1 alone, and nobody waits for it"
    complete = True
    after = [*model.parameters(), *model.buffers()]
    pieces = nn.Linear(8, 8)
    fully_shard(pieces)
    try:
        with undisturbed(pieces):
            said = ""
    except ValueError as error:
        said = str(error)
    found = {
        "loss": surface.loss.tolist(),
        "alone": alone.loss.tolist(),
        "taken": taken.tolist(),
        "partly": partly is not None,
        "calls": mine,
        "sampled": sampled,
        "counts": counts,
        "failed": failed,
        "said": said,
        "same": same and all(torch.equal(a, b) for a, b in zip(before, after, strict=True)),
    }
    torch.save(found, f"{sys.argv[1]}/rank-{rank}.pt")
    dist.destroy_process_group()
