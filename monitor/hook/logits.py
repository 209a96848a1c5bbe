"""What the model's output says as logits: the partition function, and whether it is logits at all.

The output is taken for logits when it is, or holds under the name ``logits``, or is a tuple or list that holds, a
floating-point tensor [N, V] or [N, T, V] with V of 2 or more. Anything else (images, features, a bare loss) has no
value here. At most 256 rows, spread evenly over the batch, are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monitor.hook.outputs import Hooks, even_step, measurable, plainly, tensors_of
from monitor.hook.probe import Decoded, Probe, Reading

POSITIONS = 256
MOST = 1 << 20
"""Logits looked at, so fewer positions with a vocabulary above 4096; 16 at the least."""
_ON_SIMPLEX = 1e-3
"""A row of probabilities sums to 1 within this."""


class OutputLogits(Probe):
    """Mean log Z of the output logits, the loss of a uniform guess and that of these outputs against unrelated targets,
    and the shares of rows, and of columns, that are probabilities."""

    name = "output logits"
    every = 10
    first_steps = 1

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._hooks = Hooks()
        self._seen: Tensor | None = None
        self._all_rows = False
        """Whether no row of the batch was left out, so that the sum of a column is one over the batch."""

    def begin(self) -> None:
        self._seen = None
        self._hooks.remove()
        self._hooks.after(self._saw, [(0, self._model)])

    def _saw(self, _index: int, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        if self.measuring and self._seen is None and self.watch.in_forward():
            with self.watch.charged(self):
                logits = logits_of(output)
                if logits is not None:
                    with plainly(logits):
                        rows = sampled(logits)
                        self._seen = _summary(rows)
                        self._all_rows = logits.dim() == 2 and 2 <= len(rows) == len(logits)
                        self._classes = logits.shape[-1]

    def end_step(self) -> Reading | None:
        self._hooks.remove()
        seen, self._seen = self._seen, None
        if seen is None:
            return None
        classes, all_rows = self._classes, self._all_rows

        def decode(arrays: list[np.ndarray]) -> Decoded:
            log_z, unrelated, on_simplex, over_batch = arrays[0].tolist()
            scalars = {
                "log_z_mean": log_z,
                "log_classes": math.log(classes),
                "unrelated_loss": unrelated,
                "output_softmax_share": on_simplex,
            }
            if all_rows:
                scalars["output_batch_softmax_share"] = over_batch
            return Decoded(scalars)

        return Reading([seen], decode)

    def remove(self) -> None:
        self._hooks.remove()
        self._seen = None


def logits_of(output: Any) -> Tensor | None:
    """The logits in a model's output, detached; None when none of it can be them."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(output, Mapping) and named is None:
        return None
    for tensor in tensors_of(output if named is None else named, depth=1):
        shaped = tensor.dim() in (2, 3) and tensor.shape[-1] >= 2
        if shaped and tensor.is_floating_point() and measurable(tensor):
            return tensor.detach()
    return None


def sampled(logits: Tensor) -> Tensor:
    """float[n, V]: at most ``POSITIONS`` of the rows, spread evenly. A view, or a copy of these rows alone."""
    size = logits.shape[-1]
    most = max(16, min(POSITIONS, MOST // size))
    rows = logits.numel() // size
    step = even_step(rows, most, logits.shape[1] if logits.dim() == 3 else 1)
    if logits.dim() == 2 or logits.is_contiguous():
        return logits.view(-1, size)[::step] if logits.dim() == 3 else logits[::step]
    at = torch.arange(0, rows, step, device=logits.device)
    return logits[at // logits.shape[1], at % logits.shape[1]]


def _summary(rows: Tensor) -> Tensor:
    """float32[4]: mean of log Σ exp over the rows; the same less the mean logit, which is the cross-entropy against
    targets that have nothing to do with the rows; share of rows that are probabilities already; share of columns that
    are, or the logarithms of such."""
    rows = rows.float()
    log_z = rows.logsumexp(-1).mean()
    positive = rows.amin() >= 0
    probabilities = ((rows.sum(-1) - 1).abs() <= _ON_SIMPLEX) & (rows.amin(-1) >= 0)
    over_batch = (rows.logsumexp(0).abs() <= _ON_SIMPLEX) | (((rows.sum(0) - 1).abs() <= _ON_SIMPLEX) & positive)
    return torch.stack([log_z, log_z - rows.mean(), probabilities.float().mean(), over_batch.float().mean()])
