"""A page that is killed -9 in the middle of an action leaves a run that is seen rightly and can be acted on again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor.errors import RunError
from monitor.runfile import control
from tests.trainer.launch.conftest import Desk, processes_of, stand_in
from tests.waiting import until
from trainer.launch import JobState, claim, local, resume, start, status, stop

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")

MOMENTS_S = (0.0, 0.001, 0.004, 0.012, 0.03, 0.08)
"""After the click; an action takes some 20 ms."""


def killed(act: Callable[[], object], after_s: float) -> None:
    """Do ``act`` in a process of its own and kill that -9 after a moment."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            act()
            time.sleep(60)
        os._exit(0)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def stopped(desk: Desk, run_dir: Path) -> None:
    """It can be stopped, and then nothing of it is left."""
    until(lambda: stop(run_dir).signalled or not status(run_dir).running, "somebody to stop")
    desk.until_ended(run_dir)
    assert processes_of(run_dir) == []


def has_begun(run_dir: Path) -> bool:
    """The attempt after the first has made a step."""
    return any((run_dir / "attempts").glob("000[1-9]/rank-00000/heartbeat.json"))


@pytest.fixture(autouse=True)
def _soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt whose launcher died before it had a supervisor is given up after 3 s instead of 10."""
    for module in (claim, local):
        monkeypatch.setattr(module, "BEING_MADE_S", 3.0)


@pytest.mark.parametrize("after_s", MOMENTS_S)
def test_during_a_start(desk: Desk, after_s: float) -> None:
    def click() -> None:
        start(desk.config, desk.runs, run_id="clicked", _command=stand_in("trains"))

    killed(click, after_s)
    run_dir = desk.runs / "clicked"
    if (run_dir / "run.json").is_file():
        stopped(desk, run_dir)
        assert status(run_dir).state in (JobState.CANCELLED, JobState.LOST)
    assert processes_of(desk.runs) == [], "either a whole start or none"


@pytest.mark.parametrize("after_s", MOMENTS_S[::2])
def test_during_a_stop(desk: Desk, after_s: float) -> None:
    run_dir = desk.start()
    desk.until_training(run_dir)
    killed(lambda: stop(run_dir), after_s)
    stopped(desk, run_dir)
    assert status(run_dir).state is JobState.CANCELLED


@pytest.mark.parametrize("after_s", MOMENTS_S[::2])
def test_during_a_resume(desk: Desk, after_s: float) -> None:
    run_dir = desk.start()
    desk.until_training(run_dir)
    stopped(desk, run_dir)
    killed(lambda: resume(run_dir, _command=stand_in("trains")), after_s)
    # Whatever the dead page has come to, the next one gets on: the run is active, or can be resumed.
    until(lambda: has_begun(run_dir) or not status(run_dir).running, "what the dead page began")
    if not status(run_dir).running:
        desk.resume(run_dir)
    desk.until_training(run_dir)
    with pytest.raises(RunError, match="already"):
        desk.resume(run_dir)
    stopped(desk, run_dir)


@pytest.mark.parametrize("after_s", (0.0, 0.0005, 0.002, 0.006))
def test_during_a_request(desk: Desk, after_s: float) -> None:
    run_dir = desk.start()
    desk.until_training(run_dir)
    folder = run_dir / "attempts" / "0000"
    for name in ("control", "receipts"):
        (folder / name).mkdir(exist_ok=True)
    heartbeat = folder / "rank-00000" / "heartbeat.json"
    stop(run_dir)
    desk.until_ended(run_dir)
    (folder / "exit.json").unlink()  # as if it still trained, and answered
    (folder / "supervisor_exit.json").unlink(missing_ok=True)
    ours = {"pid": os.getpid(), "pid_create_time": control.process_identity()["pid_create_time"]}
    heartbeat.write_text(
        json.dumps(json.loads(heartbeat.read_text()) | {"requests": ["pause"], "time": time.time()} | ours)
    )
    killed(lambda: control.ask(run_dir, "pause", via="page"), after_s)
    inbox = control.Inbox(run_dir, 0, ("pause",), lambda **fields: None, lambda: 7)
    inbox.look()
    first = [request.do for request in inbox.take()]
    assert first in ([], ["pause"]), "a whole request or none"
    control.ask(run_dir, "pause", via="page")
    inbox.look()
    assert [request.do for request in inbox.take()] == ["pause"]
