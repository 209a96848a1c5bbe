"""Norms of gradients that are spread over ranks as DTensors (FSDP2, tensor parallel, both), in one collective.

``grad.norm().full_tensor()`` is a collective operation per tensor. Here each rank takes the norms of its own pieces in
one fused pass, squares them in float64, divides by the number of ranks that hold the same piece, and a single
all_reduce over a vector with one entry per layer gives every rank every norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from monitor.hook.norms import Norms, take_norms
from monitor.hook.ranks import is_sharded, together


def local(tensor: Tensor) -> Tensor:
    """This rank's piece, sharing memory with ``tensor``; a plain tensor is its own."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def on_one_mesh(tensors: Sequence[Tensor]) -> bool:
    """Whether torch's own clipping can take these together: all of them DTensors, on the same mesh."""
    meshes = [tensor.device_mesh if is_sharded(tensor) else None for tensor in tensors]  # type: ignore[attr-defined]
    return None not in meshes and all(mesh == meshes[0] for mesh in meshes)


class ShardedNorms:
    """Takes the norms of one model's gradients together with the other ranks.

    Every rank must make one and call ``take`` at the same moments: both are collective operations.

    Args:
        names: this rank's layers. Ranks may have different ones (pipeline stages); they agree on one vector of all.
    """

    def __init__(self, names: Sequence[str]) -> None:
        known = dict.fromkeys(names)
        if together():
            gathered: list[list[str] | None] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, list(names))
            known = dict.fromkeys(name for one in gathered for name in one or ())
        place = {name: index for index, name in enumerate(known)}
        self._size = len(place)
        self._place = [place[name] for name in names]

    @torch.no_grad()
    def take(self, grads: list[Tensor], rows: Sequence[int]) -> Norms:
        """Norms of the whole gradients of which ``grads`` are this rank's pieces, and the norm of all layers.

        Args:
            rows: of each gradient in the layer table; -1 for one that is not in it, which counts for nothing.
        """
        device = local(grads[0]).device
        squares = torch.zeros(self._size, dtype=torch.float64, device=device)
        problem: Exception | None = None
        places = torch.tensor([self._place[row] for row in rows if row >= 0], device=device)
        try:
            squares.index_add_(0, places, self._squares(grads, rows, device))
        except Exception as error:  # the other ranks are on their way into the collective: this one must come, too
            problem, squares = error, torch.full_like(squares, math.nan)
        if together():
            dist.all_reduce(squares)
        if problem is not None:
            raise problem
        each = torch.zeros(len(grads), dtype=torch.float32, device=device)
        inside = torch.tensor([at for at, row in enumerate(rows) if row >= 0], device=device)
        each[inside] = squares[places].sqrt().float()
        return Norms([], None, each, squares.sum().sqrt().float())

    def _squares(self, grads: list[Tensor], rows: Sequence[int], device: torch.device) -> Tensor:
        pairs = [(grad, row) for grad, row in zip(grads, rows, strict=True) if row >= 0]
        pieces = [_piece(grad) for grad, _ in pairs]
        norms = take_norms(pieces)
        own = (norms.each if norms.exact is None else norms.exact).to(device, torch.float64)
        if norms.order is not None:
            own = torch.empty_like(own).index_copy_(0, torch.tensor(norms.order, device=device), own)
        shares = torch.tensor([1 / _copies(grad) for grad, _ in pairs], dtype=torch.float64, device=device)
        return own.square() * shares


@torch.no_grad()
def scale_pieces(grads: Sequence[Tensor], coef: Tensor) -> None:
    """Multiply the gradients in place by ``coef``, each rank its own pieces."""
    for grad in grads:
        piece = local(grad)
        piece.mul_(coef.to(piece.device))


def _piece(grad: Tensor) -> Tensor:
    if is_sharded(grad) and any(placement.is_partial() for placement in grad.placements):  # type: ignore[attr-defined]
        grad = grad.full_tensor()  # type: ignore[attr-defined]  # terms of a sum: no rank can square its own
    return local(grad)


def _copies(grad: Tensor) -> int:
    """On how many ranks the same piece lies."""
    world = dist.get_world_size() if together() else 1
    if not is_sharded(grad):
        return world
    mesh, placements = grad.device_mesh, grad.placements  # type: ignore[attr-defined]
    if any(placement.is_partial() for placement in placements):
        return world
    same = math.prod(mesh.size(dim) for dim, placement in enumerate(placements) if placement.is_replicate())
    return same * world // mesh.size()
