"""Whether Adam's second moment v still describes the gradient: statistics of g²/v, and of v beside ε."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monitor.hook.estimates import Moments, moments_of
from monitor.hook.layers import LayerTable
from monitor.hook.passes import LOW_PRECISION, Owned, RowNorms, bites, entries, on_host, owned_by, real, sums_of
from monitor.hook.probe import Decoded, Probe, Reading

FAMILY = frozenset((torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam))
"""Optimizers of torch whose state has v under the name ``exp_avg_sq``."""
FLOOR = 10.0
"""An entry is counted as held by ε when √v̂ < 10 ε: ε then takes more than a tenth off its update."""
LEADING_EVERY = 4
"""In every step it would be 1 % of the step of a 1 M parameter model (``tests/bench/hook_cost.py``); nearly
all of it is waiting for memory, because the optimizer has just pushed everything out of the caches."""
MOST_LEADING = 1 << 21
"""Elements on a CPU that are looked at so often; 2 ms. Our judgement."""


class AdamRms(Probe):
    """Per layer ``adam_rms``: RMS_t = √(mean(g² / max(v̂, ε²))), about 1 while v is up to date.

    v̂ is the second moment after the step, divided by 1 - β2^t, so RMS_1 is 1; g is the gradient that the optimizer was
    given, unscaled and clipped. Weight decay that goes through the gradient (Adam's, not AdamW's) is in v and not in g,
    so RMS_t is below 1 where it rules. With AMSGrad v is the running mean all the same: it is what grows stale.

    Embeddings and the first and last weight matrix are measured every ``LEADING_EVERY`` steps, because RMS_t of the
    embedding leads a loss spike by 1 to 8; the others at the cadence. Slowed down, both are by as much.

    Source: Wortsman et al. 2023, Stable and low-precision training for large-scale vision-language models,
    https://arxiv.org/abs/2304.13013, section 3.4 and algorithm 2.
    """

    name = "Adam's RMS of g²/v"
    every = 10
    first_steps = 10
    over_ranks = True

    def __init__(self, table: LayerTable, leading: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self._table = table
        self._leading = leading
        self._norms: dict[int, list[RowNorms]] = {}
        self._whole = True

    def due(self, step: int, since_start: int) -> bool:
        often = LEADING_EVERY * max(1, self.every // AdamRms.every)
        return super().due(step, since_start) or (bool(self._leading) and step % often == 0)

    def begin(self) -> None:
        watch = self.watch
        self._whole = watch.dense(self) or super().due(watch.step, watch.since_start)
        self._norms = {}

    @torch.no_grad()
    def after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if type(optimizer) not in FAMILY:
            return
        void = getattr(optimizer, "found_inf", None)
        taken = self._norms[id(optimizer)] = []
        only, sharded = self.coverage.kept if self._whole else self._leading, self.watch.over_ranks is not None
        for owned in owned_by(optimizer, self._table, only, sharded=sharded):
            moments = moments_of(optimizer, owned)
            if moments is not None and owned.aligned:
                norms = _rms_norms(moments)
                norms.void = void
                taken.append(norms)

    def end_step(self) -> Reading | None:
        norms = [one for taken in self._norms.values() for one in taken]
        self._norms = {}
        if not norms:
            return None
        sizes, layers, ranks = entries(self._table), len(self._table), self.watch.over_ranks

        def decode(arrays: list[np.ndarray]) -> Decoded:
            if ranks is None:
                values, present = on_host(layers, norms, arrays)
            else:
                squares, present = ranks.values(arrays[0])
                values = np.sqrt(squares)
            if not present.any():
                return Decoded()
            return Decoded(layers={"adam_rms": ((values / np.sqrt(sizes)).astype(np.float32), present)})

        if ranks is not None:
            ranks.add_norms("adam_rms", norms)
            return Reading(ranks.tensors("adam_rms"), decode)
        return Reading([tensor for one in norms for tensor in one.tensors()], decode)


def _rms_norms(moments: Moments) -> RowNorms:
    """√(Σ g²/max(v̂, ε²)) of each layer, as √(Σ g · g / max(v, ε² b) · b) with b = 1 - β2^t: no root for each entry."""
    owned = moments.owned
    group = owned.group
    grads, v = _gradients(owned), moments.v
    half = v[0].dtype in LOW_PRECISION
    tiny = torch.finfo(
        torch.float32 if half else v[0].dtype
    ).tiny  # with ε = 0, an entry that never had a gradient must not become 0/0
    least = [(root * group["eps"]) ** 2 + tiny for root in moments.bias2_root]
    taken = bites(v, grads)
    parts: list[Tensor] = []
    for bite in taken:
        used, moment = bite.of(grads), bite.of(v)
        if half:
            used, moment = [grad.float() for grad in used], [one.float() for one in moment]
        raised = _at_least(moment, bite.each(least, used))
        share = torch._foreach_div(used, raised)
        torch._foreach_mul_(share, used)
        parts += sums_of(share)
    sums = torch.stack(parts).sqrt_()
    rows = [position for bite in taken for position in bite.at]
    if moments.alike:
        return RowNorms([owned.rows[position] for position in rows], sums, factor=moments.bias2_root[0])
    roots = [moments.bias2_root[position] for position in rows]
    sums *= torch.stack(roots) if isinstance(roots[0], Tensor) else torch.tensor(roots, dtype=sums.dtype)
    return RowNorms([owned.rows[position] for position in rows], sums)


def _at_least(tensors: list[Tensor], least: list[Any]) -> list[Tensor] | tuple[Tensor, ...]:
    if isinstance(least[0], Tensor):
        return [tensor.clamp(min=bound) for tensor, bound in zip(tensors, least, strict=True)]
    return torch._foreach_clamp_min(tensors, least)


def _gradients(owned: Owned) -> Sequence[Tensor]:
    return real([parameter.grad for parameter in owned.parameters if parameter.grad is not None])


class AdamFloor(Probe):
    """Per layer ``adam_floor_share``: the share of entries whose √v̂ is below 10 ε, so that ε shortens their updates.

    An entry that never had a gradient counts too: v̂ is 0 there.
    """

    name = "Adam's v beside ε"
    every = 100
    first_steps = 1
    over_ranks = True

    def __init__(self, table: LayerTable) -> None:
        super().__init__()
        self._table = table
        self._counts: list[tuple[list[int], Tensor]] = []

    def begin(self) -> None:
        self._counts = []

    @torch.no_grad()
    def after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if type(optimizer) not in FAMILY:
            return
        for owned in owned_by(optimizer, self._table, sharded=self.watch.over_ranks is not None):
            moments = moments_of(optimizer, owned)
            if moments is not None:
                limit = FLOOR * owned.group["eps"]
                below = [
                    torch.count_nonzero((v.float() if v.dtype in LOW_PRECISION else v) < (limit * root) ** 2)
                    for v, root in zip(moments.v_used, moments.bias2_root, strict=True)
                ]
                self._counts.append((moments.owned.rows, torch.stack(below)))

    def end_step(self) -> Reading | None:
        counts, self._counts = self._counts, []
        if not counts:
            return None
        sizes, ranks = entries(self._table), self.watch.over_ranks

        def decode(arrays: list[np.ndarray]) -> Decoded:
            if ranks is None:
                share, present = np.zeros(len(sizes)), np.zeros(len(sizes), bool)
                for (rows, _), array in zip(counts, arrays, strict=True):
                    share[rows] = array / sizes[rows]
                    present[rows] = True
            else:
                below, present = ranks.values(arrays[0])
                share = below / sizes
            return Decoded(layers={"adam_floor_share": (share.astype(np.float32), present)})

        if ranks is not None:
            for rows, below in counts:
                ranks.add("adam_floor_share", rows, below)
            return Reading(ranks.tensors("adam_floor_share"), decode)
        return Reading([count for _, count in counts], decode)


def leading_rows(model: nn.Module, table: LayerTable) -> frozenset[int]:
    """Rows of the embeddings and of the first and last weight matrix, on a CPU as many as are cheap."""
    embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    rows = {table.index[id(weight)] for weight in embeddings if id(weight) in table.index}
    matrices = [row for row, shape in enumerate(table.shapes) if len(shape) >= 2]
    rows |= {matrices[0], matrices[-1]} if matrices else set()
    kept: set[int] = set()
    elements = 0
    for row in sorted(rows):
        if table.parameters[row].get_device() < 0:
            elements += table.parameters[row].numel()
        if elements <= MOST_LEADING:
            kept.add(row)
    return frozenset(kept)
