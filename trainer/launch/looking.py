"""Have the loss around a checkpoint computed by a process of its own, and see how far it is. Torch stays out.

``python -m trainer.landscape`` keeps what it finds in the run's folder ``landscape``, coarse first; here is only who
starts it, that there is one at a time for a run, and what it said when it could not do it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from monitor.errors import RunError
from monitor.runfile.format import LANDSCAPE_DIR, atomic_write_json, is_real_folder
from monitor.runfile.identity import process_identity
from trainer.launch.claim import is_elsewhere, read_record
from trainer.launch.epitaph import tail
from trainer.launch.local import child_environment
from trainer.launch.processes import Identity

PROCESS_FILE = "process.json"
LOG_FILE = "log.txt"


@dataclass(frozen=True, slots=True)
class Looking:
    """What became of the last question that was asked here."""

    running: bool
    asked: str
    """In words; empty when none was."""
    problem: str | None
    """What it said when it ended without an answer; None while it runs and when it has one."""


def look(run_dir: Path, arguments: Sequence[str], asked: str) -> None:
    """Start ``python -m trainer.landscape RUN ARGUMENTS``; returns at once.

    Raises:
        RunError: one is at work on this run already, or it could not be started.
    """
    folder = run_dir / LANDSCAPE_DIR
    folder.mkdir(exist_ok=True)
    if not is_real_folder(run_dir, folder):
        raise RunError(f"{folder} is a symbolic link, which is not followed; nothing was done.")
    if (now := looking(run_dir)).running:
        raise RunError(f"run {run_dir.name} is being looked at already ({now.asked}). Wait for it, or stop it first.")
    words = [sys.executable, "-P", "-m", "trainer.landscape", str(run_dir), *arguments]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(folder / LOG_FILE, flags, 0o644), "wb") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=child_environment({}),
                start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        raise RunError(f"the process that looks at run {run_dir.name} could not be started: {error}.") from error
    threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:  # over already; its log says why
        created = 0.0
    whose = {"pid": process.pid, "pid_create_time": created, "asked": asked}
    atomic_write_json(folder / PROCESS_FILE, process_identity() | whose)


def looking(run_dir: Path) -> Looking:
    """Whether a process is at work, and what the last one left to say."""
    folder = run_dir / LANDSCAPE_DIR
    record = read_record(folder / PROCESS_FILE) if is_real_folder(run_dir, folder) else {}
    if not record or is_elsewhere(record):
        return Looking(False, "", None)
    asked = str(record.get("asked", ""))[:200]
    identity = Identity.read(record)
    if identity is not None and identity.alive:
        return Looking(True, asked, None)
    errors = [line for line in tail(folder / LOG_FILE) if line.startswith("error: ")]
    return Looking(False, asked, errors[-1].removeprefix("error: ")[:1000] if errors else None)


def stop_looking(run_dir: Path) -> None:
    """End the process at work, as Ctrl-C would: what it has found stays and can be gone on with."""
    record = read_record(run_dir / LANDSCAPE_DIR / PROCESS_FILE)
    identity = Identity.read(record)
    process = None if identity is None or is_elsewhere(record) else identity.process()
    # The file is data from disk: only a process that does look at this run is ended on its word.
    if process is not None and {"trainer.landscape", str(run_dir)} <= set(process.cmdline()):
        process.send_signal(signal.SIGINT)
