"""Which layers a probe measures: all of them, until the budget has no other way than to measure fewer.

Kept are the first and the last one, those named when it was made (embeddings, the head), and of the others an even
spread in depth, the tensors of one module together. What is left out is absent, and so is what only all layers say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from torch import nn

from monitor.hook.layers import LayerTable, named_modules

LEAST = 8
"""Layers that are measured at least: fewer do not show where in the depth something is. Our judgement."""


class Coverage:
    """The places of a probe's layers, or modules, that it measures.

    Args:
        groups: places that are measured together or not at all, in the order of depth.
        always: places that are never left out, with their groups.
    """

    def __init__(self, groups: Sequence[Sequence[int]] = (), always: Collection[int] = ()) -> None:
        self.total = sum(map(len, groups))
        self.kept: frozenset[int] | None = None
        """None: all."""
        ends = {0, len(groups) - 1} & set(range(len(groups)))
        self._always = sorted(ends | {at for at, group in enumerate(groups) if not set(group).isdisjoint(always)})
        self._groups = groups
        self._before: list[frozenset[int] | None] = []

    def __contains__(self, place: int) -> bool:
        return self.kept is None or place in self.kept

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self.kept is None

    @property
    def count(self) -> int:
        """How many are measured."""
        return self.total if self.kept is None else len(self.kept)

    def half(self) -> frozenset[int]:
        """What is left when about half of them are measured; the same as now when fewer would be too few."""
        wanted = max(LEAST, self.count // 2)
        chosen = {place for at in self._always for place in self._groups[at]}
        # Out of those measured now, so that what is kept has no gap.
        others = [group for at, group in enumerate(self._groups) if at not in self._always and group[0] in self]
        # So many groups that, of their mean size, they fill the rest.
        room = int((wanted - len(chosen)) / (sum(map(len, others)) / len(others))) if others else 0
        for at in np.linspace(0, len(others) - 1, max(0, min(room, len(others)))).round().astype(int).tolist():
            chosen.update(others[at])
        return frozenset(chosen)

    @property
    def can_shrink(self) -> bool:
        """Whether there is anything left to leave out."""
        return self.count > LEAST and len(self.half()) < self.count

    def fewer(self) -> None:
        """Measure about half of what is measured now."""
        kept = self.half()
        self._before.append(self.kept)
        self.kept = kept

    def more(self) -> None:
        """Take the last ``fewer`` back."""
        self.kept = self._before.pop()


def of_layers(table: LayerTable, always: Collection[int]) -> Coverage:
    """Of a model's parameter tensors; those of one module are together."""
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(table.names):
        groups.setdefault(name.rpartition(".")[0], []).append(row)
    return Coverage(list(groups.values()), always)


def of_modules(model: nn.Module) -> Coverage:
    """Of the modules of ``module_names``."""
    modules = list(named_modules(model).values())
    always = {at for at, module in enumerate(modules) if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    weighted = [at for at, module in enumerate(modules) if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)]
    return Coverage([(at,) for at in range(len(modules))], {*always, *weighted[-1:]})
