"""Each attention and MLP in pieces over the processes, which all compute the same examples (tensor parallel).

The first matrix of a pair is split by outputs, the second by inputs, so that one sum over processes per pair is all
they say to each other. Source: Shoeybi et al. 2019 (Megatron-LM), https://arxiv.org/abs/1909.08053, section 3.
"""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.optim import Optimizer

from monitor.errors import ConfigError
from trainer.parallel.group import Parallel
from trainer.parallel.layout import Layout
from trainer.tasks.gpt import GPT


class TensorParallel(Layout):
    """Layers split over all processes; norms and embeddings are whole on each."""

    whole = False
    alone = False

    def place(self, model: nn.Module) -> nn.Module:
        split_layers(model, mesh_of(self.parallel))
        return model

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        return homogeneous(optimizer)


def mesh_of(parallel: Parallel) -> DeviceMesh:
    """The processes in a row; where both kinds of pieces are combined, rows (``data``) of neighbours (``tensor``)."""
    if parallel.tensor_size > 1 and parallel.data_size > 1:
        shape = (parallel.data_size, parallel.tensor_size)
        return init_device_mesh(parallel.device.type, shape, mesh_dim_names=("data", "tensor"))
    return init_device_mesh(parallel.device.type, (parallel.world_size,))


def split_layers(model: nn.Module, mesh: DeviceMesh) -> None:
    """Replace the matrices of attention and MLP by this process's pieces of them.

    Raises:
        ConfigError: it is not known how to split this model.
    """
    if not isinstance(model, GPT):
        raise ConfigError(
            f"it is not known how to split the layers of a {type(model).__name__} over processes. Tensor parallelism "
            "is for task.kind = gpt; parallel.mode = ddp, zero1 and fsdp are for every task."
        )
    for block in model.blocks:
        styles: dict[str, ParallelStyle] = {
            "attn.qkv": ColwiseParallel(),  # rows are ordered by head: whole heads on each process
            "attn.proj": RowwiseParallel(),
            "mlp.up": ColwiseParallel(),
            "mlp.down": RowwiseParallel(),
        }
        parallelize_module(block, mesh, styles)


def homogeneous(optimizer: Optimizer) -> Optimizer:
    """Split each parameter group into tensors in pieces and whole ones: a fused update takes one kind at a time."""
    groups = []
    for group in optimizer.param_groups:
        for in_pieces in (True, False):
            members = [parameter for parameter in group["params"] if isinstance(parameter, DTensor) == in_pieces]
            if members:
                groups.append({**group, "params": members})
    optimizer.param_groups[:] = groups
    return optimizer
