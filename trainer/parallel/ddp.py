"""A full copy of the model in each process, gradients averaged over them in backward (DistributedDataParallel)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer.parallel.layout import Layout


class Ddp(Layout):
    """Data parallel."""

    def wrap(self, model: nn.Module) -> nn.Module:
        # One bucket view per gradient saves a copy and a second set of gradients in memory.
        self.wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
        return self.wrapped

    def reducing(self, last: bool) -> AbstractContextManager[object]:
        assert isinstance(self.wrapped, DistributedDataParallel)
        return nullcontext() if last else self.wrapped.no_sync()
