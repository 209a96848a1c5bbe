"""What values the model's output takes, and whether they differ from sample to sample.

A model whose output is the same for every sample has stopped to look at its input, whatever its loss says: the mean of
the targets is a fair answer, and a code that is the same for all images agrees with itself. Of the output the first
tensor of floats is taken, whose first dimension is that of the samples if the input's is as long; otherwise, and of a
batch of one, there is no value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monitor.hook.outputs import Hooks, even_step, first_float, plainly, tensors_of
from monitor.hook.probe import Decoded, Probe, Reading

SAMPLES = 64
VALUES = 1 << 12
"""Looked at of each sample."""


class OutputValues(Probe):
    """Mean, smallest and largest value of the model's output, and its standard deviation over the samples."""

    name = "values of the output"
    every = 10
    first_steps = 1

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._hooks = Hooks()
        self._seen: Tensor | None = None

    def begin(self) -> None:
        self._seen = None
        self._hooks.remove()
        self._hooks.after(self._saw, [(0, self._model)])

    def _saw(self, _index: int, _module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self.measuring and self._seen is None and self.watch.in_forward():
            with self.watch.charged(self):
                values = first_float(output)
                if values is not None and values.dim() > 0 and len(values) == _samples(args, kwargs) > 1:
                    with plainly(values):
                        self._seen = summary(sampled(values))

    def end_step(self) -> Reading | None:
        self._hooks.remove()
        seen, self._seen = self._seen, None
        return None if seen is None else Reading([seen], _decode)

    def remove(self) -> None:
        self._hooks.remove()
        self._seen = None


def _samples(args: Any, kwargs: Any) -> int:
    """Length of the first input; 0 without a tensor that has one."""
    inputs = next(iter(tensors_of((*args, *kwargs.values()))), None)
    return len(inputs) if inputs is not None and inputs.dim() > 0 else 0


def sampled(values: Tensor) -> Tensor:
    """float[n, v]: at most ``SAMPLES`` of the samples and ``VALUES`` of the values of each, both spread evenly."""
    some = values[:: -(-len(values) // SAMPLES)]
    each = some.flatten(1) if some.dim() > 1 else some.unsqueeze(1)
    return each[:, :: even_step(each.shape[1], VALUES, values.shape[-1])]


def summary(values: Tensor) -> Tensor:
    """float32[4]: mean, mean over the columns of the standard deviation over the rows, smallest and largest."""
    values = values.float()
    return torch.stack([values.mean(), values.std(0, correction=0).mean(), values.amin(), values.amax()])


def _decode(arrays: list[np.ndarray]) -> Decoded:
    mean, spread, smallest, largest = arrays[0].tolist()
    return Decoded({"output_mean": mean, "output_spread": spread, "output_min": smallest, "output_max": largest})
