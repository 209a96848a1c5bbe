"""Make the sample runs again, by real trainings: ``python sample_runs/make.py [--only NAME] [--to FOLDER]``.

Most are a small byte-level GPT on the source of Python's standard library, one minute on one core. A run's folder keeps
its ``expected.json``, which is written by hand from the fault below and never from what the doctor said.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # works uninstalled, from any directory

from monitor.runfile.format import attempt_dir, rank_dir  # noqa: E402
from monitor.runfile.writer import create_run  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.launch.engine import JobSpec  # noqa: E402
from trainer.launch.local import LOG_FILE, child_environment, trainer_command  # noqa: E402
from trainer.sweep.record import PLAN_FILE, SWEEPS_DIR, TRIALS_FILE, list_sweeps  # noqa: E402

ANONYMOUS = {"GRADIOMETER_ANONYMOUS": "1"}
"""Nothing in a published run names this machine."""

SMALL: dict[str, Any] = {
    "steps": 500,
    "batch_size": 16,
    "threads": 1,
    "task": {"seq_len": 64, "max_data_mib": 4.0},
    "model": {"n_layer": 3, "d_model": 64, "n_head": 4},
    "evaluation": {"every_steps": 50, "batches": 4},
    "checkpoint": {"every_steps": None},
    "monitor": {"landscape_every": 50},
}

LAYER = "head.weight"
"""Where the gradient explodes. Layer norms hold a single block's explosion back; nothing comes after the output layer."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: what is special about it, on top of ``SMALL``."""

    name: str
    about: str
    changes: dict[str, Any] = field(default_factory=dict)
    faults: tuple[dict[str, Any], ...] = ()


SAMPLES = (
    Sample("gpt-healthy", "Nothing is wrong."),
    Sample(
        "gpt-gradient-explosion",
        f"SGD without clipping; from step 300 the gradient of {LAYER} is 1000 times too large. The loss ends as NaN.",
        {"steps": 400, "optimizer": {"kind": "sgd", "lr": 0.05}, "clip": {"max_norm": None}},
        ({"kind": "grad_factor", "step": 300, "steps": None, "factor": 1000.0, "layer": LAYER},),
    ),
    Sample(
        "gpt-one-batch-spike",
        "The batch of step 320 is one byte over and over; the run recovers.",
        {},
        ({"kind": "repeated_token", "step": 320, "steps": 1},),
    ),
    Sample(
        "mlp-edge-of-stability",
        "Full-batch gradient descent on handwritten digits: the sharpness rises to 2 / lr = 10 and hovers there.",
        {
            "steps": 300,
            "batch_size": 1500,  # every image of the training set in each step
            "task": {"kind": "mlp"},
            "model": {"n_layer": 2, "d_model": 32},
            "optimizer": {"kind": "sgd", "lr": 0.2, "momentum": 0.0, "weight_decay": 0.0},
            "schedule": {"kind": "constant", "warmup_steps": 0},
            "clip": {"max_norm": None},
            "monitor": {"landscape_every": 10, "landscape_share": 1.0, "landscape_tokens": 1500},
        },
    ),
    Sample(
        "gpt-replicas-apart",
        "DDP on two processes; from step 150 on each steps with its own gradient, so that the replicas drift apart.",
        {
            "steps": 300,
            "model": {"n_layer": 2},
            "parallel": {"processes": 2},
        },
        ({"kind": "unreduced", "step": 150, "steps": None},),
    ),
)

SWEEP, SWEEP_FOLDER = "mlp-learning-rate", ".sweep"
RECORDS = ("run.json", "meta.json", "attempt.json", "exit.json")
SWEEP_ARGUMENTS = (
    "--vary", "optimizer.lr=1e-3..30:log", "--vary", "optimizer.momentum=0,0.9", "--trials", "12", "--sampler", "qmc",
    "--set", "task.kind=mlp", "--set", "steps=120", "--set", "batch_size=256", "--set", "threads=1",
    "--set", "model.n_layer=2", "--set", "model.d_model=128", "--set", "optimizer.kind=sgd",
    "--set", "optimizer.weight_decay=0", "--set", "schedule.kind=constant", "--set", "clip.max_norm=none",
    "--set", "evaluation.every_steps=20", "--set", "checkpoint.every_steps=none", "--set", "monitor.landscape_every=none",
)  # fmt: skip
"""Twelve short trainings that differ in two fields: the page of sweeps has something to show from the first start."""


def config_of(sample: Sample) -> TrainConfig:
    """The sample's whole configuration, its faults included."""
    values = _merged(SMALL, sample.changes)
    return TrainConfig.model_validate(values | {"name": sample.name, "fault": list(sample.faults)})


def make(sample: Sample, folder: Path) -> Path:
    """Train the sample and put it at ``folder / sample.name``, in place of the one that was there.

    Raises:
        RuntimeError: the training failed; the old run is left as it was.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as scratch:
        run_dir = _train(sample, Path(scratch))
        shutil.rmtree(run_dir / "checkpoints")  # nobody resumes a sample, and weights are most of its bytes
        _remove_empty_folders(run_dir)
        old = folder / sample.name
        if (old / "expected.json").exists():
            shutil.copy2(old / "expected.json", run_dir / "expected.json")
        if old.exists():
            shutil.rmtree(old)
        return run_dir.rename(old)


def _train(sample: Sample, folder: Path) -> Path:
    config = config_of(sample)
    run_dir = create_run(folder, name=sample.name, run_id=sample.name, task=config.task.kind, config=config.record())
    attempt_dir(run_dir, 0).mkdir()
    rank_dir(run_dir, 0).mkdir()
    environment = child_environment(
        {
            "GRADIOMETER_TRAIN_CONFIG": config.model_dump_json(),  # not a file: a fault must not lie in the run
            "OMP_NUM_THREADS": "1",  # torchrun says so in the log otherwise
            **ANONYMOUS,
        }
    )
    # Relative paths only: what the trainer prints then names no folder of this machine.
    arguments = ("--run-dir", sample.name, "--attempt", "0")
    words = trainer_command(JobSpec(run_dir, 0, arguments, world_size=config.parallel.processes))
    with (rank_dir(run_dir, 0) / "log.txt").open("ab") as log:
        done = subprocess.run(words, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode != 0:
        text = (rank_dir(run_dir, 0) / "log.txt").read_text(errors="replace")
        raise RuntimeError(f"{sample.name}: the training ended with {done.returncode}:\n{text[-3000:]}")
    return run_dir


def make_sweep(folder: Path) -> Path:
    """Train the sweep and put it, plan and trials, in place of ``folder``.

    Raises:
        RuntimeError: a trial failed; the old sweep is left as it was.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as place:
        scratch = Path(place) / "runs"
        words = [sys.executable, "-P", "-m", "app.cli", "sweep", "start", "--wait", "--name", SWEEP, "--runs", scratch]
        subprocess.run([*words, *SWEEP_ARGUMENTS], env=child_environment(ANONYMOUS), check=True)
        (sweep,) = list_sweeps(scratch)
        if sweep.state != "finished" or any(trial.value is None for trial in sweep.trials):
            raise RuntimeError(f"{SWEEP}: {sweep.state}, {[(trial.number, trial.reason) for trial in sweep.trials]}")
        for file in [file for file in scratch.rglob("*") if file.is_file()]:
            if not _says_what_was_trained(file.relative_to(scratch)):
                file.unlink()
            elif file.name == LOG_FILE:
                file.write_text(file.read_text().replace(str(scratch), "."))
        _remove_empty_folders(scratch)
        if folder.exists():
            shutil.rmtree(folder)
        return scratch.rename(folder)


def _says_what_was_trained(file: Path) -> bool:
    """Whether a file of a runs folder belongs to a sample: no weights, nothing of the processes that made it."""
    if file.parts[0] == SWEEPS_DIR:
        return file.name in (PLAN_FILE, TRIALS_FILE)
    return file.parts[1] != "checkpoints" and (file.parent.name.startswith("rank-") or file.name in RECORDS)


def _remove_empty_folders(folder: Path) -> None:
    """Leave what git would keep, so that the run here is the one of a fresh clone."""
    for path in sorted(folder.rglob("*"), reverse=True):  # children before their parents
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _merged(merged.get(key, {}), value) if isinstance(value, dict) else value
    return merged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*(sample.name for sample in SAMPLES), SWEEP], help="make this one only")
    parser.add_argument("--to", type=Path, default=HERE, help="folder to put the runs in (default: beside this file)")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for sample in SAMPLES:
        if options.only in (None, sample.name):
            print(f"{sample.name}: {sample.about}", flush=True)
            path = make(sample, options.to)
            print(f"  {path}: {_megabytes(path):.2f} MB", flush=True)
    if options.only in (None, SWEEP):
        path = make_sweep(options.to / SWEEP_FOLDER)
        print(f"  {path}: {_megabytes(path):.2f} MB", flush=True)


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


if __name__ == "__main__":
    main()
