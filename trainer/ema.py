"""A running mean of the weights."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainer.config import EmaConfig


def build_ema(model: nn.Module, config: EmaConfig) -> AveragedModel | None:
    """A copy of ``model`` for the mean, None where none is kept; it begins as the weights after the first update.

    To be built before anything hooks into ``model``: a copy has copies of its hooks. The count that torch keeps beside
    it stays on the CPU, so that updating it waits for no device.
    """
    if config.decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.decay))
