"""Up to which curvature an optimizer's steps come down: the limit that the largest eigenvalue is held against.

Gradient descent with learning rate η comes down a parabola of curvature λ while λ < 2/η; above it, it swings further
with every step. Full-batch training raises its sharpness up to that limit and hovers there. With momentum and with
Adam the limit is another, and Adam's is on the Hessian seen through its preconditioner, P⁻¹H:

    gradient descent            2 / η
    momentum β, dampening τ     2 (1 + β) / ((1 - τ) η)
    Nesterov's momentum β       (2 + 2 β) / ((1 + 2 β) η)
    Adam, AdamW                 (2 + 2 β1) / ((1 - β1) η), of P⁻¹H with P = (1 - β1^t) (√v̂ + ε): 38/η for β1 = 0.9
    RMSprop, momentum μ         2 (1 + μ) / η, of P⁻¹H with P = √v + ε

An optimizer whose step in each tensor is one of these times a number of that tensor (a trust ratio λ of LARS and LAMB,
StableAdamW's 1 / max(1, RMS)) has that limit with P over the number, P being 1 for LARS. It is taken as it was in the
last step. That is exact to first order for a swing at right angles to the rest of the gradient: it changes the number,
too, but what that changes lies along the rest. So the limit tells when a swing begins to grow, not how far it grows:
all three numbers fall as the gradient grows, and a swing that outweighs the rest brakes itself. Where nothing but the
swing is left, at the very bottom, there is no such limit: LARS and LAMB without decay come to rest there at no rate.

Weight decay is no part of the loss that the Hessian is of.

Sources: Cohen et al. 2021, https://arxiv.org/abs/2103.00065, equation 1 and appendix B; Cohen et al. 2022,
https://arxiv.org/abs/2207.14484, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monitor.landscape.directions import base_kind, root_of_second_moment, step_factor

ADAM = (torch.optim.Adam, torch.optim.AdamW)


@dataclass(frozen=True, slots=True)
class Stability:
    """What the largest eigenvalue may be."""

    limit: float
    rule: str
    """The formula."""
    lr: float
    """The highest of the parameter groups."""
    scale: list[Tensor] | None
    """P, one tensor per moving weight, with what a group's lower rate and a tensor's own number make of it; None where
    it is 1 everywhere."""
    preconditioned: bool
    """Whether P is Adam's or RMSprop's."""


def stability(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> Stability | None:
    """The limit for the step that comes next; None for another optimizer, groups that differ in more than their rate
    (and decay), a rate of zero, or before Adam's first step.

    Args:
        optimizer: of torch, or one that steps like it but for a factor: see ``directions.step_factor``.
        parameters: the moving ones, ``undisturbed.moving(model)``.
    """
    kind, own_factors = base_kind(optimizer), hasattr(optimizer, "step_factors")
    groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    own = [groups.get(id(weight)) for weight in parameters]
    used = [group for group in own if group is not None]
    if kind not in (*ADAM, torch.optim.SGD, torch.optim.RMSprop) or len(used) < len(own):
        return None
    lr = max(float(group["lr"]) for group in used)
    factors = {_factor(kind, group) for group in used}
    if len(factors) != 1 or not lr > 0 or any(group.get("maximize") for group in used):
        return None
    ((factor, rule),) = factors
    scale, adaptive = [], kind is not torch.optim.SGD
    for weight, group in zip(parameters, used, strict=True):
        state = optimizer.state.get(weight, {})
        if adaptive and not state:
            return None
        slower = lr / max(float(group["lr"]), lr * 1e-12)  # a group at rest is one whose P is very large
        times = step_factor(optimizer, weight)
        if times is None:
            return None
        scale.append(_preconditioner(kind, group, state, weight) * slower / times)
    if own_factors:
        rule += ", with each tensor's own factor in P"
    uniform = not adaptive and not own_factors and all(float(group["lr"]) == lr for group in used)
    return Stability(factor / lr, rule, lr, None if uniform else scale, adaptive)


def _factor(kind: type, group: dict[str, Any]) -> tuple[float, str]:
    """The limit times the learning rate, and its formula."""
    if kind in ADAM:
        beta1 = float(group["betas"][0])
        return (2 + 2 * beta1) / (1 - beta1), f"(2 + 2 β1) / ((1 - β1) lr) of P⁻¹H, β1 = {beta1:g}"
    beta = float(group["momentum"])
    if kind is torch.optim.RMSprop:
        return 2 * (1 + beta), f"2 (1 + μ) / lr of P⁻¹H, μ = {beta:g}"
    if not beta:
        return 2.0, "2 / lr"
    if group.get("nesterov"):
        return (2 + 2 * beta) / (1 + 2 * beta), f"(2 + 2 β) / ((1 + 2 β) lr), β = {beta:g}"
    damped = 1 - float(group.get("dampening", 0.0))
    return 2 * (1 + beta) / damped, f"2 (1 + β) / ((1 - τ) lr), β = {beta:g}, τ = {1 - damped:g}"


@torch.no_grad()
def _preconditioner(kind: type, group: dict[str, Any], state: dict[str, Any], weight: Tensor) -> Tensor:
    if kind in ADAM:
        warm = 1 - float(group["betas"][0]) ** float(state["step"])
        return warm * (root_of_second_moment(group, state) + group["eps"])
    if kind is torch.optim.RMSprop:
        second = state["square_avg"]
        centre = state["grad_avg"] ** 2 if group["centered"] else 0.0
        return (second - centre).sqrt() + group["eps"]
    return torch.ones_like(weight, memory_format=torch.preserve_format).detach()
