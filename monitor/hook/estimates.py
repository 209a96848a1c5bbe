"""The size of an optimizer's update from its own state, without a copy of the weights from before.

Exact to rounding: the optimizer's formula on the numbers that it used, not ``lr * |g| / |w|``, which is the update of
plain SGD and of nothing else. What these formulas leave out is the rounding of the weights themselves. In float32 it
matters when an update is a millionth of its weight; in half precision it decides whether a weight moves at all, so half
precision is never estimated.

    SGD     before the step: d = A (g + wd θ) + B b       ‖Δθ‖ = lr ‖d‖
            A, B from momentum μ, dampening τ, Nesterov:  1 - τ, μ;  Nesterov 1 + μ (1 - τ), μ²;
            first step (no b) 1, 0; Nesterov 1 + μ, 0;    without momentum 1, 0
    Adam    after the step: u = m̂ / (√v̂ + ε)              ‖Δθ‖ = lr ‖u‖
    AdamW   Δθ = -lr (u + wd θ_before), and since θ = θ_before + Δθ
                                                          ‖Δθ‖ = lr ‖u + wd θ‖ / (1 - lr wd)

Source: the algorithms in the documentation of torch.optim.SGD, Adam and AdamW; AdamW: Loshchilov and Hutter 2019,
https://arxiv.org/abs/1711.05101, algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monitor.hook.passes import Owned, RowNorms, bites, measured, norms_of, real

MOST_DECAY = 0.5
"""Of lr * wd. Above it the weights before the step are not well known from those after it."""
_WIDE = frozenset((torch.float32, torch.float64, torch.complex64, torch.complex128))


def estimated(optimizer: torch.optim.Optimizer, owned: Owned) -> str:
    """``sgd``, ``adam`` or, where no formula holds, an empty string. By the very type: a subclass may do anything."""
    group = owned.group
    kind = type(optimizer)
    if kind not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        return ""
    options = [group["weight_decay"], *group.get("betas", ()), group.get("momentum", 0.0)]
    if group.get("differentiable") or any(isinstance(option, Tensor) for option in options):
        return ""
    if owned.parameters[0].dtype not in _WIDE:
        return ""
    for parameter in owned.parameters:
        grad = parameter.grad
        if grad is None or grad.layout != torch.strided or grad.dtype != parameter.dtype:
            return ""
    if kind is torch.optim.SGD and not owned.aligned:
        return ""
    lr = learning_rate(group)
    if kind is not torch.optim.SGD and not isinstance(lr, Tensor) and abs(lr * group["weight_decay"]) > MOST_DECAY:
        return ""
    return "sgd" if kind is torch.optim.SGD else "adam"


def learning_rate(group: dict[str, Any]) -> float | Tensor:
    """Of a parameter group; a tensor on a device stays there."""
    lr = group["lr"]
    if isinstance(lr, Tensor):
        return lr.detach() if lr.device.type != "cpu" else lr.item()
    return float(lr)


def sgd_update(optimizer: torch.optim.Optimizer, owned: Owned) -> RowNorms:
    """Before the step."""
    group = owned.group
    momentum, decay = group["momentum"], group["weight_decay"]
    state = optimizer.state
    buffers: list[Any] = [state[p].get("momentum_buffer") if momentum else None for p in owned.parameters]
    divisor = getattr(optimizer, "grad_scale", None)  # fused: the step itself will unscale
    sign = -1.0 if group["maximize"] else 1.0
    factor = learning_rate(group)
    rows: list[int] = []
    parts: list[Tensor] = []
    for kept in (False, True):  # without a buffer (first step, no momentum), and with one
        chosen = [i for i, buffer in enumerate(buffers) if (buffer is not None) == kept]
        if not chosen:
            continue
        weights = real([owned.parameters[i] for i in chosen])
        grads = real([_grad(owned.parameters[i]) for i in chosen])
        held = real([buffers[i] for i in chosen] if kept else [])
        of_grad, of_buffer = _sgd_coefficients(group, kept)
        for bite in bites(grads, weights, *([held] if kept else [])):
            step = torch._foreach_mul(bite.of(grads), of_grad * sign)
            if divisor is not None:
                torch._foreach_div_(step, divisor.reshape(()).to(step[0].device, non_blocking=True))
            if decay:
                torch._foreach_add_(step, bite.of(weights), alpha=of_grad * decay)
            if kept:
                torch._foreach_add_(step, bite.of(held), alpha=of_buffer)
            parts += norms_of(step)
            rows += [owned.rows[chosen[position]] for position in bite.at]
    return RowNorms(rows, torch.stack(parts), factor)


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _sgd_coefficients(group: dict[str, Any], kept: bool) -> tuple[float, float]:
    """A and B of the module's docstring."""
    momentum, dampening = group["momentum"], group["dampening"]
    if not momentum:
        return 1.0, 0.0
    of_grad, of_buffer = (1 - dampening, momentum) if kept else (1.0, 0.0)
    if group["nesterov"]:
        return 1 + momentum * of_grad, momentum * of_buffer
    return of_grad, of_buffer


@dataclass(frozen=True, slots=True)
class Moments:
    """Adam's state of some parameters after the step."""

    owned: Owned
    m: Sequence[Tensor]
    v: Sequence[Tensor]
    v_used: Sequence[Tensor]
    """The largest v so far with AMSGrad, else v."""
    bias1: Sequence[Any]
    """1 - β1^t of each parameter: a number, or a tensor on the device where the step count is kept there."""
    bias2_root: Sequence[Any]
    """√(1 - β2^t)."""

    @property
    def alike(self) -> bool:
        """Whether all have the same corrections, known on the host."""
        return not isinstance(self.bias1[0], Tensor) and len(set(self.bias1)) == 1


def moments_of(optimizer: torch.optim.Optimizer, owned: Owned) -> Moments | None:
    """None when none of the parameters has a state."""
    rows, parameters, states = [], [], []
    for row, parameter in zip(owned.rows, owned.parameters, strict=True):
        state = optimizer.state.get(parameter)
        if state and "exp_avg_sq" in state:
            rows.append(row)
            parameters.append(parameter)
            states.append(state)
    if not states:
        return None
    v = real([state["exp_avg_sq"] for state in states])
    amsgrad = "max_exp_avg_sq" in states[0] and owned.group.get("amsgrad", False)
    steps = [state["step"] for state in states]
    # Capturable and fused optimizers keep the count on the device: so do the corrections, nobody waits.
    on_device = isinstance(steps[0], Tensor) and steps[0].device.type != "cpu"
    bias1, bias2_root = _bias(owned.group["betas"], steps, on_device)
    return Moments(
        Owned(owned.group, rows, parameters),
        m=real([state["exp_avg"] for state in states]),
        v=v,
        v_used=real([state["max_exp_avg_sq"] for state in states]) if amsgrad else v,
        bias1=bias1,
        bias2_root=bias2_root,
    )  # fmt: skip


def _bias(betas: Any, steps: list[Any], on_device: bool) -> tuple[Sequence[Any], Sequence[Any]]:
    beta1, beta2 = betas
    if on_device:
        count = torch.stack(steps).float().clamp_(min=1)
        # expm1, because in float32 the difference 1 - β^t has lost its digits.
        first, second = (-torch.expm1(count * (math.log(beta) if beta > 0 else -math.inf)) for beta in (beta1, beta2))
        return first.unbind(), second.sqrt_().unbind()
    counts = torch.stack(steps).tolist() if isinstance(steps[0], Tensor) else steps
    # 0 after a first step that a fused optimizer skipped; what it gives is void.
    bias = {count: (1 - beta1 ** max(count, 1), (1 - beta2 ** max(count, 1)) ** 0.5) for count in set(counts)}
    return [bias[count][0] for count in counts], [bias[count][1] for count in counts]


def adam_update(optimizer: torch.optim.Optimizer, moments: Moments) -> tuple[RowNorms, RowNorms]:
    """After the step: norms of the updates, and of the weights, which are at hand."""
    owned = moments.owned
    group = owned.group
    decay = group["weight_decay"] if decoupled(optimizer, group) else 0.0
    lr = learning_rate(group)
    weights = real(owned.parameters)
    m, v = moments.m, moments.v_used
    floor = [group["eps"] * root for root in moments.bias2_root]
    outer = [root / first for root, first in zip(moments.bias2_root, moments.bias1, strict=True)]
    taken = bites(weights, m, v)
    updates: list[Tensor] = []
    lengths: list[Tensor] = []
    for bite in taken:
        root = torch._foreach_sqrt(bite.of(v))
        torch._foreach_add_(root, bite.each(floor, root))
        step = torch._foreach_div(bite.of(m), root)
        torch._foreach_mul_(step, bite.each(outer, step))
        theirs = bite.of(weights)
        if decay:
            torch._foreach_add_(step, theirs, alpha=decay)
        updates += norms_of(step)
        lengths += norms_of(theirs)
    factor = lr / (1 - lr * decay) if decay else lr
    return measured(owned.rows, updates, taken, factor=factor), measured(owned.rows, lengths, taken)


def decoupled(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    """Whether the weights decay beside the gradient's step and not through the gradient."""
    return type(optimizer) is torch.optim.AdamW or bool(group.get("decoupled_weight_decay", False))
