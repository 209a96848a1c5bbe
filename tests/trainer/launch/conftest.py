"""Launching stand-in trainers under the real supervisor, and proof afterwards that no process is left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import until
from trainer.config import TrainConfig
from trainer.launch import Launched, resume, start, status

STAND_IN = Path(__file__).with_name("stand_in.py")


def stand_in(behaviour: str) -> list[str]:
    return [sys.executable, str(STAND_IN), behaviour]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every live process that names ``folder`` on its command line or works in it: nothing of ours is believed."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.cwd()]
            if process.status() != psutil.STATUS_ZOMBIE and any(word.startswith(str(folder)) for word in words):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


class Desk:
    """Starts runs in one folder."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.config = TrainConfig(steps=100_000, name="stand-in")

    def start(self, behaviour: str = "trains", **more: Any) -> Path:
        return self.launch(behaviour, **more).run_dir

    def launch(self, behaviour: str = "trains", **more: Any) -> Launched:
        return start(self.config, self.runs, _command=stand_in(behaviour), **more)

    def resume(self, run_dir: Path, behaviour: str = "trains", **more: Any) -> Launched:
        return resume(run_dir, _command=stand_in(behaviour), **more)

    def until_training(self, run_dir: Path) -> None:
        """The newest attempt has made a step."""

        def look() -> bool:
            now = status(run_dir)
            assert now.running and now.log is not None, now
            return now.log.with_name("heartbeat.json").exists()

        until(look, "the first step")

    def until_ended(self, run_dir: Path) -> None:
        until(lambda: not status(run_dir).running, "the end of the run")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    yield Desk(tmp_path / "runs")
    left = processes_of(tmp_path)
    for process in left:
        process.kill()
    assert not left, f"left behind: {left}"
