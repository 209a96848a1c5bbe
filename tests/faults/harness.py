"""Runs a case as a real training in a process of its own and scores what the doctor says of its run directory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from monitor.diagnosis.engine import diagnose
from monitor.runfile.store import list_runs
from tests.faults.cases import SMALL, Case

ROOT = Path(__file__).resolve().parents[2]
EARLY = 2
"""Steps before the onset at which an alarm still counts as one for this fault: rules look at a window."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the doctor said of one training, against the truth."""

    case: str
    seed: int
    onset: int | None
    """The step the fault began at; None for a control."""
    hit: bool | None
    """Whether a finding in the accept set began in time; None for a control."""
    reported_onset: int | None
    layer_right: bool | None
    """Whether the finding that hit names a right first layer; None when the fault has no place."""
    false_alarms: int
    """Findings of warning or worse that are no answer to the fault."""
    findings: tuple[str, ...]
    """``id@onset``, worst first."""


def onset_of(case: Case, seed: int) -> int | None:
    """The fault's onset, uniform in [150, 300] from the seed; None for a control."""
    return random.Random(f"{case.name}-{seed}").randint(150, 300) if case.fault else None


def train(case: Case, seed: int, runs: Path) -> Path:
    """Train the case in ``runs`` and return its run directory. The fault reaches the trainer, not the directory."""
    values = {**SMALL, **case.config, "seed": seed}
    words = [sys.executable, "-m", "trainer", "--runs", str(runs), "--name", "blind"]
    for key, value in values.items():
        words += ["--set", f"{key}={'none' if value is None else json.dumps(value)}"]
    for key, value in ({**case.fault, "step": onset_of(case, seed)} if case.fault else {}).items():
        words += ["--set", f"fault.{key}={'none' if value is None else json.dumps(value)}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(
            f"{case.name}, seed {seed}: the training ended with {done.returncode}\n{done.stderr[-3000:]}"
        )
    (summary,) = list_runs(runs)
    return summary.path


def score(case: Case, seed: int, run_dir: Path) -> Outcome:
    """The doctor's findings of warning or worse against the case's truth."""
    onset = onset_of(case, seed)
    alarms = diagnose(run_dir).at_least("warning")
    spoken = tuple(f"{finding.id}@{finding.onset_step}" for finding in alarms)
    if onset is None:
        return Outcome(case.name, seed, None, None, None, None, len(alarms), spoken)
    right = [
        finding
        for finding in alarms
        if finding.id in case.accept and onset - EARLY <= finding.onset_step <= onset + case.window
    ]
    early = [finding for finding in alarms if finding.onset_step < onset - EARLY]
    first = right[0] if right else None
    located = (first.layer in case.layers) if first and case.layers else None
    return Outcome(
        case.name, seed, onset, bool(right), first.onset_step if first else None, located, len(early), spoken
    )
