"""A checksum of the parameters, so that whoever reads several ranks sees the step at which they came apart.

No rank waits for another: each writes its own number into its own files, and equal parameters have equal numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monitor.hook.layers import LayerTable
from monitor.hook.probe import Decoded, Probe, Reading
from monitor.hook.ranks import is_sharded

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LIMBS = 4
"""Of 16 bits: what comes from a device comes in float32, which holds no integer of 64."""
_MODULUS = 2**31 - 1
_LAYER_MODULUS = 2**24 - 3
"""A prime, so that one flipped bit never goes unseen; its remainders are exact in float32."""
_LARGEST_WEIGHT = 2**20


class Checksum(Probe):
    """``parameter_checksum``: equal on every rank as long as the ranks hold the same parameters, bit for bit.

    A sum of the bits of every tensor, each tensor with a weight of its own; and per layer, where ranks that have come
    apart differ. Sharded parameters are left out: they differ from rank to rank by design.
    """

    name = "the parameters' checksum"
    every = 100
    alike = True

    def __init__(self, table: LayerTable) -> None:
        super().__init__()
        self._layers = len(table)
        self._rows = [row for row, parameter in enumerate(table.parameters) if not is_sharded(parameter)]
        self._parameters = [table.parameters[row] for row in self._rows]
        weights = np.random.default_rng(0).integers(1, _LARGEST_WEIGHT, len(self._parameters))
        self._weights = [int(weight) for weight in weights]

    @torch.no_grad()
    def end_step(self) -> Reading | None:
        """One integer of 64 bits per tensor, added up on the host."""
        if not self._parameters:
            return None
        sums = torch.stack([_sum_of_bits(parameter).to(self._parameters[0].device) for parameter in self._parameters])
        limbs = torch.stack([(sums >> (16 * at)) & 0xFFFF for at in range(_LIMBS)])
        return Reading([limbs], self._decode)

    def _decode(self, arrays: list[np.ndarray]) -> Decoded:
        sums = [sum(int(limb) << (16 * at) for at, limb in enumerate(limbs)) for limbs in arrays[0].T]
        total = sum(weight * value for weight, value in zip(self._weights, sums, strict=True))
        row, present = np.zeros(self._layers, np.float32), np.zeros(self._layers, bool)
        row[self._rows], present[self._rows] = [value % _LAYER_MODULUS for value in sums], True
        return Decoded({"parameter_checksum": float(total % _MODULUS)}, {"parameter_checksum": (row, present)})


def _sum_of_bits(parameter: Tensor) -> Tensor:
    """int64: the elements' bit patterns added up; wraps around, the same everywhere."""
    data = parameter.detach()
    data = torch.view_as_real(data) if data.is_complex() else data
    return data.contiguous().view(_BITS[data.element_size()]).sum(dtype=torch.int64)
