"""The optimizer, with decay on matrices only."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from trainer.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """AdamW or SGD over two parameter groups: 0 with weight decay, 1 without (left out when it would be empty).

    ``fused`` does the whole update in one kernel, on CUDA and on CPU; it gives the same numbers to rounding.
    """
    groups = decay_groups(model, config.weight_decay)
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in model.parameters())
    if config.kind == "sgd":
        return SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov and config.momentum > 0,
            fused=fused,
        )
    return AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters with two or more dimensions are decayed; biases, norm gains and other vectors are not.

    A tied tensor appears once: ``named_parameters`` leaves out repetitions.
    """
    trainable = [p for _, p in model.named_parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.dim() >= 2]
    vectors = [p for p in trainable if p.dim() < 2]
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of tensors that the optimizer keeps; 0 before its first step."""
    tensors = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
