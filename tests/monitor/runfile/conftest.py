"""A run to write into, and ways to write one quickly."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from monitor.runfile.writer import RankWriter, begin_attempt, create_run

LAYERS = ("embed.weight", "block.0.weight", "block.0.bias")
SHAPES = ((16, 4), (4, 4), (4,))
START = 1_800_000_000.0


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A new run with one attempt begun."""
    run = create_run(tmp_path / "runs", name="a test", task="gpt", config={"optimizer": {"lr": 1e-3}})
    begin_attempt(run, planned_steps=100)
    return run


@pytest.fixture
def writer(run_dir: Path) -> Iterator[RankWriter]:
    """The writer of rank 0 of that attempt."""
    writer = RankWriter(run_dir, 0)
    yield writer
    writer.close()


def mounted(place: Path, options: str) -> Iterator[Path]:
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    yield from mounted(tmp_path / "small", "size=512k")


@pytest.fixture
def few_files(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 40 files and folders."""
    yield from mounted(tmp_path / "few", "size=4m,nr_inodes=40")


def write_steps(writer: RankWriter, first: int, last: int, **values: float) -> None:
    """Rows ``first..last`` of train_loss = 1/step, lr, and per-layer norms; further constant ``values``."""
    writer.define_layers(LAYERS, SHAPES)
    for step in range(first, last + 1):
        moment = START + step
        writer.scalars(step, moment, {"train_loss": 1.0 / step, "lr": 0.1, **values})
        writer.layers(step, moment, {"grad_norm_preclip": np.arange(3, dtype=np.float32) + step})


def write_run(runs: Path, steps: int = 100, rows_per_batch: int = 64, **options: object) -> Path:
    """A closed attempt of ``steps`` steps in batches of exactly ``rows_per_batch``; ``options`` go to the writer."""
    run = create_run(runs, name="written")
    begin_attempt(run, planned_steps=steps)
    writer = RankWriter(run, 0, rows_per_batch=rows_per_batch, seconds_per_batch=3600, **options)  # type: ignore[arg-type]
    for first in range(1, steps + 1, rows_per_batch):
        write_steps(writer, first, min(steps, first + rows_per_batch - 1))
        assert writer.flush(60)
    writer.close()
    return run
