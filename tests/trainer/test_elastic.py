"""A process that is killed: torchrun starts all of them again, and the run goes on from its newest checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from monitor.errors import RunError
from monitor.runfile.reader import Run, open_run
from tests.trainer.conftest import TINY, Desk
from tests.waiting import PATIENCE_S, until
from trainer.parallel import Parallel
from trainer.parallel.failures import FILE, named_failures
from trainer.place import continued_run, restarted_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Iterator[Run]:
    """A run of two processes, of which the second was killed after its first checkpoints."""
    runs = tmp_path_factory.mktemp("elastic") / "runs"
    values = [*TINY, f"task.data={texts}", "steps=150", "checkpoint.every_steps=20", "evaluation.every_steps=none"]
    values += ["checkpoint.background=false", "parallel.processes=2", "parallel.max_restarts=1", "model.dropout=0.1"]
    words = [word for value in values for word in ("--set", value)]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "--runs", str(runs), *words],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: next(iter(runs.glob("*/checkpoints/000000[4-9]0")), None), "a checkpoint beyond the first")
        worker(process.pid, "1").kill()
        assert process.wait(PATIENCE_S) == 0
        (path,) = runs.iterdir()
        yield open_run(path)
    finally:
        for left in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            left.kill()
        process.kill()


def worker(torchrun: int, rank: str) -> psutil.Process:
    return next(one for one in psutil.Process(torchrun).children() if one.environ().get("RANK") == rank)


def test_run_goes_on_as_a_new_attempt_and_keeps_what_the_old_one_recorded(restarted: Run) -> None:
    first, second = restarted.attempts
    assert (second.parent, second.resume_step % 20) == (0, 0) and second.resume_step >= 40
    assert second.exit is not None and second.exit["outcome"] == "finished"
    assert restarted.series("train_loss").step.tolist() == list(range(1, 151))
    again = restarted.series("train_loss", attempt=0).between(second.resume_step + 1, None)
    now = restarted.series("train_loss", attempt=1).between(None, int(again.step[-1]) if len(again) else 0)
    assert again.value.tolist() == now.value.tolist()  # bit for bit, as far as the killed ones came
    assert first.exit is not None


def test_the_killed_process_is_named_and_not_the_connection(restarted: Run) -> None:
    ended = restarted.attempts[0].exit
    assert ended is not None and ended["outcome"] == "crashed"
    assert ended["reason"].startswith("RunError: process 1 of 2 ended without a word: killed (out of memory?)")


def fail(run_dir: Path, error: Exception, rank: int = 0) -> None:
    with named_failures(run_dir, 0, Parallel(rank, 2, torch.device("cpu"))):
        raise error


def test_error_of_one_process_is_the_cause_of_the_broken_connection_of_another(tmp_path: Path) -> None:
    for rank in (0, 1):
        (tmp_path / "attempts" / "0000" / f"rank-{rank:05d}").mkdir(parents=True)
    with pytest.raises(ValueError, match="no such layer"):
        fail(tmp_path, ValueError("no such layer"), rank=1)
    with pytest.raises(RunError, match="process 1 failed first: ValueError: no such layer"):
        fail(tmp_path, RuntimeError("[gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:1"))


def test_process_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.parallel.failures.WAIT_S", 0.0)
    (tmp_path / "attempts" / "0000" / "rank-00000").mkdir(parents=True)
    with pytest.raises(RunError, match="process 1 of 2 does not answer: it hangs, or its host is gone"):
        fail(tmp_path, RuntimeError("Timed out waiting 5000ms for recv operation to complete"))
    (tmp_path / "attempts" / "0000" / "rank-00000" / FILE).write_text("[torn")
    with pytest.raises(RunError, match=r"processes 0, 1 of 2 ended without a word"):
        fail(tmp_path, RuntimeError("Connection reset by peer"))


def test_first_start_is_no_restart_and_one_without_a_checkpoint_begins_anew(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert restarted_run(desk.runs, None) is None  # not under torchrun at all
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    trained = desk.train("steps=2")
    assert restarted_run(desk.runs, None) == restarted_run(None, trained.place.run_dir) == trained.place.run_dir
    said: list[str] = []
    for folder in trained.place.checkpoints.iterdir():
        (folder / "COMMIT.json").unlink()
    _, place = continued_run(trained.place.run_dir, said.append)
    assert (place.attempt, place.checkpoint, place.start_step) == (1, None, 0)
    assert said[-1] == "no complete checkpoint yet: starting from the beginning"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert restarted_run(desk.runs, None) is None
