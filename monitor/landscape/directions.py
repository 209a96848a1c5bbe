"""Random directions in weight space that are comparable between layers and between models.

A step of fixed length means nothing for a network whose layers can be rescaled without changing its function. So every
filter of a random direction gets the norm of the same filter of the weights ("filter normalisation", Li et al. 2018,
"Visualizing the Loss Landscape of Neural Nets", https://arxiv.org/abs/1712.09913).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def filter_normalised(weights: Sequence[Tensor], seed: int) -> list[Tensor]:
    """A random direction with the norm of the weights, filter by filter.

    A filter is what one output unit reads: ``weight[i]`` of a matrix or a convolution kernel. Biases and gains (one
    dimension) are scaled as one tensor; a scalar and an all-zero filter keep the direction zero. Tensors that are
    not floating point have direction zero.

    Args:
        weights: the parameters' data.
        seed: of a generator of our own; the global random state is not used.

    Returns:
        One tensor per weight, same shape, dtype and device.
    """
    generators: dict[torch.device, torch.Generator] = {}
    directions = []
    for weight in weights:
        generator = generators.get(weight.device)
        if generator is None:
            generator = generators[weight.device] = torch.Generator(weight.device).manual_seed(seed)
        directions.append(_one(weight, generator))
    return directions


def _one(weight: Tensor, generator: torch.Generator) -> Tensor:
    if not (weight.is_floating_point() or weight.is_complex()) or weight.numel() == 0:
        return torch.zeros_like(weight)
    # float32 whatever the weight's precision: the norm of a bf16 filter is not accurate in bf16.
    wide = torch.complex64 if weight.is_complex() else torch.promote_types(weight.dtype, torch.float32)
    noise = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=wide)
    over = tuple(range(1, weight.dim())) if weight.dim() > 1 else tuple(range(weight.dim()))
    of_weight = torch.linalg.vector_norm(weight.to(wide), dim=over, keepdim=True)
    of_noise = torch.linalg.vector_norm(noise, dim=over, keepdim=True)
    return (noise * (of_weight / of_noise.clamp_min(1e-30))).to(weight.dtype)


def move(weights: Sequence[Tensor], origin: Sequence[Tensor], direction: Sequence[Tensor], distance: float) -> None:
    """Overwrite ``weights`` with ``origin + distance * direction``; at distance 0 with ``origin``, bit for bit."""
    with torch.no_grad():
        for weight, start, along in zip(weights, origin, direction, strict=True):
            weight.copy_(start)
            if distance and (weight.is_floating_point() or weight.is_complex()):
                weight.add_(along, alpha=distance)
