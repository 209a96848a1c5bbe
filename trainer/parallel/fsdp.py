"""Every tensor in pieces over the processes, put together for the moment in which a block is computed (FSDP2).

With ``parallel.tensor_processes`` the layers are split within groups of neighbours first (see tensor.py), and each
piece again over the groups.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.optim import Optimizer

from trainer.parallel.layout import Layout
from trainer.parallel.tensor import homogeneous, mesh_of, split_layers


class Fsdp(Layout):
    """Fully sharded data parallel, block by block."""

    whole = False
    alone = False

    def place(self, model: nn.Module) -> nn.Module:
        mesh = mesh_of(self.parallel)
        if self.parallel.tensor_size > 1:
            split_layers(model, mesh["tensor"])
            mesh = mesh["data"]
        for block in blocks(model):
            fully_shard(block, mesh=mesh, mp_policy=self._policy())
        fully_shard(model, mesh=mesh, mp_policy=self._policy())
        return model

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        return homogeneous(optimizer)

    def reducing(self, last: bool) -> AbstractContextManager[object]:
        for module in self.wrapped.modules():
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(last, recurse=False)
        return nullcontext()

    def _policy(self) -> MixedPrecisionPolicy:
        """Autocast would bring the weights to bf16 anyway: gathered in bf16 they are half as long on the way.

        fp16 keeps float32 pieces on the way: its gradient scaler looks for overflows in float32.
        """
        if self.config.precision.kind == "bf16":
            return MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        return MixedPrecisionPolicy()


def blocks(model: nn.Module) -> list[nn.Module]:
    """What is gathered and freed at a time: the elements of the model's own lists of modules."""
    return [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]
