"""Trains cases, each in a process of its own that is forked from here, where torch is imported already.

One line of JSON on standard input is one ``Job``; one line on standard output answers it, with the exit codes. No
operation of torch runs in this process, so that its children begin without threads.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TypedDict

from tests.trainer.forked import command
from trainer import __main__ as program

PATIENCE_S = 600
"""A bound on one training, not an expectation."""


class Job(TypedDict):
    """One training, of one command or of two."""

    config: dict[str, Any]
    """Of trainer/config, the faults included."""
    resume_at: int | None
    """Step at which the first command ends and the second goes on."""
    ranks: int
    inject: str | None
    onset: int
    runs: str
    log: str


def injected(job: Job, resumed: bool) -> None:
    """Call what the case injects, if it does."""
    if job["inject"]:
        module, _, function = job["inject"].partition(":")
        getattr(importlib.import_module(module), function)(job["onset"], resumed)


def work(job: Job) -> list[int]:
    """Train; gives back the exit codes of all processes."""
    config, log, runs = job["config"], Path(job["log"]), Path(job["runs"])
    first = config if job["resume_at"] is None else {**config, "steps": job["resume_at"]}
    codes = _command(job, ["--runs", str(runs)], first, log, resumed=False)
    if job["resume_at"] is None or any(codes):
        return codes
    (run_dir,) = runs.iterdir()
    return codes + _command(
        job, ["--resume", str(run_dir), "--set", f"steps={config['steps']}"], None, log, resumed=True
    )


def _command(job: Job, words: list[str], config: dict[str, Any] | None, log: Path, *, resumed: bool) -> list[int]:
    """One command in a child, which prepares itself and forks once more, so that nothing stays behind here."""
    pid = os.fork()
    if pid:
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
    signal.alarm(PATIENCE_S)
    os.environ.pop(program.CONFIG_VARIABLE, None)
    if config is not None:
        os.environ[program.CONFIG_VARIABLE] = json.dumps(config)
    try:
        injected(job, resumed)
        os._exit(max(map(abs, command(job["ranks"], words, log))))
    finally:
        os._exit(1)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(work(json.loads(line))), flush=True)
