"""Where the gradient points: beside the one of the step before, and beside the step that the optimizer made of it.

Measured on a fixed random sample of coordinates, so that keeping a gradient from one step to the next costs kilobytes.
Of a sharded model each rank takes the products of its own sample, which are added up over the ranks
(``piece_directions.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monitor.hook.adam import FAMILY
from monitor.hook.coordinates import Sample
from monitor.hook.estimates import learning_rate
from monitor.hook.layers import LayerTable
from monitor.hook.over_ranks import OverRanks
from monitor.hook.passes import entries, owned_by
from monitor.hook.piece_directions import BEFORE, NOW, PieceDirections
from monitor.hook.probe import Decoded, Probe, Reading, Stat
from monitor.hook.unmoved import Unmoved

ADAM_STEP = 0.1
"""Of the learning rate: what an entry with a gradient moves by at least under Adam, as a rule. Our judgement."""


@dataclass(slots=True)
class _Seen:
    """One optimizer's step on the sample."""

    rows: list[int]
    gradient: Tensor
    weights: Tensor | None
    """From before the step; None in a step that is measured for the sake of the next one."""
    rates: list[float]
    """Learning rate of each row; NaN where it is on a device."""
    adam: bool
    change: Tensor | None = None
    void: Tensor | None = None
    done: bool = False


class Directions(Probe):
    """Cosines of the gradient that the optimizer uses, in all and per layer.

    ``grad_cosine`` with the gradient of the step before: near 1 when gradients are not zeroed, negative when steps
    overshoot; for it the gradient of the step before is kept too. ``update_cosine`` with minus the update: how much of
    the update is descent. In all: every layer's sample weighs as much as the layer has entries. A
    sample that is all zero, or a layer without a gradient in one of both steps, has no cosine.
    """

    name = "directions of gradients and updates"
    every = 20
    first_steps = 10
    over_ranks = True

    def __init__(self, table: LayerTable, unmoved: Unmoved | None = None) -> None:
        super().__init__()
        self._table = table
        self._sample = Sample(table)
        self._pieces = PieceDirections(table, self._sample, ADAM_STEP)
        self._unmoved = unmoved
        self._entries = entries(table)
        self._seen: dict[int, _Seen] = {}
        self._whole = True
        self._before: tuple[int, np.ndarray, np.ndarray, bool] | None = None
        """Step, gradient sample [L, n], which rows have one, and whether every layer was asked; on the host, of the
        last reading decoded."""

    def due(self, step: int, since_start: int) -> bool:
        return super().due(step, since_start) or super().due(step + 1, since_start + 1)

    def reduces(self, step: int, since_start: int) -> bool:
        return super().due(step, since_start)

    def begin(self) -> None:
        self._seen = {}
        self._pieces.begin()
        self._whole = self.watch.dense(self) or super().due(self.watch.step, self.watch.since_start)

    @torch.no_grad()
    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if self.watch.over_ranks is not None:
            self._pieces.before(optimizer, type(optimizer) in FAMILY, self._whole)
            return
        rows: list[int] = []
        gradients: list[Tensor] = []
        rates: list[float] = []
        for owned in owned_by(optimizer, self._table):
            lr = learning_rate(owned.group)
            rate = np.nan if isinstance(lr, Tensor) else lr
            for row, parameter in zip(owned.rows, owned.parameters, strict=True):
                grad = parameter.grad
                if (
                    grad is not None
                    and row in self.coverage
                    and self._sample.fits(row, parameter)
                    and self._sample.fits(row, grad)
                ):
                    rows.append(row)
                    gradients.append(grad)
                    rates.append(rate)
        if rows:
            weights = self._sample.of(self._parameters(rows), rows) if self._whole else None
            adam = type(optimizer) in FAMILY
            gradient = self._sample.of(gradients, rows)
            scale = getattr(optimizer, "grad_scale", None)  # fused: the step itself will unscale
            if isinstance(scale, Tensor):
                gradient = gradient / scale.to(gradient.device, non_blocking=True)
            self._seen[id(optimizer)] = _Seen(rows, gradient, weights, rates, adam)

    @torch.no_grad()
    def after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if self.watch.over_ranks is not None:
            self._pieces.after(optimizer)
            return
        seen = self._seen.get(id(optimizer))
        if seen is not None and all(map(self._sample.fits, seen.rows, self._parameters(seen.rows))):
            seen.done = True
            if seen.weights is not None:
                # Of neighbouring floats: exact, also in half precision.
                seen.change = self._sample.of(self._parameters(seen.rows), seen.rows) - seen.weights
            seen.void = getattr(optimizer, "found_inf", None)

    def _parameters(self, rows: Sequence[int]) -> list[Tensor]:
        return [self._table.parameters[row] for row in rows]

    @torch.no_grad()
    def end_step(self) -> Reading | None:
        if self.watch.over_ranks is not None:
            return self._added_up(self.watch.over_ranks)
        seen = [one for one in self._seen.values() if one.done]
        self._seen = {}
        if not seen:
            return None
        step, whole, all_layers = self.watch.step, self._whole, self.coverage.whole
        kept = [(one.rows, one.rates, one.adam, one.void is not None) for one in seen]

        def decode(arrays: list[np.ndarray]) -> Decoded:
            return self._decode(step, whole, all_layers, kept, arrays)

        tensors = [t for one in seen for t in (one.gradient, one.weights, one.change, one.void) if t is not None]
        return Reading(tensors, decode)

    def _added_up(self, ranks: OverRanks) -> Reading | None:
        self._pieces.end(ranks, self.watch.step, self._whole)
        if not self._whole:
            return None
        names = (*NOW, *BEFORE)

        def decode(arrays: list[np.ndarray]) -> Decoded:
            sums = dict(zip(names, map(ranks.values, arrays), strict=True))
            (square, there), (change, _), (descent, _) = (sums[name] for name in NOW[:3])
            (before, _), (dot, both) = (sums[name] for name in BEFORE)
            if self._unmoved is not None:
                size = np.where(there, np.sqrt(square / self._entries), 0.0)
                self._unmoved.judge((sums["moved"][0] > 0) | ~there, (sums["shows"][0] > 0) & there, size)
            scalars: dict[str, float] = {}
            by_layer: dict[str, Stat] = {}
            self._put(scalars, by_layer, "update_cosine", np.stack([descent, square, change]), there)
            self._put(scalars, by_layer, "grad_cosine", np.stack([dot, square, before]), both & there)
            return Decoded(scalars, by_layer)

        return Reading(ranks.tensors(*names), decode)

    def _decode(
        self,
        step: int,
        whole: bool,
        all_layers: bool,
        seen: list[tuple[list[int], list[float], bool, bool]],
        arrays: list[np.ndarray],
    ) -> Decoded:
        layers = len(self._table)
        gradient, change = np.zeros((layers, self._sample.count)), np.zeros((layers, self._sample.count))
        taken = np.zeros(layers, bool)
        ought = np.zeros((layers, self._sample.count))
        weights = np.zeros((layers, self._sample.count))
        supply = iter(arrays)
        for own, rates, adam, void in seen:
            of_gradient = next(supply)
            of_weights, of_change = (next(supply), next(supply)) if whole else (0.0, 0.0)
            if void and next(supply).item():
                continue
            gradient[own], weights[own], change[own], taken[own] = of_gradient, of_weights, of_change, True
            ought[own] = np.array(rates)[:, None] * (ADAM_STEP if adam else np.abs(of_gradient))
        if whole and self._unmoved is not None:
            self._unmoved.looked_at(gradient, weights, ought, change)
        scalars: dict[str, float] = {}
        by_layer: dict[str, Stat] = {}
        before, self._before = self._before, (step, gradient, taken, all_layers)
        if whole:
            products = self._products(gradient, -change)
            self._put(scalars if all_layers else {}, by_layer, "update_cosine", products, taken)
        if whole and before is not None and before[0] == step - 1:
            in_all = scalars if all_layers and before[3] else {}
            products = self._products(gradient, before[1])
            self._put(in_all, by_layer, "grad_cosine", products, taken & before[2])
        return Decoded(scalars, by_layer)

    def _products(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """[3, L] of samples [L, n]: of the two, and of each with itself."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.stack([(a * b).sum(axis=1), (a * a).sum(axis=1), (b * b).sum(axis=1)]) * self._sample.sizes

    def _put(
        self,
        scalars: dict[str, float],
        by_layer: dict[str, Stat],
        name: str,
        products: np.ndarray,
        both: np.ndarray,
    ) -> None:
        """The cosines of the layers in ``both``, and that of the whole vectors.

        Args:
            products: [3, L] of the two vectors of each layer, and of each with itself.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            lengths = np.sqrt(products[1]) * np.sqrt(products[2])
            present = both & (lengths != 0)
            if present.any():
                cosine = np.divide(products[0], lengths, out=np.zeros(len(lengths)), where=present)
                by_layer[name] = (cosine.astype(np.float32), present)
            dot, first, second = products[:, both].sum(axis=1)
            if first * second != 0:
                scalars[name] = float(dot / (np.sqrt(first) * np.sqrt(second)))
