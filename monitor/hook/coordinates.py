"""A fixed random sample of a model's coordinates, so that what is kept from one step to the next is kilobytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from monitor.hook.layers import LayerTable
from monitor.hook.passes import real
from monitor.hook.sharded import local

SAMPLED = 16384
"""Coordinates of all layers together, the same number of each: a layer's cosine is known to about 1/√n of its n."""
MOST_OF_A_LAYER = 256
LEAST_OF_A_LAYER = 8
SEED = 0


class Sample:
    """A fixed random sample of every layer's coordinates, drawn by a generator of its own."""

    def __init__(self, table: LayerTable) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.count = min(MOST_OF_A_LAYER, max(LEAST_OF_A_LAYER, SAMPLED // max(len(table), 1)))
        self.sizes = np.array([_numbers(local(parameter)) for parameter in table.parameters], np.float64)
        """How many numbers there are to choose from; of a sharded tensor those of this rank's piece."""
        self._drawn = [
            torch.randint(int(size), (self.count,), generator=generator) if size else None for size in self.sizes
        ]
        """With repetition: every layer has the same number, and every one of them the same weight."""
        self._at: dict[tuple[int, torch.device], Tensor] = {}

    def of(self, tensors: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
        """[n, count] sampled entries of n tensors, on the device of the first."""
        device = tensors[0].device
        pairs = zip(rows, real(tensors), strict=True)
        picked = [torch.take(tensor, self._index(row, tensor.device)) for row, tensor in pairs]
        if any(tensor.get_device() != picked[0].get_device() for tensor in picked):
            picked = [tensor.to(device, non_blocking=True) for tensor in picked]
        return torch.cat(picked).view(len(picked), self.count)

    def fits(self, row: int, tensor: Tensor) -> bool:
        """Whether the coordinates drawn at the start exist: an index beyond the end is fatal on a device, and sharding
        resizes parameters."""
        return tensor.layout == torch.strided and _numbers(tensor) == self.sizes[row]

    def _index(self, row: int, device: torch.device) -> Tensor:
        key = (row, device)
        if key not in self._at:
            drawn = self._drawn[row]
            assert drawn is not None
            self._at[key] = drawn.to(device)
        return self._at[key]


def _numbers(tensor: Tensor) -> int:
    return tensor.numel() * (2 if tensor.is_complex() else 1)
