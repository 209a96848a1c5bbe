"""Norms of gradients that are spread over ranks as DTensors (FSDP2, tensor parallel, both), in one collective.

``grad.norm().full_tensor()`` is a collective operation per tensor. Here each rank takes the norms of its own pieces in
one fused pass, squares them in float64, divides by the number of ranks that hold the same piece, and a single
all_reduce over a vector with one entry per layer gives every rank every norm.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from monitor.guard import contained
from monitor.hook.norms import Norms, take_norms
from monitor.hook.ranks import is_sharded, together


def local(tensor: Tensor) -> Tensor:
    """This rank's piece, sharing memory with ``tensor``; a plain tensor is its own."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def is_partial(tensor: Tensor) -> bool:
    """Whether what each rank has are terms of a sum."""
    return is_sharded(tensor) and any(placement.is_partial() for placement in tensor.placements)


def on_one_mesh(tensors: Sequence[Tensor]) -> bool:
    """Whether torch's own clipping can take these together: all of them DTensors, on the same mesh."""
    meshes = [tensor.device_mesh if is_sharded(tensor) else None for tensor in tensors]
    return None not in meshes and all(mesh == meshes[0] for mesh in meshes)


PART = "norms of sharded gradients"


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the norms of some gradients belong."""

    inside: list[int]
    """Positions of the gradients that are in the layer table."""
    at: Tensor
    """The same on the device."""
    places: Tensor
    """Their entries in the vector of all layers."""
    shares: Tensor
    """One over the number of ranks that hold the same piece."""


class ShardedNorms:
    """Takes the norms of one model's gradients together with the other ranks.

    Every rank must make one and call ``take`` at the same moments: both are collective operations.

    Args:
        names: this rank's layers. Ranks may have different ones (pipeline stages); they agree on one vector of all.
    """

    def __init__(self, names: Sequence[str]) -> None:
        gathered: list[list[str] | None] = [list(names)]
        if together():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, list(names))
        holders = Counter(name for one in gathered for name in one or ())
        place = {name: index for index, name in enumerate(holders)}
        self.size = len(place)
        """Layers of all ranks."""
        self.place = [place[name] for name in names]
        """Of each of this rank's layers among them."""
        self.holders = [holders[name] for name in names]
        """How many ranks have each."""
        self._plans: dict[tuple[tuple[int, ...], torch.device], Plan] = {}
        self.problem: Exception | None = None
        """What went wrong on this rank in the last ``take``."""
        self.flag: Callable[[], bool] = lambda: False
        """Asked in every ``take``; ``on_flag`` is given on how many ranks it was true, on the device."""
        self.on_flag: Callable[[Tensor], None] = lambda _ranks: None

    @torch.no_grad()
    def take(self, grads: list[Tensor], rows: Sequence[int]) -> Norms:
        """Norms of the whole gradients of which ``grads`` are this rank's pieces, and the norm of all layers.

        An error on one rank makes the norms of this step unknown on every rank (``Norms.failed``); none of them takes
        another path because of it, which would leave the others waiting in a collective.

        Args:
            rows: of each gradient in the layer table; -1 for one that is not in it, which counts for nothing.
        """
        device = local(grads[0]).device
        # The last two count errors and flags.
        sums = torch.zeros(self.size + 2, dtype=torch.float64, device=device)
        self.problem = None
        try:
            plan = self._plan(grads, rows, device)
            sums.index_add_(0, plan.places, _squares([grads[at] for at in plan.inside], plan.shares))
        except Exception as error:
            self.problem = error
            sums.fill_(math.nan)
            sums[-2] = 1.0
        sums[-1] = float(self.flag())
        if together():
            dist.all_reduce(sums)
        self.on_flag(sums[-1])
        with contained(PART):
            if self.problem is not None:
                raise self.problem
        each = torch.full((len(grads),), math.nan if self.problem else 0.0, dtype=torch.float32, device=device)
        if self.problem is None:
            each.index_copy_(0, plan.at, sums[plan.places].sqrt().float())
        return Norms([], None, each, sums[:-2].sum().sqrt().float(), failed=sums[-2])

    def _plan(self, grads: list[Tensor], rows: Sequence[int], device: torch.device) -> Plan:
        """The same for the same gradients in every step: small tensors are copied to the device once."""
        key = (tuple(rows), device)
        if key not in self._plans:
            inside = [at for at, row in enumerate(rows) if row >= 0]
            self._plans[key] = Plan(
                inside,
                torch.tensor(inside, device=device),
                torch.tensor([self.place[rows[at]] for at in inside], device=device),
                torch.tensor(
                    [1 / copies(grads[at], self.holders[rows[at]]) for at in inside],
                    dtype=torch.float64,
                    device=device,
                ),
            )
        return self._plans[key]


def _squares(grads: Sequence[Tensor], shares: Tensor) -> Tensor:
    norms = take_norms([_piece(grad) for grad in grads])
    own = (norms.each if norms.exact is None else norms.exact).to(shares.device, torch.float64)
    if norms.order is not None:
        own = torch.empty_like(own).index_copy_(0, torch.tensor(norms.order, device=own.device), own)
    return own.square() * shares


@torch.no_grad()
def scale_pieces(grads: Sequence[Tensor], coef: Tensor) -> None:
    """Multiply the gradients in place by ``coef``, each rank its own pieces."""
    for grad in grads:
        piece = local(grad)
        piece.mul_(coef.to(piece.device))


def _piece(grad: Tensor) -> Tensor:
    if is_sharded(grad) and is_partial(grad):
        grad = grad.full_tensor()  # terms of a sum: no rank can square its own
    return local(grad)


def copies(tensor: Tensor, holders: int) -> int:
    """On how many of the ``holders``, the ranks that have this layer, the same piece lies."""
    if not is_sharded(tensor):
        return holders
    mesh, placements = tensor.device_mesh, tensor.placements
    if is_partial(tensor):
        return holders  # made whole first
    same = math.prod(mesh.size(dim) for dim, placement in enumerate(placements) if placement.is_replicate())
    return same * holders // mesh.size()
