"""Checkpoints: a new folder per step, written under a temporary name, COMMIT.json last, then renamed.

checkpoints/00000200/
  model.safetensors    weights
  training.pt          optimizer, gradient scaler, sampler position, step, tokens seen
  rank-00000.pt        random states of torch, CUDA, numpy and Python, one file per rank
  COMMIT.json          step, attempt, world size, and size and SHA-256 of every file above

A folder without a COMMIT.json, or one that disagrees with its files, is incomplete and is never resumed from. Tensors
are read back with ``torch.load(weights_only=True)`` or by safetensors: a checkpoint can hold no code.
"""

from __future__ import annotations

import os
import pickle
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from monitor.errors import RunError
from trainer.commit import MODEL, TRAINING, commit, keep_newest, remove_leftovers, sync_file, temporary_folder
from trainer.optim import load_optimizer
from trainer.parallel import Parallel
from trainer.tasks.base import EpochSampler


@dataclass(slots=True)
class State:
    """Everything that training changes, and that resuming must restore. The schedule is a function of ``step``."""

    model: nn.Module
    optimizer: Optimizer
    scaler: GradScaler
    sampler: EpochSampler
    step: int = 0
    """Optimizer steps completed."""
    tokens: int = 0
    """Training tokens seen, over all ranks."""


def save(checkpoints: Path, state: State, *, attempt: int, parallel: Parallel, keep_last: int) -> Path:
    """Write the checkpoint of ``state.step``; every rank calls this at the same step. Then delete older ones.

    Raises:
        OSError: the disk refuses; no complete checkpoint has been touched then.
    """
    final = checkpoints / f"{state.step:08d}"
    folder = temporary_folder(checkpoints, state.step, attempt)
    if parallel.is_first:
        remove_leftovers(checkpoints)
        folder.mkdir(parents=True)
    parallel.barrier()
    _save_tensors(folder / _rank_file(parallel.rank), _random_states(parallel.device))
    if parallel.is_first:
        safetensors.torch.save_model(state.model, str(folder / MODEL))
        sync_file(folder / MODEL)
        _save_tensors(folder / TRAINING, _training_state(state))
    parallel.barrier()
    if parallel.is_first:
        commit(
            folder,
            final,
            step=state.step,
            attempt=attempt,
            world_size=parallel.world_size,
            torch_version=str(torch.__version__),
        )
        keep_newest(checkpoints, keep_last)
    parallel.barrier()
    return final


def restore(path: Path, state: State, parallel: Parallel) -> list[str]:
    """Bring ``state`` and the random states back to what they were; gives back what could not be restored exactly.

    Random states come last: building anything before them may draw numbers.

    Raises:
        RunError: the checkpoint is of another model, optimizer or data.
    """
    remarks = []
    try:
        safetensors.torch.load_model(state.model, str(path / MODEL), device=str(parallel.device))
        training = _load_tensors(path / TRAINING, parallel.device)
        load_optimizer(state.optimizer, training["optimizer"])
        state.sampler.load_state_dict(training["sampler"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:600]
        raise RunError(f"checkpoint {path} does not fit this configuration: {reason}") from None
    if training["scaler"] and state.scaler.is_enabled():
        state.scaler.load_state_dict(training["scaler"])
    state.step, state.tokens = training["step"], training["tokens"]
    own = path / _rank_file(parallel.rank)
    if own.exists():
        remarks += _restore_random_states(_load_tensors(own, torch.device("cpu")))
    else:
        remarks.append(
            f"rank {parallel.rank} has no random state in the checkpoint (other number of processes): dropout differs"
        )
    return remarks


def _training_state(state: State) -> dict[str, Any]:
    return {
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "sampler": state.sampler.state_dict(),
        "step": state.step,
        "tokens": state.tokens,
    }


def _random_states(device: torch.device) -> dict[str, Any]:
    """As tensors and plain numbers: ``weights_only`` loading refuses numpy arrays."""
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
        "torch_version": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_random_states(states: dict[str, Any]) -> list[str]:
    version, gauss, cached = states["python"][0], states["python"][1], states["python"][2]
    random.setstate((version, tuple(gauss), cached))
    numpy_state = states["numpy"]
    keys = numpy_state["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy_state["position"], numpy_state["has_gauss"], numpy_state["cached"]))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    remarks = []
    if states["torch_version"] != str(torch.__version__):
        remarks.append(
            f"written by torch {states['torch_version']}, resumed by {torch.__version__}: rounding may differ"
        )
    if states["threads"] != torch.get_num_threads():
        remarks.append(
            f"written with {states['threads']} CPU threads, resumed with {torch.get_num_threads()}: rounding may differ"
        )
    return remarks


def _save_tensors(path: Path, content: dict[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def _load_tensors(path: Path, device: torch.device) -> dict[str, Any]:
    """Raises ``RunError`` for anything but tensors and plain values: no code is ever loaded from a run directory."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError) as error:
        raise RunError(f"checkpoint file {path} cannot be read: {' '.join(str(error).split())[:300]}") from None


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"
