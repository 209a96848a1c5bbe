"""Mistakes and trainings that no configuration can express."""

from __future__ import annotations

from torch import nn

from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.tasks.digits import DigitsTask


def forget_optimizer(onset: int, resumed: bool) -> None:
    """The line ``optimizer.load_state_dict`` is missing where a training goes on."""
    if resumed:
        checkpoint.load_optimizer = lambda *given, **named: None


class _FrozenBackbone(DigitsTask):
    """All layers but the last two stay as they were drawn."""

    def build_model(self) -> nn.Module:
        model = super().build_model()
        for parameter in model.get_submodule("layers.0").parameters():
            parameter.requires_grad_(False)
        return model


def frozen_backbone(config: TrainConfig) -> DigitsTask:
    """A task of its own: digits on features that do not train."""
    return _FrozenBackbone(config)
