"""Every generator that training draws from, and what else decides the bits of a step: taken, set again, held apart."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of torch, CUDA, numpy and Python, as tensors and plain numbers: ``weights_only`` loading refuses
    numpy arrays.

    cuDNN has no generator of its own: its dropout seeds itself from torch's on the device, which is among these.
    """
    _, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": position,
            "has_gauss": has_gauss,
            "cached": cached,
        },
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Go on drawing where ``states`` were taken."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    numpy_state = states["numpy"]
    keys = numpy_state["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy_state["position"], numpy_state["has_gauss"], numpy_state["cached"]))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def arithmetic(device: torch.device, world_size: int) -> dict[str, Any]:
    """What decides how sums are rounded: a step is repeated bit for bit only where all of this is the same."""
    facts: dict[str, Any] = {
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": world_size,
        "CPU threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        facts["cuDNN"] = torch.backends.cudnn.version()
        facts["cuDNN benchmark"] = torch.backends.cudnn.benchmark
    return facts
