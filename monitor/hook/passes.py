"""Elementwise passes over a whole model in bites that stay in the cache, and L2 norms put together from them.

Five operations on a model's weights, Adam's moments and a scratch tensor would each run through memory. Taken in bites
of half a megabyte, memory is read once: four times faster on a CPU than whole tensors, with scratch memory of one bite.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monitor.hook.layers import LayerTable
from monitor.hook.ranks import is_sharded
from monitor.hook.sharded import local

BITE = 1 << 17
"""Elements of a bite on a CPU: four of them in float32 are in a core's second-level cache. Measured: from 2**17 to
2**18 equally fast, half as fast at 2**15 (calls) and without bites (memory)."""
DEVICE_BITE = 1 << 25
"""On a device a bite bounds the scratch memory, to 128 MiB; smaller ones would cost kernel launches."""
LOW_PRECISION = frozenset((torch.bfloat16, torch.float16))
PLAIN = frozenset((Tensor, nn.Parameter))
"""Not subclasses such as DTensor, whose norm is a collective operation."""


@dataclass(frozen=True, slots=True)
class Bite:
    """Some whole tensors, or one stretch of a large one, out of a list."""

    at: Sequence[int]
    """Positions in the list."""
    stretch: tuple[int, int] | None = None
    """Of the one tensor's elements; None: whole tensors."""

    def of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The bite of a list that is parallel to the one it was made for."""
        if self.stretch is None:
            return [tensors[position] for position in self.at]
        return [tensors[self.at[0]].view(-1)[self.stretch[0] : self.stretch[1]]]

    def each(self, values: Sequence[Any], like: Sequence[Tensor]) -> list[Any]:
        """One number or tensor for each tensor of :meth:`of`, which ``like`` is, out of one for each of the list."""
        picked = [values[position] for position in self.at]
        return [value.to(like[0].dtype) for value in picked] if isinstance(picked[0], Tensor) else picked


def bites(*parallel: Sequence[Tensor]) -> list[Bite]:
    """Bites of parallel lists of tensors of equal shapes. A tensor that is not contiguous in every list stays whole."""
    first = parallel[0]
    limit = BITE if first[0].get_device() < 0 else DEVICE_BITE
    found: list[Bite] = []
    gathered: list[int] = []
    size = 0
    for position, tensor in enumerate(first):
        count = tensor.numel()
        if count > limit and all(tensors[position].is_contiguous() for tensors in parallel):
            found += [Bite((position,), (low, min(low + limit, count))) for low in range(0, count, limit)]
            continue
        if gathered and size + count > limit:
            found.append(Bite(gathered))
            gathered, size = [], 0
        gathered.append(position)
        size += count
    if gathered:
        found.append(Bite(gathered))
    return found


def norms_of(tensors: list[Tensor] | tuple[Tensor, ...]) -> Sequence[Tensor]:
    """L2 norms of tensors; in float32 for half precision."""
    if tensors[0].dtype in LOW_PRECISION:
        return torch._foreach_norm(tensors, 2.0, dtype=torch.float32)
    return torch._foreach_norm(tensors, 2.0)


def sums_of(tensors: list[Tensor] | tuple[Tensor, ...]) -> Sequence[Tensor]:
    """Sums of tensors of which no entry is negative."""
    if tensors[0].get_device() < 0:
        return [tensor.sum() for tensor in tensors]
    return torch._foreach_norm(tensors, 1.0)


@dataclass(slots=True)
class RowNorms:
    """L2 norms of some layers in parts, on their way to the host."""

    rows: Sequence[int]
    """Row in the layer table of each part; a row with several parts has them in its norm together."""
    parts: Tensor
    """[parts]."""
    factor: float | Tensor = 1.0
    """What every norm is multiplied by."""
    void: Tensor | None = None
    """One element, not zero when the step was not taken after all: then these rows have no value."""

    def tensors(self) -> list[Tensor]:
        return [self.parts, *(t for t in (self.factor, self.void) if isinstance(t, Tensor))]


def measured(
    rows: Sequence[int], parts: Sequence[Tensor], taken: Iterable[Bite], factor: float | Tensor = 1.0
) -> RowNorms:
    """Norms taken bite by bite; ``rows`` are those of the list that the bites are of."""
    of_parts = [rows[position] for bite in taken for position in bite.at]
    return RowNorms(of_parts, torch.stack(list(parts)), factor)


def on_host(layers: int, norms: Sequence[RowNorms], arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """float64[L] norms and bool[L] where there is one; ``arrays`` are the values of all ``tensors()`` in order."""
    supply = iter(arrays)
    squares = np.zeros(layers)
    present = np.zeros(layers, bool)
    for norm in norms:
        parts = next(supply).astype(np.float64)
        factor = float(next(supply)) if isinstance(norm.factor, Tensor) else norm.factor
        if norm.void is not None and next(supply).item():
            continue
        rows = np.asarray(norm.rows, np.int64)
        squares += np.bincount(rows, (parts * factor) ** 2, layers)
        present[rows] = True
    return np.sqrt(squares), present


def real(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Tensors of one type; complex ones as pairs of real numbers, which is how optimizers treat them; of sharded ones
    this rank's pieces."""
    if not tensors:
        return tensors
    if is_sharded(tensors[0]):
        tensors = [local(tensor) for tensor in tensors]
    if not tensors[0].is_complex():
        return tensors
    return [torch.view_as_real(tensor.detach().resolve_conj()) for tensor in tensors]


@dataclass(frozen=True, slots=True)
class Owned:
    """Parameters of one optimizer's group that the layer table has, on one device and of one type: all of them sharded,
    or none."""

    group: dict[str, Any]
    rows: list[int]
    parameters: list[nn.Parameter]
    aligned: bool = True
    """Whether every rank has the gradient of that piece of each parameter that it has."""


def owned_by(
    optimizer: torch.optim.Optimizer, table: LayerTable, only: Collection[int] | None = None, *, sharded: bool = False
) -> list[Owned]:
    """What ``optimizer`` is going to change, or has: its parameters that have a gradient, by group, device and type.

    Read anew each time, because groups are added and layers unfrozen while a training runs.

    Args:
        only: leave out every row that is not among these.
        sharded: whether parameters of which this rank has a piece are among them.
    """
    found: list[Owned] = []
    for group in optimizer.param_groups:
        kinds: dict[tuple[torch.device, torch.dtype, bool, bool], Owned] = {}
        for parameter in group["params"]:
            row = table.index.get(id(parameter))
            if row is None or (only is not None and row not in only):
                continue
            grad = parameter.grad
            if grad is None or not parameter.numel():
                continue
            spread = type(grad) not in PLAIN or type(parameter) not in PLAIN
            if spread and not (sharded and is_sharded(parameter) and is_sharded(grad)):
                continue
            kind = (parameter.device, parameter.dtype, spread, not spread or _aligned(parameter, grad))
            if kind not in kinds:
                kinds[kind] = Owned(group, [], [], kind[-1])
            kinds[kind].rows.append(row)
            kinds[kind].parameters.append(parameter)
        found += kinds.values()
    return found


def _aligned(parameter: Tensor, grad: Tensor) -> bool:
    if not (is_sharded(parameter) and is_sharded(grad)):
        return False
    return parameter.placements == grad.placements and parameter.device_mesh == grad.device_mesh


def entries(table: LayerTable) -> np.ndarray:
    """float64[L]: how many numbers each parameter tensor has, a complex entry being two."""
    return np.array([p.numel() * (2 if p.is_complex() else 1) for p in table.parameters], np.float64)
