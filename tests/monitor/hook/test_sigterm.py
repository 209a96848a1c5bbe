"""SIGTERM against real processes: the window is written, and the process is as dead as it would have been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

import monitor
from monitor.hook import sigterm
from monitor.hook.recorder import restore_random_states
from monitor.runfile.reader import Run, open_run
from tests.monitor.hook.problems import MLP

ROOT = Path(__file__).parents[3]


class Loops:
    """Processes of ``terminated.py``, forked from one that has imported torch."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.monitor.hook.terminated"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def start(self, kind: str, folder: Path) -> int:
        """The pid of a loop that is about to be ready."""
        assert self.server.stdin is not None
        self.server.stdin.write(f"{kind}|{folder}\n")
        self.server.stdin.flush()
        return int(self.line())

    def line(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()

    def ended(self, kind: str, folder: Path) -> tuple[int, Run]:
        """Send SIGTERM to a loop that is ready; how it ended, and its run."""
        pid = self.start(kind, folder)
        assert self.line() == "ready"
        os.kill(pid, signal.SIGTERM)
        return int(self.line()), _run_in(folder)


@pytest.fixture(scope="module")
def loops() -> Iterator[Loops]:
    started = Loops()
    with started.server:
        yield started
        started.server.kill()


def _run_in(folder: Path) -> Run:
    (run_dir,) = (path for path in folder.iterdir() if not path.name.startswith("."))
    return open_run(run_dir)


@pytest.mark.parametrize(
    "kind", ["plain", "sleeps", "hangs in C", "chained", "full of threads"], ids=lambda kind: kind.replace(" ", "-")
)
def test_a_loop_without_a_handler_writes_its_last_steps_and_dies_of_the_signal(
    loops: Loops, tmp_path: Path, kind: str
) -> None:
    status, run = loops.ended(kind, tmp_path)
    assert status == -signal.SIGTERM
    (flight,) = run.events("flight")
    assert flight.fields["reason"] == "signal 15"
    assert [entry["step"] for entry in flight.fields["random"]][:5] == [1, 2, 3, 4, 5]
    assert restore_random_states(run, 5) == ("torch", "python", "numpy")
    assert run.series("step_time_s").step.tolist() == [1, 2, 3, 4, 5]
    assert (run.attempts[0].exit["outcome"], run.attempts[0].exit["signal"]) == ("stopped", 15)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("own handler", 7), ("later handler", 8), ("opted out", -signal.SIGTERM), ("closed", -signal.SIGTERM)],
)
def test_whoever_wants_something_else_gets_it(loops: Loops, tmp_path: Path, kind: str, expected: int) -> None:
    status, run = loops.ended(kind, tmp_path)
    assert status == expected
    assert not [event for event in run.events("flight") if event.fields["reason"] == "signal 15"]


def test_a_second_signal_ends_a_process_that_lets_no_thread_run(loops: Loops, tmp_path: Path) -> None:
    if not sigterm.one_time():
        pytest.skip("this C library has no sysv_signal")
    pid = loops.start("held in C", tmp_path)
    assert loops.line() == "ready"
    process = psutil.Process(pid)
    _let_spin(process)
    os.kill(pid, signal.SIGTERM)
    _let_spin(process)  # the first one is lost
    os.kill(pid, signal.SIGTERM)
    assert int(loops.line()) == -signal.SIGTERM
    assert _run_in(tmp_path).events("flight") == []


def _let_spin(process: psutil.Process) -> None:
    """Wait until ``process`` has computed for a while."""
    enough = process.cpu_times().user + 0.3
    while process.cpu_times().user < enough:
        time.sleep(0.02)


def test_a_disk_that_hangs_delays_the_end_no_longer_than_that(loops: Loops, tmp_path: Path) -> None:
    status, run = loops.ended("disk that hangs", tmp_path)
    assert status == -signal.SIGTERM  # and not of its alarm
    assert run.attempts[0].exit["signal"] == 15


def test_a_forked_child_dies_of_its_signal_and_its_parent_lives(loops: Loops, tmp_path: Path) -> None:
    loops.start("forked child", tmp_path)
    os.kill(int(loops.line()), signal.SIGTERM)
    assert int(loops.line()) == 0
    run = _run_in(tmp_path)
    assert run.attempts[0].exit["reason"] == "child ended by 15" and not run.events("flight")


def test_a_child_of_torchrun(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"),
        *("--max-restarts", "0", "-m", "tests.monitor.hook.terminated", "plain", str(tmp_path)),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with process:
        try:
            assert process.stdout is not None and process.stdout.readline().strip() == "ready"
            process.send_signal(signal.SIGTERM)  # which the agent passes on
            assert process.wait(60) != 0
        finally:
            process.kill()
    run = _run_in(tmp_path)
    assert run.attempts[0].exit["signal"] == 15 and len(run.events("flight")) == 1


def test_everything_is_as_it_was_when_the_last_monitor_leaves(tmp_path: Path) -> None:
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        pytest.skip("whoever runs the tests has a handler")

    def attached(name: str) -> monitor.Monitor:
        model = MLP.made()
        return monitor.attach(model, torch.optim.SGD(model.parameters()), run=tmp_path / name)

    one, two = attached("one"), attached("two")
    assert signal.getsignal(signal.SIGTERM) is sigterm._handle
    one.close()
    assert signal.getsignal(signal.SIGTERM) is sigterm._handle
    two.close()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1
    read_end, other = os.pipe()
    os.set_blocking(other, False)
    signal.set_wakeup_fd(other)
    try:
        attached("three").close()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        assert signal.set_wakeup_fd(-1) == other
        os.close(read_end)
        os.close(other)
