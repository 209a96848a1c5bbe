"""Checkpoints: a new folder per step, written under a temporary name, COMMIT.json last, then renamed.

checkpoints/00000200/
  model.safetensors    weights
  training.pt          optimizer, gradient scaler, sampler position, step, tokens seen, best held-out loss so far, the
                       norms that clipping knows, evaluations without progress, running mean of the weights
  shard-00001-*.safetensors   weights and optimizer instead, where ranks hold different parts: see sharded_state.py
  rank-00000.pt        random states of torch, CUDA, numpy and Python, one file per rank
  COMMIT.json          step, attempt, world size, and size and SHA-256 of every file above

A folder without a COMMIT.json, or one that disagrees with its files, is incomplete and is never resumed from. Tensors
are read back with ``torch.load(weights_only=True)`` or by safetensors: a checkpoint can hold no code.

The training waits for a copy in host memory only; a thread writes the copy while the training goes on. At most one
checkpoint is being written at a time. One that cannot be written is reported, and the training goes on.
"""

from __future__ import annotations

import math
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from monitor.errors import RunError
from trainer.clipping import Clipping
from trainer.commit import MODEL, TRAINING, commit, keep_newest, remove_leftovers, sync_file, temporary_folder
from trainer.config import CheckpointConfig
from trainer.early_stopping import EarlyStopping
from trainer.optim import load_optimizer
from trainer.parallel import Parallel
from trainer.random_states import arithmetic, random_states, set_random_states
from trainer.tasks.base import EpochSampler


@dataclass(slots=True)
class State:
    """Everything that training changes, and that resuming must restore. The schedule is a function of ``step``."""

    model: nn.Module
    optimizer: Optimizer
    scaler: GradScaler
    sampler: EpochSampler
    clipping: Clipping
    early_stopping: EarlyStopping
    ema: AveragedModel | None = None
    """The running mean of the weights, if one is kept."""
    step: int = 0
    """Optimizer steps completed."""
    tokens: int = 0
    """Training tokens seen, over all ranks."""
    in_pieces: bool = False
    """Whether ranks hold different parts of the weights or of the optimizer's state, instead of all the same."""
    best_loss: float = math.inf
    """Lowest held-out loss so far."""
    best_step: int | None = None
    """Where it was; None before the first evaluation."""

    def parts(self) -> dict[str, Any]:
        """What has a ``state_dict`` and may be new at a resume, by its name in the checkpoint."""
        parts: dict[str, Any] = {"early_stopping": self.early_stopping}
        if self.clipping.learns or not self.in_pieces:  # stages have other numbers of tensors
            parts["clipping"] = self.clipping
        return parts if self.ema is None else {**parts, "ema": self.ema}

    def evaluated(self, val_loss: float) -> bool:
        """Take note of the held-out loss of the present weights; whether it is the lowest so far (NaN never is)."""
        if not val_loss < self.best_loss:
            return False
        self.best_loss, self.best_step = val_loss, self.step
        return True


@dataclass(frozen=True, slots=True)
class Saved:
    """What became of one checkpoint."""

    step: int
    path: Path
    size: int = 0
    """Bytes on disk."""
    copy_size: int = 0
    """Bytes of host memory that were held meanwhile; 0 when it was not written in the background."""
    seconds: float = 0.0
    """From the copy to the rename."""
    problem: str | None = None
    """Why there is no such checkpoint, if there is none."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the state after a resume, against what the checkpoint holds."""

    name: str
    problem: str | None = None
    """Why it is not exactly what it was; None when it is, bit for bit."""


class Saver:
    """Writes the checkpoints of one attempt, one at a time.

    ``save`` and ``wait`` are collective: every rank calls them at the same step. What is shared out over ranks is
    written by ``_write_share`` in the calling thread, so that no collective runs beside those of the training; what
    rank 0 holds for all is written by ``_finish``, in a thread where ``background`` says so.
    """

    def __init__(self, checkpoints: Path, config: CheckpointConfig, *, attempt: int, parallel: Parallel) -> None:
        self._checkpoints = checkpoints
        self._config = config
        self._attempt = attempt
        self._parallel = parallel
        self._writing: threading.Thread | None = None
        self._reports: list[Saved] = []

    def save(self, state: State, after_finding: str | None = None) -> None:
        """Begin the checkpoint of ``state.step``, after the one before it is done.

        One that is saved ``after_finding``, a critical one, is marked so and never deleted by ``keep_last``.
        """
        self.wait()
        began = time.perf_counter()
        folder = temporary_folder(self._checkpoints, state.step, self._attempt)
        problem = self._everywhere(lambda: self._make(folder))
        problem = problem or self._everywhere(lambda: self._write_share(folder, state))
        if problem:
            self._report(Saved(state.step, self._final(state.step), problem=problem), folder)
            return
        if self._parallel.is_first:
            self._begin(folder, state, began, after_finding)
        if not self._config.background:
            self.wait()

    def wait(self) -> None:
        """Until no checkpoint is being written, on any rank."""
        self.join()
        self._parallel.barrier()

    def join(self) -> None:
        """Until this rank writes no more; not collective, for a training that ends with an error."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def reports(self) -> Iterator[Saved]:
        """What has become of checkpoints since the last call; each rank tells its own problems, rank 0 the rest."""
        while self._reports:
            yield self._reports.pop(0)

    def _make(self, folder: Path) -> None:
        if self._parallel.is_first:
            remove_leftovers(self._checkpoints)
            folder.mkdir(parents=True)

    def _write_share(self, folder: Path, state: State) -> None:
        """This rank's own part: a few kB, and its pieces of the weights where they are in pieces."""
        device = self._parallel.device
        _save_tensors(
            folder / _rank_file(self._parallel.rank),
            {**random_states(device), "arithmetic": arithmetic(device, self._parallel.world_size)},
        )
        if state.in_pieces:
            from trainer.sharded_state import save_sharded  # a second of imports that one process does without

            save_sharded(folder, state.model, state.optimizer)

    def _begin(self, folder: Path, state: State, began: float, after_finding: str | None) -> None:
        step, keep = state.step, state.best_step if self._config.keep_best else None
        copy_size = 0
        try:
            weights = {} if state.in_pieces else _weights(state.model)
            training = _training_state(state, self._parallel)
            if self._config.background:
                weights, training = _copied((weights, training))
                _wait_for_copies(self._parallel.device)
                copy_size = sum(tensor.nbytes for tensor in _tensors((weights, training)))
        except Exception as error:  # such as no room for the copy: the training itself goes on
            self._report(Saved(step, self._final(step), problem=_said(error)), folder)
            return
        thread = threading.Thread(
            target=self._finish,
            args=(folder, step, keep, weights, training, copy_size, began, after_finding),
            name="checkpoint",
            daemon=True,
        )
        self._writing = thread
        thread.start()

    def _finish(
        self,
        folder: Path,
        step: int,
        keep: int | None,
        weights: dict[str, Tensor],
        training: dict[str, Any],
        copy_size: int,
        began: float,
        after_finding: str | None,
    ) -> None:
        final = self._final(step)
        try:
            if weights:
                safetensors.torch.save_file(weights, folder / MODEL, metadata={"format": "pt"})
                sync_file(folder / MODEL)
            _save_tensors(folder / TRAINING, training)
            size = commit(
                folder,
                final,
                step=step,
                attempt=self._attempt,
                world_size=self._parallel.world_size,
                torch_version=str(torch.__version__),
                after_finding=after_finding,
            )
        except Exception as error:
            self._report(Saved(step, final, problem=_said(error)), folder)
            return
        self._report(Saved(step, final, size, copy_size, time.perf_counter() - began))
        with suppress(OSError):  # what cannot be deleted now is tried again after the next
            keep_newest(self._checkpoints, self._config.keep_last, keep)

    def _report(self, saved: Saved, folder: Path | None = None) -> None:
        if folder is not None and self._parallel.is_first:
            shutil.rmtree(folder, ignore_errors=True)  # what is half written helps nobody, least of all on a full disk
        self._reports.append(saved)

    def _everywhere(self, work: Callable[[], None]) -> str | None:
        """Do ``work`` on every rank; why it failed on this one or on another, None when it did on none."""
        problem = None
        try:
            work()
        except Exception as error:
            problem = _said(error)
        failed = self._parallel.highest(int(problem is not None))
        return problem or ("another process could not write its part" if failed else None)

    def _final(self, step: int) -> Path:
        return self._checkpoints / f"{step:08d}"


def restore(path: Path, state: State, parallel: Parallel) -> list[Part]:
    """Bring ``state`` and the random states back to what they were, and hold every part against the checkpoint.

    Random states come last: building anything before them may draw numbers.

    Raises:
        RunError: the checkpoint is of another model, optimizer or data.
    """
    try:
        training = _load_tensors(path / TRAINING, parallel.device)
        if "best_loss" not in training:
            raise RunError(
                f"checkpoint {path} was written by an earlier version of the trainer, which kept attention weights in "
                "another order. Start a new run, or resume it with that version."
            )
        if state.in_pieces or "optimizer" not in training:
            from trainer.sharded_state import load_sharded

            weights, moments = load_sharded(path, state.model, state.optimizer, training)
        else:
            weights, moments = _load_whole(path, state, training, parallel.device)
        state.sampler.load_state_dict(training["sampler"])
        state.step, state.tokens = training["step"], training["tokens"]
        state.best_loss, state.best_step = training["best_loss"], training["best_step"]
        for name in state.parts().keys() & training.keys():
            state.parts()[name].load_state_dict(training[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise RunError(f"checkpoint {path} does not fit this configuration: {_said(error)}") from None
    if training["scaler"] and state.scaler.is_enabled():
        state.scaler.load_state_dict(training["scaler"])
    return [
        _compared("weights", *weights),
        _compared("optimizer", *moments),
        _compared("loss scaler", training["scaler"], state.scaler.state_dict()),
        _compared("data position", training["sampler"], state.sampler.state_dict()),
        *(
            _compared(name.replace("_", " "), training.get(name), part.state_dict())
            for name, part in state.parts().items()
        ),
        *_restore_share(path / _rank_file(parallel.rank), parallel),
        *_layout(training.get("layout", parallel.layout), parallel.layout),
    ]


ThenNow = tuple[Any, Any]
"""What the checkpoint holds, and what is there after it was restored."""


def _load_whole(path: Path, state: State, training: dict[str, Any], device: torch.device) -> tuple[ThenNow, ThenNow]:
    weights = safetensors.torch.load_file(path / MODEL)
    load_weights(path, state.model, device)
    load_optimizer(state.optimizer, training["optimizer"])
    moments = training["optimizer"]["state"], state.optimizer.state_dict()["state"]
    return (weights, _weights(state.model)), moments


def _layout(then: str, now: str) -> list[Part]:
    return [] if then == now else [Part("layout", f"{then} then, {now} now: sums are taken in another order")]


def load_weights(path: Path, model: nn.Module, device: torch.device) -> None:
    """The weights of the checkpoint at ``path`` into ``model``, which may be tied as it was then.

    Raises:
        RuntimeError: they are another model's.
    """
    safetensors.torch.load_model(model, str(path / MODEL), device=str(device))


def _restore_share(file: Path, parallel: Parallel) -> list[Part]:
    if not file.exists():
        absent = "the checkpoint has none of this process (it is of another number of processes)"
        return [Part("random states", absent), Part("arithmetic", absent)]
    own = _load_tensors(file, torch.device("cpu"))
    try:
        then, now = own.pop("arithmetic"), arithmetic(parallel.device, parallel.world_size)
        set_random_states(own, parallel.device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"checkpoint file {file} holds no random states: {_said(error)}") from None
    changed = [f"{name} {then.get(name)} then, {value} now" for name, value in now.items() if value != then.get(name)]
    if parallel.device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        changed.append("CUDA kernels may add in another order")
    states = _compared("random states", own, random_states(parallel.device))
    return [states, Part("arithmetic", "; ".join(changed) or None)]


def _compared(name: str, then: Any, now: Any) -> Part:
    if then is None:
        return Part(name, "the checkpoint has none, so it begins here")
    where = _difference(then, now)
    return Part(name, None if where is None else f"differs from the checkpoint{where}")


def _difference(then: Any, now: Any) -> str | None:
    """Where two nests of tensors and plain values first differ, `` at a.b``; None when they are equal bit for bit."""
    if isinstance(then, Tensor) and isinstance(now, Tensor):
        same = then.dtype == now.dtype and then.shape == now.shape
        return None if same and torch.equal(_bits(then), _bits(now)) else ""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        if then.keys() != now.keys():
            return f" in the names {sorted(map(str, then.keys() ^ now.keys()))[:4]}"
        pairs: Any = ((key, then[key], now[key]) for key in then)
    elif isinstance(then, list | tuple) and isinstance(now, list | tuple):
        if len(then) != len(now):
            return " in length"
        pairs = ((index, *pair) for index, pair in enumerate(zip(then, now, strict=True)))
    else:
        return None if then == now else ""
    for key, one, other in pairs:
        inner = _difference(one, other)
        if inner is not None:
            return f" at {key}{inner.replace(' at ', '.', 1)}"
    return None


def _bits(tensor: Tensor) -> Tensor:
    """On the CPU and as bytes, so that a NaN equals itself."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors; one that has several names (a tied head) under the first of them only."""
    named: dict[tuple[int | str, torch.Size], str] = {}
    weights = model.state_dict()
    for name, tensor in weights.items():
        named.setdefault((tensor.data_ptr() or name, tensor.shape), name)  # an empty tensor is nowhere
    return {name: weights[name].contiguous() for name in named.values()}


def _training_state(state: State, parallel: Parallel) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    if not state.in_pieces:
        whole = {
            "optimizer": state.optimizer.state_dict(),
            "parameters": _parameter_names(state.model, state.optimizer),
        }
    return {
        **whole,
        "layout": parallel.layout,
        "scaler": state.scaler.state_dict(),
        "sampler": state.sampler.state_dict(),
        "step": state.step,
        "tokens": state.tokens,
        "best_loss": state.best_loss,
        "best_step": state.best_step,
        **{name: part.state_dict() for name, part in state.parts().items()},
    }


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """In the order of the optimizer's state, so that another layout can find each parameter's.

    Empty for a parameter that is no longer the model's: the optimizer may hold one that was replaced.
    """
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    return [named.get(id(parameter), "") for group in optimizer.param_groups for parameter in group["params"]]


def _copied(content: Any) -> Any:
    """The same nest with every tensor copied to host memory: pinned where it comes from a CUDA device."""
    if isinstance(content, Tensor):
        source = content.detach()
        if source.device.type != "cuda":
            return source.to("cpu", copy=True)
        return torch.empty(source.shape, dtype=source.dtype, pin_memory=True).copy_(source, non_blocking=True)
    if isinstance(content, dict):
        return {key: _copied(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map(_copied, content))
    return content


def _wait_for_copies(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict | list | tuple):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _tensors(value)


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
        raise RunError(f"checkpoint file {path} cannot be read: {_said(error)}") from None


def _said(error: BaseException) -> str:
    """The error in one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"
