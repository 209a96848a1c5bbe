"""DDP whose optimizer state is dealt out over the processes: ZeRO stage 1.

Each process updates its share of the parameter tensors and sends them to the others. Source: Rajbhandari et al. 2020,
https://arxiv.org/abs/1910.02054, section 5.1.
"""

from __future__ import annotations

import inspect

import torch
from torch.optim import Optimizer

from monitor.errors import ConfigError
from trainer.optim import LAMB, LARS, StableAdamW
from trainer.parallel.ddp import Ddp

SUPPORTED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, StableAdamW, LARS, LAMB)
"""Optimizers that update each parameter tensor by itself, from what their constructor is given."""


class Zero1(Ddp):
    """Data parallel with the optimizer's state split."""

    whole = False

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        if type(optimizer) not in SUPPORTED:
            raise ConfigError(
                f"parallel.mode = zero1 cannot split the state of {type(optimizer).__name__} over processes. It takes "
                f"{', '.join(kind.__name__ for kind in SUPPORTED)}; with another optimizer use parallel.mode = ddp "
                "or fsdp."
            )
        from torch.distributed.optim import ZeroRedundancyOptimizer  # half a second, and deprecated parts of torch

        accepted = inspect.signature(type(optimizer)).parameters
        options = {name: value for name, value in optimizer.defaults.items() if name in accepted}
        return ZeroRedundancyOptimizer(optimizer.param_groups, optimizer_class=type(optimizer), **options)
