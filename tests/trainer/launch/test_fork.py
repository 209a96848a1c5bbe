"""Children of a run, forked from its checkpoints by the real launcher and trained by the real trainer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from monitor.errors import ConfigError, RunError
from monitor.runfile.reader import Run, open_run
from tests.trainer.launch.conftest import Desk
from tests.trainer.launch.test_real_trainer import TINY
from tests.trainer.test_resume import plain
from trainer.config import TrainConfig
from trainer.launch import JobState, fork, log_path, resume, start, status

ROOT = Path(__file__).resolve().parents[3]
STEPS, FORK = 12, 4


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Twelve steps with a checkpoint every four, dropout included: the random states matter."""
    config = {**TINY, "steps": STEPS, "checkpoint": {"every_steps": FORK, "keep_last": 9}}
    config["model"] = {**TINY["model"], "dropout": 0.2}
    desk = Desk(tmp_path_factory.mktemp("fork"))
    run_dir = start(TrainConfig.model_validate(config), desk.runs, name="parent").run_dir
    return ended(desk, run_dir)


def ended(desk: Desk, run_dir: Path) -> Run:
    desk.until_ended(run_dir)
    log = log_path(run_dir)
    assert log is not None
    assert status(run_dir).state in (JobState.SUCCEEDED, JobState.CANCELLED), log.read_text()
    return open_run(run_dir)


def state(run: Run, step: int) -> tuple[Any, Any]:
    """Weights and everything else of a checkpoint, comparable bit for bit."""
    folder = run.path / "checkpoints" / f"{step:08d}"
    rest = {name: torch.load(folder / name, weights_only=True) for name in ("training.pt", "rank-00000.pt")}
    return plain(safetensors.torch.load_file(folder / "model.safetensors")), plain(rest)


def losses(run: Run, after: int) -> list[float]:
    return run.series("train_loss").between(after + 1, None).value.tolist()


def test_a_child_without_changes_is_its_parent_bit_for_bit_and_outlives_it(parent: Run, tmp_path: Path) -> None:
    desk = Desk(tmp_path / "runs")
    shutil.copytree(parent.path, desk.runs / parent.id)
    own = open_run(desk.runs / parent.id)
    child = ended(desk, fork(own.path, FORK).run_dir)
    assert child.parent == {"run": own.id, "attempt": 0, "step": FORK, "changes": {}}
    assert child.series("train_loss").step.tolist() == list(range(FORK + 1, STEPS + 1))
    assert losses(child, FORK) == losses(own, FORK)
    assert state(child, STEPS) == state(own, STEPS)
    (check,) = child.events("fidelity")
    assert check.fields["verdict"] == "bitwise", check.fields["text"]

    there, here = (run.path / f"checkpoints/{FORK:08d}/model.safetensors" for run in (own, child))
    assert here.samefile(there)  # no second copy on disk
    before = state(child, FORK)
    shutil.rmtree(own.path)
    assert state(child, FORK) == before
    resume(child.path, [f"steps={STEPS + 2}"])
    assert ended(desk, child.path).last_step == STEPS + 2


def test_a_run_is_rewound_with_changes_and_says_whether_it_is_still_the_same(parent: Run, tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    shutil.copytree(parent.path, desk.runs / parent.id)
    launched = resume(desk.runs / parent.id, ["optimizer.lr=1e-3"], at_step=2 * FORK)
    run = ended(desk, launched.run_dir)
    assert [(one.parent, one.resume_step, one.overrides) for one in run.attempts][1] == (
        0, 2 * FORK, {"optimizer.lr": 1e-3},
    )  # fmt: skip
    assert run.series("train_loss").step.tolist() == list(range(1, STEPS + 1))
    (check,) = run.events("fidelity")
    assert check.fields["changed"] == ["optimizer.lr"]
    assert [len(gone) for gone in run.superseded("train_loss")] == [STEPS - 2 * FORK]


def test_a_child_from_the_start_is_the_same_seed_with_the_change(parent: Run, tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    child = ended(desk, fork(parent.path, 0, ["stop_after=3", "optimizer.lr=0.01"], runs_dir=desk.runs).run_dir)
    assert child.parent is not None and child.parent["changes"] == {"stop_after": 3, "optimizer.lr": 0.01}
    assert losses(child, 0)[0] == losses(parent, 0)[0]
    assert losses(child, 0)[2] != losses(parent, 0)[2]


def test_what_cannot_be_forked_is_refused_and_leaves_no_run_behind(parent: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=rf"no complete checkpoint of step 5.*Steps with one: 4, 8, {STEPS}"):
        fork(parent.path, 5, runs_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        fork(parent.path, FORK, ["optimizer.lr=-1"], runs_dir=tmp_path)
    with pytest.raises(RunError, match=r"nothing is left to train"):
        fork(parent.path, STEPS, runs_dir=tmp_path)
    torn = tmp_path / "torn"
    shutil.copytree(parent.path, torn)
    (torn / f"checkpoints/{FORK:08d}/model.safetensors").write_bytes(b"\0")
    with pytest.raises(RunError, match=r"model\.safetensors has 1 bytes"):
        fork(torn, FORK, runs_dir=tmp_path)
    record = json.loads((torn / "run.json").read_text())
    (torn / "run.json").write_text(json.dumps({**record, "config": None}))
    with pytest.raises(RunError, match="no configuration of this trainer"):
        fork(torn, 8, runs_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["torn"]


def test_the_command_says_what_it_changed_and_from_where(parent: Run, tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    shutil.copytree(parent.path, desk.runs / parent.id)
    words = [sys.executable, "-m", "app", "rewind", parent.id, "--runs", str(desk.runs), "--to", "8"]
    asked = ["--as-child", "--skip-batches", "2", "--set", "stop_after=9"]
    done = subprocess.run([*words, *asked], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    head, *diff = done.stdout.splitlines()
    assert f"as a child of {parent.id} after step 8" in head
    assert diff == [
        "- stop_after = none", "+ stop_after = 9", "- skip.after_step = 0", "+ skip.after_step = 8",
        "- skip.batches = 0", "+ skip.batches = 2",
    ]  # fmt: skip
    assert ended(desk, desk.runs / head.split()[0]).last_step == 9
    refused = subprocess.run([*words[:-1], "7"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert refused.returncode == 2 and "Steps with one: 4, 8, 12" in refused.stderr, refused.stderr
