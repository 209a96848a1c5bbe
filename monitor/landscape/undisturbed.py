"""Borrow a model in the middle of its training and give it back as it was, bit for bit."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Borrowed:
    """A model whose weights may be overwritten until it is given back."""

    weights: list[Tensor]
    """The data of what moves. Writing to it is not seen by autograd, whose graph may be alive."""
    saved: list[Tensor]
    """A copy of the weights as they were."""
    same_randomness: Callable[[], None]
    """Puts the random states back to where they were at the beginning, for the next evaluation."""


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Inside, ``model`` is in eval mode and without gradients; afterwards nothing has happened to it, weights aside.

    Restored from copies: buffers (running statistics), the mode of every module, the random states of torch (CPU and
    CUDA), NumPy and Python. Gradients are not touched. Autocast does not remember what it makes of the weights here: of
    some versions of torch the training would get it, in the same autocast region, and no gradient would flow.

    Yields:
        What puts the random states back to where they were at the beginning, for the next evaluation.
    """
    buffers = [buffer.data for buffer in model.buffers()]
    saved = [buffer.clone() for buffer in buffers]
    modes = [(module, module.training) for module in model.modules()]
    states = _random_states()
    remembers = torch.is_autocast_cache_enabled()
    try:
        torch.set_autocast_cache_enabled(False)
        model.eval()
        with torch.no_grad():
            yield lambda: _set_random_states(states)
    finally:
        torch.set_autocast_cache_enabled(remembers)
        with torch.no_grad():
            for buffer, copy in zip(buffers, saved, strict=True):
                buffer.copy_(copy)
        for module, training in modes:
            module.training = training
        _set_random_states(states)


def moving(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, each once; frozen ones stay where they are in every look at the landscape.

    Raises:
        ValueError: nothing is trained, or the weights lie in pieces on several ranks.
    """
    parameters = [
        one for one in model.parameters() if one.requires_grad and (one.is_floating_point() or one.is_complex())
    ]
    if not parameters:
        raise ValueError("every weight of the model is frozen (requires_grad is False), so there is nowhere to go")
    kinds = {type(one).__name__ for one in [*parameters, *(one.data for one in parameters)]}
    wrappers = {type(module).__name__ for module in model.modules()} & {"FullyShardedDataParallel"}
    if "DTensor" in kinds or wrappers:
        raise ValueError(
            "the weights lie in pieces on several ranks (FSDP or tensor parallel), and a look at the landscape moves "
            "whole ones. Save a checkpoint of the whole model and look at that in one process"
        )
    return parameters


def float_buffers(model: nn.Module) -> list[Tensor]:
    """Running statistics and the like, each once."""
    return [buffer.data for buffer in model.buffers() if buffer.is_floating_point()]


@contextlib.contextmanager
def undisturbed(model: nn.Module, *, with_buffers: bool = False) -> Iterator[Borrowed]:
    """As :func:`at_rest`, and the weights, too, are restored: from a copy, never by subtracting what was added.

    ``with_buffers`` lets the floating-point buffers move as well, behind the weights: between two checkpoints the
    running statistics of one are wrong at the other.
    """
    weights = [parameter.data for parameter in moving(model)]
    weights += float_buffers(model) if with_buffers else []
    saved = [weight.clone() for weight in weights]
    with at_rest(model) as same_randomness:
        try:
            yield Borrowed(weights, saved, same_randomness)
        finally:
            for weight, copy in zip(weights, saved, strict=True):
                weight.copy_(copy)


@contextlib.contextmanager
def same_randomness_after() -> Iterator[None]:
    """Whatever is drawn inside, the random states of torch, NumPy and Python are afterwards what they were before."""
    states = _random_states()
    try:
        yield
    finally:
        _set_random_states(states)


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
