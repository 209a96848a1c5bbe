"""Tiny real trainings: a GPT of 2 blocks of 32 on a few modules of the standard library, in this process."""

from __future__ import annotations

import inspect
import random
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from monitor.runfile.reader import Run, open_run
from trainer.config import TrainConfig, load_config
from trainer.loop import Outcome, train
from trainer.place import Place, new_run, resumed_run
from trainer.stop import StopFlag
from trainer.tasks import IGNORED, Batch, Task

MODULES: tuple[ModuleType, ...] = (random, statistics, textwrap, inspect)
TINY = (
    "threads=1",
    "model.n_layer=2",
    "model.n_head=2",
    "model.d_model=32",
    "task.seq_len=32",
    "evaluation.batches=2",
    "evaluation.sample_bytes=8",
    "monitor.landscape_every=none",
    "schedule.warmup_steps=4",
)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few real Python files."""
    folder = tmp_path_factory.mktemp("texts")
    for module in MODULES:
        (folder / f"{module.__name__}.py").write_text(inspect.getsource(module))
    return folder


@dataclass(frozen=True, slots=True)
class Trained:
    """What one training left."""

    config: TrainConfig
    place: Place
    outcome: Outcome

    @property
    def run(self) -> Run:
        return open_run(self.place.run_dir)

    def losses(self) -> list[float]:
        return self.run.series("train_loss").value.tolist()

    def weights(self, step: int | None = None) -> dict[str, torch.Tensor]:
        """The weights of the checkpoint at ``step``, by default the last."""
        folder = self.place.checkpoints / f"{step or self.outcome.step:08d}"
        return safetensors.torch.load_file(folder / "model.safetensors")


@dataclass(frozen=True, slots=True)
class Desk:
    """Trains tiny models into one folder of runs."""

    runs: Path
    texts: Path

    def config(self, *overrides: str) -> TrainConfig:
        return load_config(None, [*TINY, f"task.data={self.texts}", *overrides])

    def train(self, *overrides: str, stop: StopFlag | None = None) -> Trained:
        config = self.config(*overrides)
        place = new_run(config, self.runs)
        return Trained(config, place, train(config, place, stop or StopFlag()))

    def resume(self, trained: Trained, overrides: Sequence[str] = (), **more: Any) -> Trained:
        config, place = resumed_run(trained.place.run_dir, overrides, lambda message: None, **more)
        return Trained(config, place, train(config, place, StopFlag()))


class Uneven:
    """A task whose examples carry a loss on a share of their tokens: from all of them down to none."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def train_batch(self, indices: torch.Tensor) -> Batch:
        batch = self._task.train_batch(indices)
        for row, index in enumerate(indices.tolist()):
            batch.targets[row, : index % 7 * batch.targets.shape[1] // 6] = IGNORED
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


class Targetless(Uneven):
    """A task all of whose training targets are left out, as by a mask that is too wide."""

    def train_batch(self, indices: torch.Tensor) -> Batch:
        batch = self._task.train_batch(indices)
        batch.targets.fill_(IGNORED)
        return batch


@pytest.fixture
def desk(tmp_path: Path, texts: Path) -> Desk:
    return Desk(tmp_path / "runs", texts)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Every tensor equal, bit for bit."""
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
