"""Attention maps of a few heads on a thinning schedule: small enough to be events of the run.

Of the first sequence of the batch, the first ``SIZE`` queries and keys, with the tokens that the model was given. A
weight w is kept as round(255 · √w): one byte, and small weights stay apart from zero.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monitor.hook.outputs import measurable, tensors_of

SIZE = 64
HEADS = 4
LAYERS = 4
FIRST = 10
"""Step of the first map; a multiple of the bounds' cadence."""
EVERY = 100
"""Then at this step, and each time that the step has doubled: at a million steps there have been 15."""


def due(step: int) -> bool:
    """Whether maps are taken at ``step``."""
    rounds, rest = divmod(step, EVERY)
    return step == FIRST or (rest == 0 and rounds > 0 and rounds & (rounds - 1) == 0)


def some_layers(attending: Sequence[int]) -> set[int]:
    """At most ``LAYERS`` of the modules that attend, from the first to the last."""
    if not attending:
        return set()
    picked = np.linspace(0, len(attending) - 1, min(LAYERS, len(attending))).round().astype(int)
    return {attending[at] for at in picked}


@dataclass(slots=True)
class Maps:
    """The maps of one step."""

    layers: set[int]
    """Modules whose map is wanted."""
    found: dict[int, Tensor] = field(default_factory=dict)
    """float32[heads, queries, keys] in bytes' range, by module."""
    tokens: Tensor | None = None
    """[T] of the first sequence."""

    def take(self, index: int, weights: Tensor) -> None:
        """Keep the corner of the weights [H, R, S] of the first queries of ``index``."""
        if index in self.layers and index not in self.found:
            self.found[index] = (weights[:HEADS, :SIZE, :SIZE].sqrt() * 255).round()

    def see_tokens(self, given: Any) -> None:
        """Take the first [B, T] tensor of integers among the model's arguments for the tokens."""
        for tensor in tensors_of(given, depth=3):
            whole = not tensor.is_floating_point() and tensor.dtype != torch.bool
            if self.tokens is None and whole and tensor.dim() == 2 and measurable(tensor):
                self.tokens = tensor.detach()[0, :SIZE].clone()

    def tensors(self) -> list[Tensor]:
        """What is to come to the host for :meth:`events`."""
        if not self.found:
            return []
        return [*self.found.values(), *([] if self.tokens is None else [self.tokens])]

    def events(self, arrays: list[np.ndarray], names: Sequence[str]) -> list[dict[str, Any]]:
        """The fields of one event a module, from the values of :meth:`tensors`."""
        tokens = [int(token) for token in arrays[len(self.found)]] if len(arrays) > len(self.found) else None
        return [
            {
                "module": names[index],
                "shape": list(bytes_.shape),
                "weights": base64.b64encode(np.nan_to_num(bytes_).astype(np.uint8).tobytes()).decode("ascii"),
                "tokens": tokens if tokens is not None and len(tokens) >= bytes_.shape[1] else None,
            }
            for index, bytes_ in zip(self.found, arrays, strict=False)
        ]
