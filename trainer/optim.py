"""The optimizer, with decay on matrices only. What torch has is torch's; the rest is written as in its paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainer.config import OptimizerConfig

ParameterGroups = list[dict[str, Any]]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Over two parameter groups: 0 with weight decay, 1 without (left out when it would be empty).

    Decay is decoupled, that is, taken off the weights beside the gradient's step, in adamw, stable_adamw and lamb. In
    adam, sgd and lars it is L2: added to the gradient, so that it goes through momentum and scaling.

    ``fused`` does the whole update in one kernel, on CUDA and on CPU; it gives the same numbers to rounding.
    """
    groups = decay_groups(model, config.weight_decay)
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in model.parameters())
    betas, eps = (config.beta1, config.beta2), config.eps
    match config.kind:
        case "adamw":
            return AdamW(groups, lr=config.lr, betas=betas, eps=eps, fused=fused)
        case "stable_adamw":
            return StableAdamW(groups, lr=config.lr, betas=betas, eps=eps)
        case "lamb":
            return LAMB(groups, lr=config.lr, betas=betas, eps=eps)
        case "adam":
            return Adam(groups, lr=config.lr, betas=betas, eps=eps, fused=fused)
        case "sgd":
            nesterov = config.nesterov and config.momentum > 0
            return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=fused)
        case "lars":
            return LARS(groups, lr=config.lr, momentum=config.momentum, trust=config.trust)


def decay_groups(model: nn.Module, weight_decay: float) -> ParameterGroups:
    """Parameters with two or more dimensions are decayed; biases, norm gains and other vectors are not.

    A tied tensor appears once: ``named_parameters`` leaves out repetitions.
    """
    trainable = [p for _, p in model.named_parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.dim() >= 2]
    vectors = [p for p in trainable if p.dim() < 2]
    groups: ParameterGroups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class LARS(Optimizer):
    """SGD with momentum whose rate in each matrix is in proportion to the matrix's norm over its gradient's::

        v = momentum v + lr λ (g + wd θ)      λ = trust ‖θ‖ / (‖g‖ + wd ‖θ‖), 1 for vectors and where a norm is 0
        θ = θ - v

    Source: You et al. 2017, https://arxiv.org/abs/1708.03888, algorithm 1.
    """

    steps_like = SGD
    """Apart from ``step_factors``; read by ``monitor.landscape.stability``."""

    def __init__(self, groups: ParameterGroups, *, lr: float, momentum: float, trust: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0})
        self.step_factors: dict[Tensor, Tensor] = {}
        """λ of each matrix in the last step, on the device. No part of the state: a checkpoint does not have it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step from the gradients that are there, without a closure."""
        assert closure is None
        for group in self.param_groups:
            decay = group["weight_decay"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                velocity = state.setdefault("momentum_buffer", torch.zeros_like(weight))
                push = weight.grad + decay * weight
                if weight.dim() >= 2:
                    reach = group["trust"] * weight.norm()
                    ratio = _ratio(reach, weight.grad.norm() + decay * weight.norm())
                    self.step_factors[weight] = ratio
                    push *= ratio
                velocity.mul_(group["momentum"]).add_(push, alpha=group["lr"])
                weight.sub_(velocity)


class _PerTensorAdamW(Optimizer):
    """AdamW whose step in each tensor is multiplied by a number of that tensor's own, left on the device."""

    steps_like = AdamW
    """Apart from ``step_factors``; read by ``monitor.landscape.stability``."""

    def __init__(self, groups: ParameterGroups, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.step_factors: dict[Tensor, Tensor] = {}
        """That number in the last step, where it is not 1 by rule. No part of the state: a checkpoint has it not."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step from the gradients that are there, without a closure."""
        assert closure is None
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                m = state.setdefault("exp_avg", torch.zeros_like(weight))
                v = state.setdefault("exp_avg_sq", torch.zeros_like(weight))
                state["step"] = step = state.get("step", 0) + 1
                m.lerp_(weight.grad, 1 - beta1)
                v.mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
                v_hat = v / (1 - beta2**step)
                update = m / (1 - beta1**step) / (v_hat.sqrt() + group["eps"]) + group["weight_decay"] * weight
                factor = self.factor(weight, v_hat, update, group["eps"])
                if factor is not None:
                    self.step_factors[weight] = factor
                    update *= factor
                weight.sub_(update, alpha=group["lr"])

    def factor(self, weight: nn.Parameter, v_hat: Tensor, update: Tensor, eps: float) -> Tensor | None:
        """What the step in ``weight`` is multiplied by, None for 1; ``v_hat`` is the second moment without its bias."""
        raise NotImplementedError


class StableAdamW(_PerTensorAdamW):
    """AdamW whose step is divided by max(1, RMS_t), RMS_t = √(mean(g² / max(v̂, ε²))): shorter where v lags behind.

    Source: Wortsman et al. 2023, https://arxiv.org/abs/2304.13013, algorithm 2.
    """

    def factor(self, weight: nn.Parameter, v_hat: Tensor, update: Tensor, eps: float) -> Tensor:
        assert weight.grad is not None
        rms = (weight.grad.square() / v_hat.clamp(min=eps**2)).mean().sqrt()
        return 1 / rms.clamp(min=1.0)


class LAMB(_PerTensorAdamW):
    """AdamW whose step in a matrix is as long as the matrix itself times the learning rate; vectors are AdamW's.

    Source: You et al. 2020, https://arxiv.org/abs/1904.00962, algorithm 2, with φ the identity.
    """

    def factor(self, weight: nn.Parameter, v_hat: Tensor, update: Tensor, eps: float) -> Tensor | None:
        return _ratio(weight.norm(), update.norm()) if weight.dim() >= 2 else None


def _ratio(weight: Tensor, update: Tensor) -> Tensor:
    """Trust ratio of two norms; 1 where one of them is 0, so that a matrix of zeros can leave zero."""
    return torch.where((weight > 0) & (update > 0), weight / update, 1.0)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Take over the saved moments, and keep the options that ``optimizer`` was built with.

    torch's ``load_state_dict`` takes the options too: a run resumed with another beta2 or weight decay would go on with
    the old one.

    Raises:
        ValueError: the state is that of another optimizer, or of other parameters.
    """
    options = [{name: group[name] for name in group if name != "params"} for group in optimizer.param_groups]
    for ours, theirs in zip(options, saved["param_groups"], strict=False):
        if missing := ours.keys() - theirs.keys():
            raise ValueError(
                f"the optimizer here is {type(optimizer).__name__} and the checkpoint's was another, without "
                f"{', '.join(sorted(missing))}. Keep optimizer.kind to resume, or start a new run"
            )
    optimizer.load_state_dict(dict(saved))
    for group, kept in zip(optimizer.param_groups, options, strict=True):
        group.update(kept)


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of tensors that the optimizer keeps; 0 before its first step."""
    tensors = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
