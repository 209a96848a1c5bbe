"""What the loop asks of a way to spread the model over processes; by itself, the way of one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.config import TrainConfig
from trainer.parallel.group import Parallel
from trainer.tasks.base import Batch

Loss = Callable[[nn.Module, Batch], Tensor]
"""(model, micro-batch) to the loss summed over its tokens, in the formats of forward."""
Scaled = Callable[[Tensor], Tensor]
"""A micro-batch's loss to what backward starts from: its share of the step, times the loss scale."""


class Layout:
    """One process with the whole model. The layouts of several processes change what they must.

    The loop uses it in this order: ``place`` the freshly initialised model, ``optimizer`` around the optimizer of what
    is left of it here, ``wrap`` for the forward pass of training; then ``gradients`` once per step.
    """

    whole = True
    """Whether this process holds the whole model, optimizer state included, as every other one does."""
    alone = True
    """Whether this process can run the model without the others taking part."""

    stages = False
    """Whether processes hold different layers."""

    def __init__(self, config: TrainConfig, parallel: Parallel) -> None:
        self.config = config
        self.parallel = parallel
        self.wrapped: nn.Module

    def place(self, model: nn.Module) -> nn.Module:
        """What this process holds of ``model``. Parameters may be replaced, so the optimizer is made afterwards.

        Raises:
            ConfigError: the model cannot be laid out like this.
        """
        return model

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """``optimizer``, or one in its place that does the same update together with the other processes.

        Raises:
            ConfigError: this optimizer cannot be laid out like this.
        """
        return optimizer

    def wrap(self, model: nn.Module) -> nn.Module:
        """What the training forward goes through: ``model`` as placed, or a wrapper."""
        self.wrapped = model
        return model

    def together(self, model: nn.Module) -> nn.Module:
        """What forward passes outside of training go through, on all processes at once: whole outputs on each."""
        return model

    def reducing(self, last: bool) -> AbstractContextManager[object]:
        """For one micro-batch, forward and backward: gradients are reduced over processes only after the last one."""
        return nullcontext()

    def gradients(
        self, model: nn.Module, batches: Sequence[Batch], loss: Loss, scaled: Scaled, *, reduce: bool = True
    ) -> Tensor:
        """Forward and backward of a step's micro-batches; the loss summed over this process's share of the data.

        Args:
            model: what ``wrap`` gave, or its compiled form.
            reduce: whether gradients are reduced over processes at all (a deliberate mistake is that they are not).
        """
        total = torch.zeros((), device=self.parallel.device)
        for index, batch in enumerate(batches):
            with self.reducing(last=reduce and index == len(batches) - 1):
                micro_loss = loss(model, batch.to(self.parallel.device))
                scaled(micro_loss).backward()
            total += micro_loss.detach()
        return total


def build_layout(config: TrainConfig, parallel: Parallel) -> Layout:
    """The layout that ``parallel.mode`` names; with one process, that of one process."""
    if parallel.world_size == 1:
        return Layout(config, parallel)
    # Imported when used: FSDP2, DTensor and pipelining take a second together.
    match config.parallel.mode:
        case "ddp":
            from trainer.parallel.ddp import Ddp

            return Ddp(config, parallel)
        case "zero1":
            from trainer.parallel.zero1 import Zero1

            return Zero1(config, parallel)
        case "fsdp":
            from trainer.parallel.fsdp import Fsdp

            return Fsdp(config, parallel)
        case "tensor":
            from trainer.parallel.tensor import TensorParallel

            return TensorParallel(config, parallel)
        case "pipeline":
            from trainer.parallel.pipeline import Pipeline

            return Pipeline(config, parallel)
