"""Annealed Gaussian noise on the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from trainer.config import GradientNoiseConfig


@torch.no_grad()
def add_gradient_noise(
    mon: Any, parameters: Iterable[nn.Parameter], config: GradientNoiseConfig, seed: int, step: int
) -> None:
    """Add noise of variance eta / (1 + step)^decay to every gradient, after clipping; the same noise on every rank.

    The monitor is told, so that its post-clip norm is that of the gradient with noise, which the optimizer uses.

    A pure function of seed and step, with a generator of its own: what dropout draws does not change with it, and a
    resumed run needs nothing to go on exactly.

    Source: Neelakantan et al. 2015, https://arxiv.org/abs/1511.06807, eq. 1, with eta 0.01, 0.3 or 1 and decay 0.55.
    """
    if config.eta is None:
        return
    mon.gradients_will_change()
    std = math.sqrt(config.eta / (1 + step) ** config.decay)
    generators: dict[torch.device, torch.Generator] = {}
    for parameter in parameters:
        grad = parameter.grad
        if grad is not None:
            if grad.device not in generators:
                generators[grad.device] = torch.Generator(grad.device).manual_seed(seed * 1_000_003 + step)
            noise = torch.randn(grad.shape, dtype=grad.dtype, device=grad.device, generator=generators[grad.device])
            grad.add_(noise, alpha=std)
