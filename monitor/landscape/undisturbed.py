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
    """The parameters' data. Writing to it is not seen by autograd, whose graph may be alive."""
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


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[Borrowed]:
    """As :func:`at_rest`, and the weights, too, are restored: from a copy, never by subtracting what was added."""
    weights = [parameter.data for parameter in model.parameters()]
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
