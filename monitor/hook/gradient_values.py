"""What the gradient's entries are, beside their norm: the largest, and how many are exactly zero or not finite."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monitor.hook.layers import LayerTable
from monitor.hook.over_ranks import OverRanks
from monitor.hook.passes import PLAIN, entries, real
from monitor.hook.probe import Decoded, Probe, Reading
from monitor.hook.ranks import is_sharded
from monitor.hook.sharded import is_partial


@dataclass(frozen=True, slots=True)
class _Taken:
    """Extremes and counts of some layers' gradients at the end of one backward pass."""

    rows: np.ndarray
    entries: np.ndarray
    """Of each layer's gradient."""
    stored: np.ndarray
    """Entries looked at: fewer in a sparse gradient, whose others are zero."""
    tensors: list[Tensor]
    """[2, n] or [1, n] extremes, [n] entries that are not zero, [n] that are finite if they are counted."""
    empty: list[int]
    """Rows of which this rank has no entry: a sharded layer's, or a sparse gradient's."""


class GradientValues(Probe):
    """Per layer ``grad_abs_max`` and ``grad_zero_share``, at the end of backward: before clipping, micro-steps summed.

    The loss scale is divided out of the largest entry; zeros are those of the gradient as backward left it, before
    unscaling can make more of them. An abs-max of NaN or infinity says that an entry is not finite;
    ``grad_nonfinite_share``, if asked for, how many are not.

    With several micro-steps each is looked at and the last counts: which one that is only shows afterwards. With
    several optimizers a layer's values are those at the backward before its own optimizer's step.
    """

    name = "gradient values"
    every = 10
    first_steps = 10
    over_ranks = True

    def __init__(
        self, table: LayerTable, optimizers: Sequence[torch.optim.Optimizer], count_nonfinite: bool = False
    ) -> None:
        super().__init__()
        self._table = table
        self._optimizers = tuple(optimizers)
        self._count_nonfinite = count_nonfinite
        self._taken: dict[int, _Taken | None] = {}
        self._stepped: set[int] = set()

    def begin(self) -> None:
        self._taken, self._stepped = {}, set()

    @torch.no_grad()
    def backward_ended(self) -> None:
        for owner, rows in self._owners().items():
            if owner not in self._stepped:
                self._taken[owner] = self._take(rows)

    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if len(self._optimizers) > 1:
            self._stepped.add(id(optimizer))

    def end_step(self) -> Reading | None:
        taken = [one for one in self._taken.values() if one is not None]
        self.begin()
        if not taken:
            return None
        if self.watch.over_ranks is not None:
            return self._added_up(self.watch.over_ranks, taken)
        scale = self.watch.loss_scale()
        names = ["grad_abs_max", "grad_zero_share", *(["grad_nonfinite_share"] if self._count_nonfinite else [])]
        layers, whole = len(self._table), self.coverage.whole

        def decode(arrays: list[np.ndarray]) -> Decoded:
            divisor = float(arrays[-1]) if isinstance(scale, Tensor) else scale
            supply = iter(arrays)
            stats = np.zeros((len(names), layers))
            present = np.zeros(layers, bool)
            for one in taken:
                extremes, filled, *rest = (next(supply) for _ in one.tensors)
                present[one.rows] = True
                stats[0, one.rows] = np.abs(extremes).max(axis=0) / divisor
                stats[1, one.rows] = 1 - filled / one.entries
                for finite in rest:
                    stats[2, one.rows] = (one.stored - finite) / one.entries
            values = {name: (row.astype(np.float32), present) for name, row in zip(names, stats, strict=True)}
            return Decoded({"grad_abs_max": float(stats[0, present].max())} if whole else {}, values)

        tensors = [tensor for one in taken for tensor in one.tensors]
        return Reading([*tensors, scale] if isinstance(scale, Tensor) else tensors, decode)

    def _added_up(self, ranks: OverRanks, taken: list[_Taken]) -> Reading:
        scale = self.watch.loss_scale()
        names = ["grad_nonzero", "grad_nan", *(["grad_finite"] if self._count_nonfinite else [])]
        for one in taken:
            rows = one.rows.tolist()
            extremes, filled, *rest = one.tensors
            largest = extremes.double().abs().amax(dim=0)
            ranks.add_largest(rows, largest.nan_to_num(nan=0.0, posinf=torch.inf))
            for name, counts in zip(names, (filled, largest.isnan(), *rest), strict=True):
                ranks.add(name, rows, counts)
                ranks.add_nothing(name, one.empty)
        entries_of = entries(self._table)

        def decode(arrays: list[np.ndarray]) -> Decoded:
            divisor = float(arrays[-1]) if isinstance(scale, Tensor) else scale
            (filled, present), (nan, _), *rest = (ranks.values(array) for array in arrays[1 : 1 + len(names)])
            if not present.any():
                return Decoded()
            largest = np.where(nan > 0, np.nan, ranks.own(arrays[0]) / divisor)
            stats = {"grad_abs_max": largest, "grad_zero_share": 1 - filled / entries_of}
            for finite, _ in rest:
                stats["grad_nonfinite_share"] = 1 - finite / entries_of
            values = {name: (row.astype(np.float32), present) for name, row in stats.items()}
            return Decoded({"grad_abs_max": float(largest[present].max())}, values)

        tensors = [ranks.largest, *ranks.tensors(*names)]
        return Reading([*tensors, scale] if isinstance(scale, Tensor) else tensors, decode)

    def _owners(self) -> dict[int, Sequence[int]]:
        """Rows by the optimizer that uses them; with one optimizer all are together, whoever owns them."""
        everything = [row for row in range(len(self._table)) if row in self.coverage]
        if len(self._optimizers) == 1:
            return {0: everything}
        owner: dict[int, int] = {}
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    owner.setdefault(self._table.index.get(id(parameter), -1), id(optimizer))
        found: dict[int, list[int]] = {}
        for row in everything:
            found.setdefault(owner.get(row, 0), []).append(row)
        return dict(found)

    def _take(self, wanted: Sequence[int]) -> _Taken | None:
        rows: list[int] = []
        empty: list[int] = []
        grads: list[Tensor] = []
        for row in wanted:
            grad = self._table.parameters[row].grad
            if grad is None or not self._measurable(grad) or not grad.numel():
                continue
            grad = grad.coalesce()._values() if grad.is_sparse else grad
            grad = real([grad])[0]
            if grad.numel():
                rows.append(row)
                grads.append(grad)
            else:
                empty.append(row)
        if not grads:
            return None
        counts = [torch.count_nonzero(grad) for grad in grads]
        tensors = [_stacked(_extremes(grads)).view(-1, len(grads)), _stacked(counts)]
        if self._count_nonfinite:
            tensors.append(_stacked([torch.count_nonzero(torch.isfinite(grad)) for grad in grads]))
        where = np.array(rows)
        parameters = [self._table.parameters[row] for row in rows]
        entries_of = np.array([p.numel() * (2 if p.is_complex() else 1) for p in parameters], np.float64)
        return _Taken(where, entries_of, np.array([grad.numel() for grad in grads], np.float64), tensors, empty)

    def _measurable(self, grad: Tensor) -> bool:
        """A term of a sum that is spread over ranks is not: no rank has an entry of it."""
        if type(grad) in PLAIN:
            return True
        return self.watch.over_ranks is not None and is_sharded(grad) and not is_partial(grad)


def _extremes(grads: list[Tensor]) -> Sequence[Tensor]:
    """[2n] smallest and then largest entries, or [n] largest magnitudes: whichever is one pass over the gradients."""
    if grads[0].get_device() < 0:
        pairs = [torch.aminmax(grad) for grad in grads]
        return [*(pair.min for pair in pairs), *(pair.max for pair in pairs)]
    return torch._foreach_norm(grads, torch.inf)


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """One vector; a model may be spread over devices and have parameters of several types."""
    if len({value.dtype for value in values}) > 1:
        widest = functools.reduce(torch.promote_types, (value.dtype for value in values))
        values = [value.to(widest) for value in values]
    if len({value.get_device() for value in values}) > 1:
        values = [value.to(values[0].device, non_blocking=True) for value in values]
    return torch.stack(list(values))
