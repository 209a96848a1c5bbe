"""Directions of a sharded model: every rank takes dot products of its own pieces, on a fixed sample of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monitor.hook.coordinates import Sample
from monitor.hook.estimates import learning_rate
from monitor.hook.layers import LayerTable
from monitor.hook.over_ranks import OverRanks
from monitor.hook.passes import LOW_PRECISION, Owned, owned_by
from monitor.hook.sharded import local
from monitor.hook.unmoved import VISIBLE, epsilon

NOW = ("grad_square", "update_square", "update_dot", "moved", "shows")
"""What is added of a step alone."""
BEFORE = ("grad_before_square", "grad_dot")
"""And of it and the step before."""


@dataclass(slots=True)
class _Seen:
    """The sample of one group's pieces across one optimizer's step."""

    rows: list[int]
    empty: list[int]
    """Of which this rank has nothing."""
    parameters: list[Tensor]
    gradient: Tensor
    weights: Tensor | None
    """From before the step; None in a step that is measured for the sake of the next one."""
    ought: float | Tensor
    """What an entry is expected to move by, at least; NaN where that is on a device."""
    change: Tensor | None = None
    void: Tensor | None = None
    done: bool = False


class PieceDirections:
    """What ``Directions`` adds up over the ranks.

    Args:
        sample: of this rank's pieces.
        adam_step: of the learning rate: what an entry with a gradient moves by at least.
    """

    def __init__(self, table: LayerTable, sample: Sample, adam_step: float) -> None:
        self._table = table
        self._sample = sample
        self._adam_step = adam_step
        self._seen: dict[int, list[_Seen]] = {}
        self._before: dict[tuple[int, ...], tuple[int, Tensor, Tensor | None]] = {}
        """By rows: step, gradient sample, and whether the step was not taken."""
        self._factors: dict[tuple[int, ...], Tensor] = {}

    def begin(self) -> None:
        """Nothing of the step has been seen."""
        self._seen = {}

    def before(self, optimizer: torch.optim.Optimizer, adam: bool, whole: bool) -> None:
        """``optimizer`` is about to step; ``whole``: its step is measured, not only the gradient."""
        found = self._seen[id(optimizer)] = []
        scale = getattr(optimizer, "grad_scale", None)  # fused: the step itself will unscale
        for owned in owned_by(optimizer, self._table, sharded=True):
            if owned.aligned:
                self._take(owned, adam, whole, scale, found)

    def _take(self, owned: Owned, adam: bool, whole: bool, scale: object, found: list[_Seen]) -> None:
        pairs = [(row, local(p), local(p.grad)) for row, p in zip(owned.rows, owned.parameters, strict=True)
                 if p.grad is not None and p.grad.layout == torch.strided]  # fmt: skip
        fitting = [one for one in pairs if self._sample.fits(one[0], one[1]) and self._sample.fits(one[0], one[2])]
        empty = [row for row, piece, _ in fitting if not piece.numel()]
        fitting = [one for one in fitting if one[1].numel()]
        if not fitting:
            if empty:
                nothing = torch.zeros((0, self._sample.count))
                found.append(_Seen([], empty, [], nothing, nothing if whole else None, 0.0))
            return
        rows, parameters = [one[0] for one in fitting], [one[1] for one in fitting]
        gradient = self._sample.of([one[2] for one in fitting], rows).double()
        if isinstance(scale, Tensor):
            gradient = gradient / scale.to(gradient.device, non_blocking=True)
        rate = learning_rate(owned.group)
        ought = float("nan") if isinstance(rate, Tensor) else rate * (self._adam_step if adam else gradient.abs())
        weights = self._sample.of(parameters, rows) if whole else None
        found.append(_Seen(rows, empty, parameters, gradient, weights, ought))

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """``optimizer`` has stepped."""
        for seen in self._seen.get(id(optimizer), []):
            seen.done, seen.void = True, getattr(optimizer, "found_inf", None)
            if seen.weights is not None and seen.rows:
                # Of neighbouring floats: exact, also in half precision.
                seen.change = self._sample.of(seen.parameters, seen.rows) - seen.weights

    def end(self, ranks: OverRanks, step: int, whole: bool) -> None:
        """Add what was seen, and keep the gradients for the next step."""
        before, self._before = self._before, {}
        for seen in (one for group in self._seen.values() for one in group if one.done):
            key = tuple(seen.rows)
            then = before.get(key)
            self._before[key] = (step, seen.gradient, seen.void)
            if not whole:
                continue
            follows = then is not None and then[0] == step - 1
            for stat in (*NOW, *(BEFORE if follows or not seen.rows else ())):
                ranks.add_nothing(stat, seen.empty)
            if seen.change is None or seen.weights is None:
                continue
            gradient, change = seen.gradient, seen.change.double()
            self._add(ranks, "grad_square", seen.rows, gradient, gradient, seen.void)
            self._add(ranks, "update_square", seen.rows, change, change, seen.void)
            self._add(ranks, "update_dot", seen.rows, gradient, -change, seen.void)
            ranks.add("moved", seen.rows, (change != 0).any(dim=1), seen.void)
            ranks.add("shows", seen.rows, _shows(seen, seen.weights).any(dim=1), seen.void)
            if then is not None and follows:
                voids = [void for void in (seen.void, then[2]) if void is not None]
                void = torch.stack([one.reshape(()) for one in voids]).sum() if voids else None
                self._add(ranks, "grad_before_square", seen.rows, then[1], then[1], void)
                self._add(ranks, "grad_dot", seen.rows, gradient, then[1], void)
        self._seen = {}

    def _add(self, ranks: OverRanks, stat: str, rows: Sequence[int], a: Tensor, b: Tensor, void: Tensor | None) -> None:
        """The dot products of the pieces of which ``a`` and ``b`` are samples."""
        key = tuple(rows)
        if key not in self._factors:
            self._factors[key] = torch.tensor(self._sample.sizes[list(rows)] / self._sample.count).to(a.device)
        ranks.add(stat, rows, (a * b).sum(dim=1) * self._factors[key], void)


def _shows(seen: _Seen, weights: Tensor) -> Tensor:
    """bool[n, count]: whose update would be seen. In half precision one that is rounded away is the finding."""
    ought = seen.ought if isinstance(seen.ought, Tensor) else torch.full_like(seen.gradient, seen.ought)
    if weights.dtype in LOW_PRECISION:
        return ought > 0
    return (seen.gradient != 0) & (ought > VISIBLE * epsilon(weights.dtype) * weights.abs())
