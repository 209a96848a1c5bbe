"""The whole command: 40 steps are 20 and, in another process, 20 more, bit for bit; also after ``kill -9``.

``GRADIOMETER_KILLS`` is how often a training is killed: 8 by default, 50 for a thorough look.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from monitor.runfile.reader import Run, open_run
from tests.trainer.conftest import assert_same
from trainer.config.sections import DIGIT_KINDS, TEXT_KINDS

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("GRADIOMETER_KILLS", "8"))
SMALL = (
    *("threads=1", "model.n_layer=1", "model.n_head=2", "model.d_model=16", "task.seq_len=16", "batch_size=4"),
    *("evaluation.batches=1", "evaluation.every_steps=none", "monitor.landscape_every=none"),
    *("schedule.kind=constant", "schedule.warmup_steps=4", "model.dropout=0.2", "grad_accum_steps=2"),
)
FP16 = ("precision.kind=fp16", "precision.growth_interval=7", "precision.init_scale=1e9")
"""The scale falls at once and grows again: its state matters."""
AUGMENTED = ("task.shift_px=1", "task.noise_std=0.1")


@dataclass(frozen=True, slots=True)
class Case:
    task: str
    ranks: int = 1
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.task}-{self.ranks}-{'fp16' if set(FP16) <= set(self.more) else 'fp32'}"


CASES = [
    *(Case(task, more=FP16) for task in TEXT_KINDS),
    *(Case(task, more=(*FP16, *AUGMENTED)) for task in DIGIT_KINDS),
    Case("gpt"),
    Case("gpt", 2, FP16),
    Case("cnn", 2, AUGMENTED),
]


def ask(what: str, question: Any, folder: Path) -> Any:
    """What tests/trainer/forked.py answers."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.forked", what],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def words(overrides: Sequence[str]) -> list[str]:
    return [word for pair in overrides for word in ("--set", pair)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """Every case trained to step 40, then again from its checkpoint at step 20 by another process."""
    folder = tmp_path_factory.mktemp("resumed")
    cases = []
    for case in CASES:
        data = (f"task.data={texts}",) if case.task in TEXT_KINDS else ()
        overrides = [*SMALL, *data, f"task.kind={case.task}", *case.more, "checkpoint.every_steps=20", "steps=40"]
        cases.append((case.ranks, case.name, words(overrides)))
    codes = ask("again", {"cases": cases, "from_step": 20}, folder)
    assert codes == [[0] * 2 * case.ranks for case in CASES], (folder / "log").read_text()[-5000:]
    return folder


def named(folder: Path, case: Case) -> Run:
    (path,) = (folder / "runs").glob(f"*-{case.name}-*")
    return open_run(path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forty_steps_are_twenty_and_twenty_more_in_another_process(folder: Path, case: Case) -> None:
    run = named(folder, case)
    straight, resumed = folder / case.name, run.path / "checkpoints" / "00000040"
    assert_same(load(resumed), load(straight))
    for name in ("training.pt", *(f"rank-{rank:05d}.pt" for rank in range(case.ranks))):
        then, now = (torch.load(place / name, weights_only=True) for place in (straight, resumed))
        assert plain(then) == plain(now), name  # optimizer, scaler, data position, random states
    for rank in range(case.ranks):
        whole, half = (run.series("train_loss", attempt=attempt, rank=rank) for attempt in (0, 1))
        assert half.step.tolist() == list(range(21, 41))
        assert half.value.tolist() == whole.value[20:].tolist()
    (check,) = run.events("fidelity")
    assert check.fields["verdict"] == "bitwise"
    assert set(check.fields["parts"].values()) == {"exact"}
    if "fp16" in case.name:
        assert len(set(run.series("loss_scale", attempt=1).value.tolist())) > 1  # there was something to restore


def plain(content: Any) -> Any:
    """Tensors as their bytes, everything else as it is."""
    if isinstance(content, torch.Tensor):
        return content.dtype, content.shape, content.contiguous().view(-1).view(torch.uint8).tolist()
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    return list(map(plain, content)) if isinstance(content, list | tuple) else content


def load(checkpoint: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(checkpoint / "model.safetensors")


def test_after_kill_nine_at_any_moment_a_training_goes_on_to_the_same_end(texts: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"task.data={texts}", "checkpoint.every_steps=1", "monitor.enabled=false", "steps=1000000"]
    made = ask("kills", {"words": words(overrides), "kills": KILLS, "seed": 0}, tmp_path)
    step = f"{made['step']:08d}"
    killed, straight = (open_run(tmp_path / made[name]) for name in ("killed", "straight"))
    print(f"{KILLS} kills, {made['cut_short']} during a save, {made['step']} steps")
    assert len(killed.attempts) == KILLS + 1
    assert_same(load(killed.path / "checkpoints" / step), load(straight.path / "checkpoints" / step))
