"""Weights and optimizer state that are spread over processes: each writes its own part, any number of them can read it.

torch.distributed.checkpoint plans who writes and who reads what. The files are safetensors, one per process, which can
hold no code (torch's own format for the index is a pickle); an entry is a tensor, or a box of one with its offsets.

    blocks.0.mlp.up.weight                       a parameter or buffer
    optimizer/blocks.0.mlp.up.weight/exp_avg     what the optimizer keeps for it
    optimizer/blocks.0.mlp.up.weight/step()      the same, a tensor without dimensions; step= a Python number

A checkpoint of a layout with whole copies (model.safetensors, training.pt) is read into pieces too, and the other way
round. Equal numbers of processes in the same layout go on bit for bit; otherwise sums are taken in another order.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from monitor.hook.sharded import local

OPTIMIZER = "optimizer/"
WITHOUT_DIMENSIONS, PLAIN = "()", "="
"""End the name of a tensor without dimensions and of a Python number, both kept as tensors of one element."""

Content = dict[str, Any]
"""Entries as above, each with this process's piece."""


def save_sharded(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Write this process's part into ``folder``; every process calls it at the same time.

    Raises:
        OSError: the disk refuses.
    """
    content = {**_weights(model), **_moments(model, optimizer)}
    try:
        save(content, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:  # a BaseException, which nobody catches
        raise OSError(f"checkpoint {folder} cannot be written: {_reason(error)}") from None


def load_sharded(
    folder: Path, model: nn.Module, optimizer: Optimizer, training: Mapping[str, Any]
) -> tuple[tuple[Content, Content], tuple[Content, Content]]:
    """Bring ``model`` and ``optimizer`` to what they were; every process calls it at the same time.

    Args:
        training: content of training.pt. Of a layout with whole copies it holds the optimizer's state, and the
            parameters' names in its order.

    Returns:
        This process's weights and optimizer state, each as read and as they then are.

    Raises:
        ValueError: the checkpoint is of another model or optimizer.
    """
    reader = HuggingFaceStorageReader(str(folder))
    saved = reader.read_metadata()
    named = _names(model)
    _refuse_strangers(saved, named)
    by_name = {_as_saved(names, saved): tensor for tensor, names in named}
    weights: Content = {name: _empty(tensor, tensor.dtype) for name, tensor in by_name.items()}
    moments = _cut(training, model, optimizer) if "optimizer" in training else _room(saved, model, optimizer)
    wanted = weights if "optimizer" in training else {**weights, **moments}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads it all: as meant
            load(wanted, storage_reader=reader, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        raise ValueError(_reason(error)) from None
    with torch.no_grad():
        for name, tensor in by_name.items():
            local(tensor).copy_(local(weights[name]))
    _assign(optimizer, model, moments)
    now = {name: tensor.detach() for name, tensor in by_name.items()}
    return (_pieces(weights), _pieces(now)), (_pieces(moments), _pieces(_moments(model, optimizer)))


def _names(model: nn.Module) -> list[tuple[Tensor, list[str]]]:
    """Every parameter and buffer with its names; a tied one has several."""
    found: dict[int, tuple[Tensor, list[str]]] = {}
    # From state_dict: after a forward without backward FSDP2's modules hold whole tensors; this brings the pieces back.
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            found.setdefault(id(value), (value, []))[1].append(name)
    return list(found.values())


def _as_saved(names: list[str], saved: Metadata) -> str:
    return next((name for name in names if name in saved.state_dict_metadata), names[0])


def _weights(model: nn.Module) -> Content:
    return {names[0]: tensor.detach() for tensor, names in _names(model)}


def _holder(optimizer: Optimizer) -> Optimizer:
    """The optimizer that holds this process's state: inside ZeroRedundancyOptimizer, ``optim``.

    Not by its class: importing it takes half a second, for one mode alone.
    """
    inner = getattr(optimizer, "optim", None)
    return inner if isinstance(inner, Optimizer) else optimizer


def _owned(model: nn.Module, optimizer: Optimizer) -> list[tuple[str, Tensor]]:
    named = {id(tensor): names[0] for tensor, names in _names(model)}
    parameters = [parameter for group in _holder(optimizer).param_groups for parameter in group["params"]]
    return [(named[id(parameter)], parameter) for parameter in parameters]


def _moments(model: nn.Module, optimizer: Optimizer) -> Content:
    state = _holder(optimizer).state
    return {
        entry: value
        for name, parameter in _owned(model, optimizer)
        for key, kept in state.get(parameter, {}).items()
        for entry, value in [_entry(name, key, kept)]
    }


def _entry(name: str, key: str, kept: Any) -> tuple[str, Tensor]:
    """An optimizer's value as an entry: a tensor with dimensions."""
    entry = f"{OPTIMIZER}{name}/{key}"
    if not isinstance(kept, Tensor):
        return entry + PLAIN, torch.tensor([kept], dtype=torch.int64 if isinstance(kept, int) else torch.float64)
    return (entry, kept) if kept.dim() else (entry + WITHOUT_DIMENSIONS, kept.reshape(1))


def _room(saved: Metadata, model: nn.Module, optimizer: Optimizer) -> Content:
    """Empty tensors for what the checkpoint keeps for this process's parameters: of the parameter's shape and spread,
    or a single element. Nothing else is allocated, whatever the file says."""
    room: Content = {}
    owned = dict(_owned(model, optimizer))
    for entry, recorded in saved.state_dict_metadata.items():
        name, _, key = entry.removeprefix(OPTIMIZER).rpartition("/")
        if not entry.startswith(OPTIMIZER) or name not in owned or not isinstance(recorded, TensorStorageMetadata):
            continue
        parameter, dtype = owned[name], recorded.properties.dtype
        if key.endswith((WITHOUT_DIMENSIONS, PLAIN)) and recorded.size.numel() == 1:
            room[entry] = torch.zeros(1, dtype=dtype)
        elif recorded.size == parameter.shape:
            room[entry] = _empty(parameter, dtype)
        else:
            raise ValueError(f"{entry} has shape {list(recorded.size)}, and the parameter {list(parameter.shape)}")
    return room


def _cut(training: Mapping[str, Any], model: nn.Module, optimizer: Optimizer) -> Content:
    """This process's pieces of an optimizer state that was written whole."""
    if "parameters" not in training:
        raise ValueError("it was written before optimizer states could be spread over processes")
    number = {name: index for index, name in enumerate(training["parameters"])}
    state = training["optimizer"]["state"]
    return {
        entry: _piece(value, parameter)
        for name, parameter in _owned(model, optimizer)
        if name in number
        for key, kept in state.get(number[name], {}).items()
        for entry, value in [_entry(name, key, kept)]
    }


def _piece(whole: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    shape, offset = compute_local_shape_and_global_offset(whole.shape, like.device_mesh, like.placements)
    part = whole[tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))]
    own = _empty(like, whole.dtype)
    local(own).copy_(part)
    return own


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor spread as ``like`` is, made from the local piece: DTensor's own operations may be collective."""
    piece = torch.empty_like(local(like), dtype=dtype, requires_grad=False)
    if not isinstance(like, DTensor):
        return piece
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(piece, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def _assign(optimizer: Optimizer, model: nn.Module, moments: Content) -> None:
    holder = _holder(optimizer)
    number = {name: index for index, (name, _) in enumerate(_owned(model, optimizer))}
    state: dict[int, dict[str, Any]] = {}
    for entry, value in moments.items():
        name, _, key = entry.removeprefix(OPTIMIZER).rpartition("/")
        kept = state.setdefault(number[name], {})
        if key.endswith(PLAIN):
            kept[key.removesuffix(PLAIN)] = value.item()
        elif key.endswith(WITHOUT_DIMENSIONS):
            kept[key.removesuffix(WITHOUT_DIMENSIONS)] = value.reshape(())
        else:
            kept[key] = value
    holder.load_state_dict({**holder.state_dict(), "state": state})


def _refuse_strangers(saved: Metadata, named: list[tuple[Tensor, list[str]]]) -> None:
    """What is missing torch refuses itself; what is too much it would leave unread."""
    mine = [name for _, names in named for name in names]
    all_names: list[list[str] | None] = [mine]
    if dist.is_initialized():
        all_names = [None] * dist.get_world_size()
        dist.all_gather_object(all_names, mine)
    known = {name for names in all_names for name in names or ()}
    strange = sorted(name for name in saved.state_dict_metadata if not name.startswith(OPTIMIZER) and name not in known)
    if strange:
        raise ValueError(f"it holds {len(strange)} tensors that the model has not, {strange[0]} first")


def _pieces(content: Content) -> Content:
    return {name: local(value) for name, value in content.items()}


def _reason(error: CheckpointException) -> str:
    """The first process's error alone."""
    first = next(iter(error.failures.values()), (error,))[0]
    return f"{type(first).__name__}: {' '.join(str(first).split())}"[:600]
