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
import time
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


class TrainingFailed(RuntimeError):
    """A process of a training ended with an error."""


NO_TIME = "not begun in the time given"

MAKES = ("trainer", "monitor/*.py", "monitor/hook", "monitor/runfile", "monitor/landscape", "tests/faults/training.py")
"""What a training follows from, beside its job."""
ARMS = ("monitor/diagnosis",)
"""The rules run inside the training, and a finding makes the monitor measure each step for a while. A change of a rule
changes no training and no signal that is there in each step, so that it does not train anew; the results say how many
trainings were made under other rules."""


def source_of(*places: str) -> str:
    """A hash of the Python sources in ``places`` of the repository, folders with all that is in them."""
    files = {
        path
        for place in places
        for found in ROOT.glob(place)
        for path in (found.rglob("*.py") if found.is_dir() else [found])
    }
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:20]


class Forge:
    """Run directories by what makes them: trained where they are not there yet."""

    def __init__(self, folder: Path, seconds: float | None = None) -> None:
        """``folder`` keeps the trainings. One is made again where the source of anything that makes it has changed.
        After ``seconds`` none is begun."""
        self.folder = folder
        self._until = None if seconds is None else time.monotonic() + seconds
        self._source, self._rules = source_of(*MAKES), source_of(*ARMS)
        self._of_thread = threading.local()
        self._started: list[subprocess.Popen[str]] = []
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._failed: dict[str, str] = {}
        self.trained = 0
        """Trainings made here; the others were in the folder."""
        self.under_other_rules: set[Path] = set()
        """Run directories used, that were made while the rules were others."""

    def run(self, job: Job) -> Path:
        """The run directory of ``job``.

        Raises:
            TrainingFailed: a process of the training ended with an error; it is tried again by the next Forge only.
        """
        text = json.dumps(job, sort_keys=True) + _code(job) + self._source
        key = hashlib.sha256(text.encode()).hexdigest()[:20]
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:  # a twin is shared by several cases
            folder = self.folder / key
            if key in self._failed:
                raise TrainingFailed(self._failed[key])
            if not (folder / "done").exists():
                if self._until is not None and time.monotonic() > self._until:
                    raise TrainingFailed(NO_TIME)
                shutil.rmtree(folder, ignore_errors=True)
                (folder / "runs").mkdir(parents=True)
                try:
                    self._train({**job, "runs": str(folder / "runs"), "log": str(folder / "log.txt")})
                except TrainingFailed as error:
                    self._failed[key] = str(error)
                    raise
                self.trained += 1
                (folder / "done").write_text(self._rules)
            (run_dir,) = (folder / "runs").iterdir()
            if (folder / "done").read_text() != self._rules:
                self.under_other_rules.add(run_dir)
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
        if not answer:  # the process that trainings are forked from is gone: the next one gets another
            del self._of_thread.process
        if not answer or any(json.loads(answer)):
            log = Path(job["log"])
            told = log.read_text(errors="replace")[-3000:] if log.exists() else ""
            raise TrainingFailed(f"the training ended with {answer.strip() or 'nothing'}: {json.dumps(job)}\n{told}")

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
