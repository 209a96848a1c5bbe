"""How much of the gradient is noise: would larger batches help?

The gradient of one micro-batch is noisier than that of the whole step, and by how much tells the noise scale:
McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1. With b and B samples,

    |G|²  ~ (B |g_B|² - b |g_b|²) / (B - b)        tr(Σ) ~ (|g_b|² - |g_B|²) / (1/b - 1/B)

and the scale is tr(Σ) / |G|², both averaged over steps before they are divided. Where g_b is from:

    accumulation    the gradient of the first micro-batch: costs its norm
    ranks           without accumulation, this rank's own gradient from before the reduction (``local_gradients``),
                    where the reduced one is known to be the mean over ranks

A loop that has neither has no noise scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from monitor.hook.layers import LayerTable
from monitor.hook.local_gradients import LocalNorms
from monitor.hook.norms import take_norms
from monitor.hook.probe import Decoded, Probe, Reading
from monitor.hook.ranks import ddp_of, is_sharded, together

MEMORY = 0.95
"""Weight of the past in the averages: some twenty measured steps. Our judgement; one step alone says nothing."""
FEWEST = 10
"""Measured steps before the first value."""


class NoiseScale(Probe):
    """``gradient_noise_scale``: over the batch of a step, without a unit. Far above 1, larger batches would pay."""

    name = "the gradient noise scale"
    every = 10

    def __init__(self, table: LayerTable, model: nn.Module, local: LocalNorms | None = None) -> None:
        super().__init__()
        self._local = local
        self._parameters = [] if any(map(is_sharded, table.parameters)) else table.parameters
        self._ddp = ddp_of(model)
        self._micro_steps = 0
        self._accumulates = False
        """Whether the step measured last had several micro-steps: what one that has a single one took is of no use."""
        self._first: Tensor | None = None
        self._parts = 1
        self._stepped = False
        self._arrived: tuple[float, int] | None = None
        self._of = 0
        """Parts of the whole that the averages are of."""
        self._signal = self._noise = 0.0
        self._weight = 0.0
        self._count = 0

    def begin(self) -> None:
        """No micro-batch yet."""
        self._micro_steps, self._first, self._stepped = 0, None, False

    def backward_ended(self) -> None:
        """After the first micro-batch the gradients are its own."""
        if self._stepped:  # of another optimizer, or of a closure evaluated again: not one gradient in parts
            self._first = None
        self._micro_steps += 1
        if self._micro_steps > 1 or not self._accumulates:
            return
        grads = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if not grads:
            return
        self._first = take_norms(grads).total
        # Within no_sync the gradient is of this rank's micro-batch alone, later those of all ranks are averaged.
        local = self._ddp is not None and not self._ddp.require_backward_grad_sync
        self._parts = torch.distributed.get_world_size() if local and together() else 1

    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """What backward adds from now on belongs to another gradient."""
        self._stepped = True

    def end_step(self) -> Reading | None:
        """The first micro-batch's norm, if there were several."""
        self._accumulates = self._micro_steps > 1
        if self._first is None or not self._accumulates:
            return None
        parts, micro_steps = self._parts * self._micro_steps, self._micro_steps

        def decode(arrays: list[np.ndarray]) -> Decoded:
            # The loss of a micro-batch is divided by their number, or the sum is: either way the ratio is the same.
            self._arrived = float(arrays[0]) * micro_steps, parts
            return Decoded()

        return Reading([self._first], decode)

    def row_complete(self, step: int, row: Decoded) -> Mapping[str, float]:
        """The whole gradient's norm is known, too."""
        arrived, self._arrived = self._arrived, None
        ranks = self._local.averaged_over(step) if self._local is not None else None
        if arrived is not None:
            small, parts = arrived
            small /= row.scalars.get("loss_scale", 1.0) or 1.0
        elif ranks is not None and ranks > 1:
            small, parts = row.scalars.get("grad_norm_local", math.nan), ranks
        else:
            return {}
        whole = row.scalars.get("grad_norm_preclip", math.nan)
        if not (math.isfinite(small) and math.isfinite(whole)):
            return {}  # a skipped step or a broken one: neither says anything about noise
        self._average(small * small, whole * whole, parts)
        if self._count < FEWEST or self._signal <= 0:
            return {}
        return {"gradient_noise_scale": max(0.0, self._noise / self._signal / parts)}

    def _average(self, small: float, whole: float, parts: int) -> None:
        """Averages of |G|² and of tr(Σ) per part, the first values not weighing more than later ones."""
        if parts != self._of:
            self._of, self._count, self._weight = parts, 0, 0.0
        self._count += 1
        self._weight = MEMORY * self._weight + (1 - MEMORY)
        share = (1 - MEMORY) / self._weight
        self._signal += share * ((parts * whole - small) / (parts - 1) - self._signal)
        self._noise += share * ((small - whole) / (1 - 1 / parts) - self._noise)
