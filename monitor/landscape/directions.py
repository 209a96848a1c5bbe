"""Directions in weight space, and moving the weights along them.

A step of fixed length means nothing for a network whose layers can be rescaled without changing its function. So every
filter of a random direction gets the norm of the same filter of the weights ("filter normalisation", Li et al. 2018,
"Visualizing the Loss Landscape of Neural Nets", https://arxiv.org/abs/1712.09913). The last update and the gradient are
taken as they are: there a length has a meaning.

A direction is a list with one tensor per moving weight, in the order of ``undisturbed.moving``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NARROW = (torch.float16, torch.bfloat16)
"""Sums of these are taken in float32: one step of a fine grid may be less than their last digit."""

Direction = list[Tensor]


def filter_normalised(weights: Sequence[Tensor], seed: int) -> Direction:
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


def random_direction(weights: Sequence[Tensor], seed: int, number: int = 0) -> Direction:
    """Number ``number`` of the filter-normalised random directions that belong to ``seed``."""
    return filter_normalised(weights, (seed * 1_000_003 + number) % (1 << 63))


def between(start: Sequence[Tensor], end: Sequence[Tensor]) -> Direction:
    """From ``start`` to ``end``: the line that connects two checkpoints, of length 1 in its own unit."""
    return [_wide(there) - _wide(here) for here, there in zip(start, end, strict=True)]


def dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Inner product over all weights, added up in float64."""
    with torch.no_grad():
        pairs = zip(one, other, strict=True)
        parts = [torch.sum(a.to(torch.float64) * b.to(torch.float64)).cpu() for a, b in pairs]
    return float(torch.stack(parts).sum()) if parts else 0.0


def norm(direction: Sequence[Tensor]) -> float:
    """Euclidean length over all weights."""
    return dot(direction, direction) ** 0.5


def scaled(direction: Sequence[Tensor], factor: float) -> Direction:
    """The same direction, ``factor`` times as long."""
    return [part * factor for part in direction]


def last_update(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> Direction | None:
    """What the optimizer's last step added to the weights, from its state alone; None when that does not tell.

    Known for Adam, AdamW, those that step like them but for a factor, and SGD with momentum (not Nesterov's); a weight
    without state did not move. Weight decay of AdamW is included. The learning rate is that of now: if a schedule has
    changed it since, the length is off by as much, the direction is right.
    """
    groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    moves = []
    for weight in parameters:
        group, state = groups.get(id(weight)), optimizer.state.get(weight, {})
        factor = step_factor(optimizer, weight)
        change = None if group is None or factor is None else _change(optimizer, group, state, weight.detach(), factor)
        if group is not None and state and change is None:
            return None
        moves.append(torch.zeros_like(weight) if change is None else change)
    return moves if any(bool(move.any()) for move in moves) else None


def base_kind(optimizer: torch.optim.Optimizer) -> type:
    """Its class, or the class of torch that it says it steps like but for a factor in each tensor (``steps_like``)."""
    return getattr(optimizer, "steps_like", type(optimizer))


def step_factor(optimizer: torch.optim.Optimizer, weight: Tensor) -> Tensor | float | None:
    """What the last step in ``weight`` was multiplied by beside what its base kind does; None where that is not known.

    An optimizer that ``steps_like`` another has ``step_factors``, by weight. A vector that is not there had its step as
    it was; a matrix that is not there has had none yet.
    """
    factors: Mapping[Tensor, Tensor] | None = getattr(optimizer, "step_factors", None)
    if factors is None or (weight not in factors and weight.dim() < 2):
        return 1.0
    return factors.get(weight)


def _change(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    state: dict[str, Any],
    weight: Tensor,
    factor: Tensor | float,
) -> Tensor | None:
    kind, lr, sign = base_kind(optimizer), factor * float(group["lr"]), -1.0 if group.get("maximize") else 1.0
    if kind in (torch.optim.Adam, torch.optim.AdamW) and "exp_avg" in state:
        beta1, _ = group["betas"]
        moment = _wide(state["exp_avg"]) / (1 - float(beta1) ** float(state["step"]))
        push = lr * sign * moment / (root_of_second_moment(group, state) + group["eps"])
        decoupled = kind is torch.optim.AdamW or group.get("decoupled_weight_decay", False)
        decay = lr * group["weight_decay"] if decoupled else 0.0
        return -push - decay * (_wide(weight) + push) / (1 - decay)  # decay is of the weight before the step
    if type(optimizer) is torch.optim.SGD and state.get("momentum_buffer") is not None and not group["nesterov"]:
        return -lr * sign * _wide(state["momentum_buffer"])
    return None


def root_of_second_moment(group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    """√v̂ of Adam: bias taken off, the largest so far with AMSGrad."""
    second = _wide(state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"])
    return (second / (1 - float(group["betas"][1]) ** float(state["step"]))).sqrt()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.dtype in NARROW else tensor


class Mover:
    """Puts weights at ``origin + sum of coordinate * direction``, in place.

    What it gives depends on the coordinates alone, never on where it was before: points can be visited in any order,
    left out and taken up again, with the same bits. The first coordinate is slow (two passes over the weights), the
    last one fast (one), so visit a plane line by line.
    """

    def __init__(self, weights: Sequence[Tensor], origin: Sequence[Tensor], *directions: Direction) -> None:
        self._weights, self._origin = list(weights), [_wide(part) for part in origin]
        self._directions = [
            [part.to(start.dtype) for part, start in zip(direction, self._origin, strict=True)]
            for direction in directions
        ]
        self._line = self._origin
        """Origin of the line along the last direction."""
        self._outer: tuple[float, ...] = (0.0,) * (len(directions) - 1)
        self._on_host = all(weight.device.type == "cpu" for weight in self._weights)
        self._narrow = any(weight.dtype in NARROW for weight in self._weights)

    @torch.no_grad()
    def to(self, *coordinates: float) -> None:
        """Overwrite the weights with those at ``coordinates``; at zero with the origin, bit for bit."""
        outer, last = coordinates[:-1], coordinates[-1]
        if outer != self._outer:
            self._line, self._outer = self._origin, outer
            for distance, direction in zip(outer, self._directions, strict=False):
                if distance:
                    self._line = list(torch._foreach_add(self._line, direction, alpha=distance))
        if last and self._narrow:
            torch._foreach_copy_(self._weights, torch._foreach_add(self._line, self._directions[-1], alpha=last))
            return
        if last and self._on_host:
            # One pass over memory where a copy and an addition in place are two.
            for weight, start, along in zip(self._weights, self._line, self._directions[-1], strict=True):
                torch.add(start, along, alpha=last, out=weight)
            return
        torch._foreach_copy_(self._weights, self._line)
        if last:
            torch._foreach_add_(self._weights, self._directions[-1], alpha=last)
