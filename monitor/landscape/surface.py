"""The loss on a regular grid along one or two directions: coarse to fine, so that a part of it is a whole picture.

    with undisturbed(model) as borrowed:
        directions = [random_direction(borrowed.saved, seed=0, number=n) for n in (0, 1)]
        surface = Surface.blank(axis(1.0, 51), axis(1.0, 51))
        fill(surface, borrowed, loss_fn, directions, budget_s=60)

Whatever ends :func:`fill`, a full grid, the budget, Ctrl-C or an error of the loss function, what was evaluated is in
the surface, and a later call goes on with the rest: the same bits as in one go.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from monitor.landscape.directions import Direction, Mover
from monitor.landscape.undisturbed import Borrowed

LossFn = Callable[[], Tensor | float]
"""The loss of one fixed batch under the model's present weights."""
Progress = Callable[[int, int], None]
"""Called with how many points are known, and of how many."""

READ_EVERY = 16
READ_EVERY_S = 0.2
"""Losses are read from the device after so many points, or so long: each reading waits for it."""

Point = tuple[int, ...]
"""Indices into the axes."""


def axis(radius: float, points: int) -> np.ndarray:
    """float64[points] from -radius to radius, exactly 0 in the middle.

    Raises:
        ValueError: not an odd number of points, or no radius.
    """
    if points < 3 or points % 2 == 0 or not 0 < radius < math.inf:
        raise ValueError(f"radius={radius}, points={points}; accepted are a radius above 0 and an odd number from 3 on")
    half = np.arange(1, points // 2 + 1) * (radius / (points // 2))
    return np.concatenate([-half[::-1], [0.0], half])


@dataclass(slots=True)
class Surface:
    """Losses at the points of a grid, as far as they are known."""

    axes: tuple[np.ndarray, ...]
    """One or two, float64[N] and float64[M]."""
    loss: np.ndarray
    """float64[N] or [N, M]; NaN where it is not known, and where it was NaN."""
    known: np.ndarray
    """bool, of the same shape."""

    @classmethod
    def blank(cls, *axes: np.ndarray) -> Surface:
        shape = tuple(len(one) for one in axes)
        return cls(axes, np.full(shape, np.nan), np.zeros(shape, bool))

    @property
    def complete(self) -> bool:
        return bool(self.known.all())

    def points(self) -> tuple[np.ndarray, ...]:
        """What is known as float64[n] for each coordinate, then float64[n] of the losses: as a run keeps it."""
        places = np.nonzero(self.known)
        return *(own[place] for own, place in zip(self.axes, places, strict=True)), self.loss[self.known]

    def take(self, *columns: np.ndarray) -> None:
        """Take over losses as :meth:`points` gives them; what is not exactly on this grid is left out."""
        *coordinates, losses = columns
        index = [{value: place for place, value in enumerate(own.tolist())} for own in self.axes]
        for *point, loss in zip(*(part.tolist() for part in coordinates), losses.tolist(), strict=True):
            place = tuple(own.get(value, -1) for own, value in zip(index, point, strict=True))
            if min(place) >= 0:
                self.loss[place], self.known[place] = loss, True


def levels(*sizes: int) -> list[tuple[int, ...]]:
    """Strides of grids of these sizes, coarse to fine: each level is a regular sub-grid with the edges and the middle.

    51 x 51 has (25, 25), (5, 5), (1, 1): 3 x 3, 11 x 11 and 51 x 51 points.
    """
    chains = [_strides(size) for size in sizes]
    longest = max(map(len, chains))
    return list(zip(*(chain + [1] * (longest - len(chain)) for chain in chains), strict=True))


def _strides(size: int) -> list[int]:
    """From half the grid down to 1, each a divisor of the one before by its largest prime factor."""
    stride = (size - 1) // 2 if size % 2 else size - 1
    chain = [max(1, stride)]
    while chain[-1] > 1:
        chain.append(chain[-1] // _largest_prime(chain[-1]))
    return chain


def _largest_prime(number: int) -> int:
    factor, largest = 2, 1
    while factor * factor <= number:
        while number % factor == 0:
            number, largest = number // factor, factor
        factor += 1
    return max(largest, number)


def coarse_to_fine(known: np.ndarray) -> Iterator[list[Point]]:
    """For each level the points that are neither known nor of a coarser one, line by line."""
    done = known.copy()
    for strides in levels(*known.shape):
        wanted = np.zeros_like(done)
        wanted[tuple(slice(None, None, stride) for stride in strides)] = True
        places = np.argwhere(wanted & ~done)
        done |= wanted
        yield [tuple(place) for place in places.tolist()]


def fill(
    surface: Surface,
    borrowed: Borrowed,
    loss_fn: LossFn,
    directions: Sequence[Direction],
    *,
    budget_s: float = math.inf,
    progress: Progress | None = None,
    split: bool = False,
    group: dist.ProcessGroup | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Evaluate what is not known yet, at ``borrowed.saved + sum of coordinate * direction``; whether all is known then.

    Args:
        loss_fn: runs in eval mode, without gradients, and from the same random state each time.
        directions: one per axis, from ``monitor.landscape.directions``.
        budget_s: seconds after which no further point is begun.
        split: share the points out over the ranks of ``group``, which all call this with the same surface, weights,
            directions and batch, and all get the whole. ``loss_fn`` must not communicate then: call the module inside
            DistributedDataParallel.

    Raises:
        ValueError: the loss is not one number. What ``loss_fn`` raises comes through, after the sharing.
    """
    to = Mover(borrowed.weights, borrowed.saved, *directions).to
    return visit(
        surface, borrowed, loss_fn, to, budget_s=budget_s, progress=progress, split=split, group=group, clock=clock
    )


def visit(
    surface: Surface,
    borrowed: Borrowed,
    loss_fn: LossFn,
    to: Callable[..., None],
    *,
    budget_s: float = math.inf,
    progress: Progress | None = None,
    split: bool = False,
    group: dist.ProcessGroup | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """As :func:`fill`, with weights that ``to`` puts where they belong for given coordinates, whatever went before."""
    rank, world = (dist.get_rank(group), dist.get_world_size(group)) if split else (0, 1)
    own = np.zeros_like(surface.known)
    reading = _Reading(surface, own, clock, progress)
    ends = clock() + budget_s
    wanted = [point for points in coarse_to_fine(surface.known) for point in points[rank::world]]
    try:
        for point in wanted:
            if clock() >= ends:
                break
            to(*(float(own_axis[place]) for own_axis, place in zip(surface.axes, point, strict=True)))
            borrowed.same_randomness()
            reading.add(point, loss_fn())
    finally:
        reading.finish()
        if split:
            _share(surface, own, borrowed.weights[0].device, group)
    return surface.complete


class _Reading:
    """Losses on their way from the device to the surface."""

    def __init__(
        self, surface: Surface, own: np.ndarray, clock: Callable[[], float], progress: Progress | None
    ) -> None:
        self._surface, self._own, self._clock, self._progress = surface, own, clock, progress
        self._pending: list[tuple[Point, Tensor | float]] = []
        self._read_at = clock()

    def add(self, point: Point, loss: Tensor | float) -> None:
        self._pending.append((point, one_number(loss)))
        if len(self._pending) >= READ_EVERY or self._clock() - self._read_at >= READ_EVERY_S:
            self.finish()
            if self._progress is not None:
                self._progress(int(self._surface.known.sum()), self._surface.known.size)

    def finish(self) -> None:
        pending, self._pending = self._pending, []
        for point, loss in pending:
            self._surface.loss[point] = float(loss)  # SYNC: a landscape is out of the loop's own path
            self._surface.known[point] = self._own[point] = True
        self._read_at = self._clock()


def one_number(loss: Tensor | float) -> Tensor | float:
    """The loss in float64, still on its device and no longer what the next evaluation may write over.

    Raises:
        ValueError: it is several.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(f"loss_fn returned a tensor of shape {tuple(loss.shape)}; one number is accepted")
        return loss.detach().reshape(()).to(torch.float64, copy=True)
    return float(loss)


def _share(surface: Surface, own: np.ndarray, device: torch.device, group: dist.ProcessGroup | None) -> None:
    """Give every rank what the others evaluated; each point was evaluated by one of them at most."""
    both = torch.from_numpy(np.stack([np.where(own, surface.loss, 0.0), own.astype(np.float64)])).to(device)
    dist.all_reduce(both, group=group)
    losses, taken = both.cpu().numpy()
    surface.loss[taken > 0] = losses[taken > 0]
    surface.known |= taken > 0
