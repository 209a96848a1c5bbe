"""What is measured of a sharded model, piece by piece on every rank, added up over the ranks.

Weights, updates, Adam's moments, gradient entries and directions are measured every so many steps only. In these steps
each rank adds what it has of its own pieces to one vector, and two small reductions (sums, and largest entries) when
the step ends give every rank every value. That is a collective operation, so all ranks must come to it in the same
steps:

    cadence     a function of the step alone. The ranks compare theirs once, at the start; where they differ nothing is
                reduced in the whole run. The budget does not touch these probes (``Probe.alike``).
    early signs are each rank's own. Each rank's state travels with the reduction of the gradient norms, and counts for
                all of them ``DELAY`` reductions later, when it has arrived on the host of each.
    errors      on one rank take away what this rank would have added, never its part in the reduction. A layer that
                not every rank has looked at has no value.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from monitor.hook.layers import LayerTable
from monitor.hook.passes import RowNorms
from monitor.hook.sharded import ShardedNorms, copies, local
from monitor.hook.transfer import HostRead

STATS = (
    "weight_norm", "update_norm", "adam_rms", "adam_floor_share", "grad_nonzero", "grad_finite", "grad_nan",
    "grad_square", "grad_before_square", "grad_dot", "update_square", "update_dot", "moved", "shows", "changed",
)  # fmt: skip
"""What is summed, in its place in the vector."""
DELAY = 5
"""Reductions until a rank's early sign counts for all: by then the rows of that step are waited for, too."""


class OverRanks:
    """Adds up over ranks. Every rank makes one, at the same moment: that is a collective operation.

    Args:
        norms: of the same layers.
        cadence: what the steps of this rank's reductions follow from.
    """

    def __init__(self, table: LayerTable, norms: ShardedNorms, cadence: object) -> None:
        self._table = table
        self._norms = norms
        self._device = local(table.parameters[0]).device
        self._shares = np.array([1 / copies(p, n) for p, n in zip(table.parameters, norms.holders, strict=True)])
        self._places: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = {}
        self._waiting: deque[HostRead] = deque()
        self.armed = False
        """Whether any rank was armed ``DELAY`` reductions ago: the same on every rank."""
        self.agreed = _all_equal(cadence)
        """Whether the ranks have the same cadence; otherwise ``reduce`` must never be called."""

    def watch(self, armed: Callable[[], bool]) -> None:
        """Send with every reduction of gradient norms whether this rank is ``armed``."""
        self._norms.flag = armed
        self._norms.on_flag = lambda flag: self._waiting.append(HostRead([flag]))

    def step_begins(self) -> None:
        """Hear whether other ranks are armed."""
        while len(self._waiting) >= DELAY:
            self.armed = bool(self._waiting.popleft().arrays()[0] > 0)  # SYNC: if the device is five steps behind

    def begin(self) -> None:
        """The step that begins ends with ``reduce``: nothing has been added."""
        self._sums = torch.zeros((2, len(STATS), self._norms.size), dtype=torch.float64, device=self._device)
        self._largest = torch.zeros(self._norms.size, dtype=torch.float64, device=self._device)

    def add(self, stat: str, rows: Sequence[int], values: Tensor, void: Tensor | None = None) -> None:
        """Add ``values`` [n] of this rank's pieces of ``rows`` [n], where a layer may come several times.

        Args:
            void: one element, not zero when the values turn out not to be any.
        """
        place, share, presence = self._places_of(rows)
        values = values.to(self._device, torch.float64) * share
        if void is not None:
            taken = (void.reshape(()) == 0).to(self._device, torch.float64)
            values, presence = torch.where(taken > 0, values, 0.0), presence * taken
        at = STATS.index(stat)
        self._sums[0, at].index_add_(0, place, values)
        self._sums[1, at].index_copy_(0, place, presence)

    def add_norms(self, stat: str, norms: Sequence[RowNorms]) -> None:
        """Add the squares of what these are the norms of."""
        for one in norms:
            factor = one.factor.to(self._device, torch.float64) if isinstance(one.factor, Tensor) else one.factor
            self.add(stat, one.rows, (one.parts.to(self._device, torch.float64) * factor).square(), one.void)

    def add_nothing(self, stat: str, rows: Sequence[int]) -> None:
        """``rows`` have been looked at, and there is nothing to add."""
        if rows:
            self.add(stat, rows, torch.zeros(len(rows), dtype=torch.float64, device=self._device))

    def add_largest(self, rows: Sequence[int], values: Tensor) -> None:
        """``values`` [n], not negative and no NaN, of the pieces of ``rows`` [n]."""
        place, _, _ = self._places_of(rows)
        self._largest.index_copy_(0, place, values.to(self._device, torch.float64))

    def reduce(self) -> None:
        """Every rank gets the sums and the largest of all: collective operations."""
        if dist.is_initialized():
            dist.all_reduce(self._sums)
            dist.all_reduce(self._largest, op=dist.ReduceOp.MAX)

    def tensors(self, *stats: str) -> list[Tensor]:
        """[2, layers of all ranks] of each of ``stats``, for ``values``: to be read after ``reduce``."""
        return [self._sums[:, STATS.index(stat)] for stat in stats]

    @property
    def largest(self) -> Tensor:
        """[layers of all ranks], likewise."""
        return self._largest

    def values(self, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float64[L] sums of this rank's layers and bool[L] where every rank that has the layer has looked."""
        sums, presence = array[:, self._norms.place].astype(np.float64)
        return sums, np.abs(presence - 1) < 1e-3

    def own(self, array: np.ndarray) -> np.ndarray:
        """float64[L] of this rank's layers out of ``largest``."""
        return array[self._norms.place].astype(np.float64)

    def _places_of(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Copied to the device once for the same rows: places, shares, and what a look at each counts."""
        key = tuple(rows)
        if key not in self._places:
            looks = [1 / self._norms.holders[row] for row in rows]
            self._places[key] = (
                torch.tensor([self._norms.place[row] for row in rows], device=self._device),
                torch.tensor(self._shares[list(rows)], device=self._device),
                torch.tensor(looks, dtype=torch.float64, device=self._device),
            )
        return self._places[key]


def _all_equal(mine: object) -> bool:
    if not dist.is_initialized():
        return True
    gathered: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return all(other == gathered[0] for other in gathered)
