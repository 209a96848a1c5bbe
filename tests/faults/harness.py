"""Trains a case and its healthy twin, and keeps what has been trained."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.faults.cases import PLACE, Case
from tests.faults.training import Job

ROOT = Path(__file__).resolve().parents[2]


def onset_of(case: Case, seed: int) -> int:
    """The step at which the case breaks, or would."""
    return random.Random(f"{case.name}-{seed}").randint(*case.onset)


def place_of(case: Case, seed: int) -> str | None:
    """The layer that the case breaks; None when it has no place."""
    return random.Random(f"place-{case.name}-{seed}").choice(sorted(case.places)) if case.places else None


def layers_of(case: Case, seed: int) -> tuple[str, ...]:
    """Beginnings of the names that are right as the first layer; empty when there is none."""
    place = place_of(case, seed)
    return () if place is None else case.places[place]


def job_of(case: Case, seed: int, *, healthy: bool = False, patch: Mapping[str, Any] | None = None) -> Job:
    """The training of the case, or of its twin, less where it is put. ``patch`` holds dotted values on top."""
    onset = onset_of(case, seed)
    faults = [dict(fault) for fault in case.background]
    if not healthy:
        faults += [{"step": onset, **fault} for fault in case.faults]
    for fault in faults:
        if fault.get("layer") == PLACE:
            fault["layer"] = place_of(case, seed)
    return Job(
        config={**_nested({**case.config, **(patch or {}), "name": "blind", "seed": seed}), "fault": faults},
        resume_at=onset if case.resumes else None,
        ranks=case.ranks,
        inject=None if healthy else case.inject,
        onset=onset if case.resumes or (case.inject and not healthy) else 0,
        runs="",
        log="",
    )


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in dotted.items():
        *sections, last = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return nested


class Forge:
    """Run directories by what makes them: trained where they are not there yet."""

    def __init__(self, folder: Path) -> None:
        """``folder`` keeps the trainings; remove it after a change of the trainer or of the monitor's hook."""
        self.folder = folder
        self._of_thread = threading.local()
        self._started: list[subprocess.Popen[str]] = []
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def run(self, job: Job) -> Path:
        """The run directory of ``job``.

        Raises:
            RuntimeError: a process of the training ended with an error.
        """
        key = hashlib.sha256((json.dumps(job, sort_keys=True) + _code(job)).encode()).hexdigest()[:20]
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:  # a twin is shared by several cases
            folder = self.folder / key
            if not (folder / "done").exists():
                shutil.rmtree(folder, ignore_errors=True)
                (folder / "runs").mkdir(parents=True)
                self._train({**job, "runs": str(folder / "runs"), "log": str(folder / "log.txt")})
                (folder / "done").touch()
            (run_dir,) = (folder / "runs").iterdir()
            return run_dir

    def close(self) -> None:
        """End the processes that trainings are forked from."""
        for process in self._started:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.wait()
            process.stdout.close()

    def _train(self, job: Job) -> None:
        process = self._process()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer or any(json.loads(answer)):
            log = Path(job["log"])
            told = log.read_text(errors="replace")[-3000:] if log.exists() else ""
            raise RuntimeError(f"the training ended with {answer.strip() or 'nothing'}: {json.dumps(job)}\n{told}")

    def _process(self) -> subprocess.Popen[str]:
        """The calling thread's own."""
        if not hasattr(self._of_thread, "process"):
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            words = [sys.executable, "-m", "tests.faults.training"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._of_thread.process = subprocess.Popen(words, cwd=ROOT, env=environment, **pipes)
            with self._guard:
                self._started.append(self._of_thread.process)
        process: subprocess.Popen[str] = self._of_thread.process
        return process


def _code(job: Job) -> str:
    """The source of what a job injects: a change of it is another training."""
    if not job["inject"]:
        return ""
    module, _, function = job["inject"].partition(":")
    return inspect.getsource(getattr(importlib.import_module(module), function))
