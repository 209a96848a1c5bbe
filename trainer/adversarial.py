"""Examples moved against the model: pixels of images, embeddings of text."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from monitor.errors import ConfigError
from trainer.config import AdversarialConfig
from trainer.tasks.base import Batch, Task


def attacked(task: Task, model: nn.Module, batch: Batch, config: AdversarialConfig, scaler: GradScaler) -> Batch:
    """``batch``, on the device, whose first ``config.share`` is moved by ``epsilon`` along the sign of the gradient.

    One more forward and backward through ``model`` in evaluation mode, which draws no random number and touches neither
    running statistics nor gradients. Source: Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572, section 4; on
    embeddings, Miyato et al. 2017, https://arxiv.org/abs/1605.07725.

    Raises:
        ConfigError: the task has nothing that could be moved.
    """
    assert config.epsilon is not None  # the caller asks only when it is on
    count = max(1, round(config.share * len(batch.inputs)))
    few = batch.first(count)
    shift = task.no_shift(model, few)
    if shift is None:
        raise ConfigError(
            f"adversarial.epsilon = {config.epsilon:g}: task {task.name} has no inputs that can be moved; "
            "its no_shift method gives none. Use adversarial.epsilon = none."
        )
    shift.requires_grad_()
    was_training = model.training
    model.eval()
    try:
        loss = scaler.scale(task.loss(model, replace(few, shift=shift)))
        (gradient,) = torch.autograd.grad(loss, [shift])
    finally:
        model.train(was_training)
    # In fp16 an overflowing loss scale gives NaN, which must not reach the weights this way.
    move = config.epsilon * torch.nan_to_num(gradient).sign()
    return replace(batch, shift=_padded(move, len(batch.inputs)))


def _padded(move: Tensor, count: int) -> Tensor:
    """Zeros for the examples that are left as they are."""
    return torch.cat([move, move.new_zeros(count - len(move), *move.shape[1:])])
