"""The real program in a process of its own: signals, kill -9, resume, and mistakes of the user."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from monitor.runfile.reader import Run, open_run
from monitor.runfile.writer import create_run
from tests.trainer.conftest import TINY, Desk
from trainer import __main__ as program
from trainer.config import load_config
from trainer.memory import OutOfMemory, explained_at_start, is_out_of_memory
from trainer.place import Place, new_run
from trainer.stop import SIGNALS, StopFlag

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0
"""A bound on waiting, not an expectation: the machine may be busy."""


class Trainer:
    """One ``python -m trainer`` process."""

    def __init__(
        self, words: Sequence[str], log: Path, program: Sequence[str] = ("-m", "trainer"), **environment: str
    ) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, *program, *words],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def until(self, look: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (seen := look()):
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.text}"
            time.sleep(0.02)
        return seen

    def wait(self) -> int:
        return self.process.wait(timeout=PATIENCE_S)

    @property
    def text(self) -> str:
        return self.log.read_text()


def words(desk: Desk, *overrides: str) -> list[str]:
    pairs = [*TINY, f"task.data={desk.texts}", *overrides]
    return ["--runs", str(desk.runs), *(word for pair in pairs for word in ("--set", pair))]


def only_run(desk: Desk) -> Run | None:
    found = list(desk.runs.glob("*/run.json"))
    return open_run(found[0].parent) if found else None


def reached(desk: Desk, step: int) -> bool:
    run = only_run(desk)
    return run is not None and (run.last_step or 0) >= step


def test_sigterm_saves_and_leaves_cleanly_and_resume_goes_on(desk: Desk, tmp_path: Path) -> None:
    trainer = Trainer(words(desk, "steps=100000", "checkpoint.every_steps=none"), tmp_path / "log")
    trainer.until(lambda: reached(desk, 3), "the third step")
    trainer.process.send_signal(signal.SIGTERM)
    trainer.process.send_signal(signal.SIGTERM)  # Slurm and torchrun both send one
    assert trainer.wait() == 0, trainer.text
    run = only_run(desk)
    assert run is not None
    assert run.attempts[0].exit is not None
    assert (run.attempts[0].exit["outcome"], run.attempts[0].exit["reason"]) == ("stopped", "asked to stop by SIGTERM")
    assert run.attempts[0].exit["signal"] == signal.SIGTERM
    stopped_at = run.attempts[0].exit["step"]
    assert [checkpoint.step for checkpoint in run.checkpoints() if checkpoint.complete] == [stopped_at]
    assert run.state.word == "stopped"
    assert f"gradiometer resume {run.path}" in trainer.text
    assert "Traceback" not in trainer.text

    again = Trainer(["--resume", str(run.path), "--steps", str(stopped_at + 5)], tmp_path / "again")
    assert again.wait() == 0, again.text
    run = open_run(run.path)
    assert run.state.word == "finished"
    assert run.series("train_loss").step.tolist() == list(range(1, stopped_at + 6))


def test_kill_nine_leaves_a_run_that_resumes_from_its_last_checkpoint(desk: Desk, tmp_path: Path) -> None:
    trainer = Trainer(words(desk, "steps=100000", "checkpoint.every_steps=4"), tmp_path / "log")
    trainer.until(lambda: list(desk.runs.glob("*/checkpoints/*8/COMMIT.json")), "the second checkpoint")
    trainer.process.kill()
    trainer.wait()
    run = only_run(desk)
    assert run is not None and run.state.word in ("lost", "crashed", "stale")
    assert run.problems == ()
    newest = max(checkpoint.step for checkpoint in run.checkpoints() if checkpoint.complete)

    again = Trainer(["--resume", str(run.path), "--steps", str(newest + 3)], tmp_path / "again")
    assert again.wait() == 0, again.text
    run = open_run(run.path)
    assert run.attempts[1].resume_step == newest
    assert run.series("train_loss").step.tolist() == list(range(1, newest + 4))


def test_sigterm_while_torch_is_imported_stops_before_the_first_step(desk: Desk, tmp_path: Path) -> None:
    trainer = Trainer(words(desk, "steps=100000"), tmp_path / "log")
    trainer.until(lambda: list(desk.runs.glob("*/attempts/0000/attempt.json")), "the attempt")  # torch comes after it
    trainer.process.send_signal(signal.SIGTERM)
    assert trainer.wait() == 0, trainer.text
    run = only_run(desk)
    assert run is not None and run.attempts[0].exit is not None
    assert run.attempts[0].exit["reason"] == "asked to stop by SIGTERM, before the first step"
    assert "Traceback" not in trainer.text


def test_a_launcher_hands_over_the_configuration_with_its_faults(desk: Desk, tmp_path: Path) -> None:
    config = desk.config("steps=4", "fault.kind=lr_factor", "fault.step=3", "fault.factor=10", "schedule.kind=constant")
    place = new_run(config, desk.runs)
    (place.run_dir / "attempts" / "0001" / "rank-00000").mkdir(parents=True)  # as a launcher makes it
    trainer = Trainer(
        ["--run-dir", str(place.run_dir), "--attempt", "1"],
        tmp_path / "log",
        GRADIOMETER_TRAIN_CONFIG=config.model_dump_json(),
    )
    assert trainer.wait() == 0, trainer.text
    lr = open_run(place.run_dir).series("lr", attempt=1).value
    assert lr[2] / lr[1] == pytest.approx(10 * 3 / 2)  # the third of four warm-up steps
    assert "lr_factor" not in (place.run_dir / "run.json").read_text()


CRASHES_AT_ITS_EVALUATION = """
import sys, trainer.loop
from trainer.__main__ import main
def evaluate(session, mon, display):
    session.val_batches[10**6]
trainer.loop.evaluate = evaluate
sys.exit(main())
"""


def test_a_crash_is_recorded_with_its_traceback_and_the_last_random_states(desk: Desk, tmp_path: Path) -> None:
    more = ("steps=9", "evaluation.every_steps=5", "checkpoint.every_steps=4")
    trainer = Trainer(words(desk, *more), tmp_path / "log", program=("-c", CRASHES_AT_ITS_EVALUATION))
    assert trainer.wait() == 1
    run = only_run(desk)
    assert run is not None and run.state.word == "crashed"
    exit_record = run.attempts[0].exit
    assert exit_record is not None
    assert (exit_record["reason"], exit_record["step"]) == ("IndexError: list index out of range", 5)
    assert any("val_batches[10**6]" in line or "in evaluate" in line for line in exit_record["traceback"])
    (flight,) = run.events("flight")
    assert [entry["step"] for entry in flight.fields["random"]] == [1, 2, 3, 4, 5]
    # the checkpoint that was on its way is whole
    assert [checkpoint.step for checkpoint in run.checkpoints() if checkpoint.complete] == [4]


RUNS_OUT_OF_MEMORY = """
import resource, sys, torch, trainer.loop
from pathlib import Path
from trainer.__main__ import main
torch.set_num_threads(1)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (700 << 20), resource.RLIM_INFINITY))
sys.exit(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the size of a process is read from /proc")
def test_running_out_of_memory_says_what_was_held_and_what_to_change(desk: Desk, tmp_path: Path) -> None:
    more = ("steps=9", "batch_size=8192", "model.d_model=128", "monitor.enabled=true")
    trainer = Trainer(words(desk, *more), tmp_path / "log", program=("-c", RUNS_OUT_OF_MEMORY))
    assert trainer.wait() == 1
    run = only_run(desk)
    assert run is not None and run.state.word == "crashed"
    exit_record = run.attempts[0].exit
    assert exit_record is not None
    reason = exit_record["reason"]
    assert reason.startswith(
        "OutOfMemory: out of memory in step 1 on cpu: held were parameters 1.8 MiB, gradients 0.0 MiB"
    )
    held = re.search(r"activations of a micro-batch ([\d,.]+) MiB \(8192 x 32 tokens\)", reason)
    assert held is not None, reason
    logits = 8192 * 32 * 256 * 4 / 2**20
    assert float(held[1].replace(",", "")) > logits  # more than the limit left
    assert re.search(
        r"this process is [\d,.]+ MiB in memory\. Halve the micro-batch and keep the result: "
        r"--set grad_accum_steps=2",
        reason,
    )
    assert "allocate" in reason
    assert any("forward" in line for line in exit_record["traceback"])  # where it was


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("shape mismatch"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_every_way_of_saying_that_memory_ran_out_is_known(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one


def test_memory_that_runs_out_before_the_first_step_is_explained() -> None:
    with pytest.raises(OutOfMemory, match=r"before the first step: .*Lower the model's size"), explained_at_start():
        raise MemoryError
    with pytest.raises(KeyError), explained_at_start():
        raise KeyError("another mistake")


def test_an_exception_that_carries_a_novel_leaves_a_short_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(create_run(tmp_path), 0)
    (place.run_dir / "attempts" / "0000").mkdir()

    def train(*arguments: object) -> None:
        raise ValueError("once upon a time " * 100_000)

    monkeypatch.setattr("trainer.loop.train", train)
    with pytest.raises(ValueError, match="once"):
        program._train(load_config(None), place, StopFlag())
    exit_file = place.run_dir / "attempts" / "0000" / "exit.json"
    assert exit_file.stat().st_size < 20_000
    assert json.loads(exit_file.read_text())["reason"].startswith("ValueError: once upon a time")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "optimizer.lr=-1"], "error: --set: optimizer.lr = -1: must be greater than 0."),
        (["--config", "absent.toml"], "error: configuration file absent.toml does not exist."),
        (["--steps", "many"], 'error: --set: steps = "many": must be a whole number.'),
        (["--resume", "/nowhere"], "/nowhere"),
        (["--preset", "quik"], 'Did you mean "quick"?'),
        (
            ["--data", "/nowhere"],
            "error: task.data = /nowhere: does not exist. Give a text file or a folder of text files.",
        ),
    ],
)
def test_mistake_of_the_user_is_one_message_and_exit_code_two(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], restore_signals: None
) -> None:
    assert program.main(["--runs", str(tmp_path / "runs"), *more]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_unusable_data_end_the_run_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], restore_signals: None
) -> None:
    (tmp_path / "empty.txt").touch()
    runs = tmp_path / "runs"
    assert program.main(["--runs", str(runs), "--data", str(tmp_path / "empty.txt"), "--steps", "3"]) == 2
    assert "no text in it (no bytes). Give a text file or a folder of text files." in capsys.readouterr().err
    (exit_file,) = runs.glob("*/attempts/0000/exit.json")
    record = json.loads(exit_file.read_text())
    assert (record["outcome"], record["returncode"]) == ("crashed", 2)
    assert "no text in it" in record["reason"]


def test_a_running_run_is_not_resumed_beside_itself(
    desk: Desk, capsys: pytest.CaptureFixture[str], restore_signals: None
) -> None:
    place = new_run(desk.config("steps=9"), desk.runs)  # begun by this process, which is alive
    assert program.main(["--resume", str(place.run_dir)]) == 2
    assert "Stop it first, or wait until it has ended." in capsys.readouterr().err


def test_short_options_are_what_they_stand_for(texts: Path) -> None:
    options = program._parser().parse_args(["--steps", "7", "--name", "n", "--data", str(texts), "--set", "steps=3"])
    config = load_config(None, program._overrides(options))
    assert (config.steps, config.name, config.task.data) == (7, "n", str(texts))


@pytest.fixture
def restore_signals() -> Any:
    """``main`` in this process installs handlers that must not outlive the test."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def test_an_end_that_cannot_be_recorded_is_said_and_nothing_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(create_run(tmp_path), 0)
    (place.run_dir / "attempts" / "0000").write_text("a file where the attempt's folder should be")
    program._record_exit(place, "finished", 10, "done", returncode=0)
    assert "how the training ended is not recorded" in capsys.readouterr().err
