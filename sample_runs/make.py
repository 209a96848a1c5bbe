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
from trainer.launch.local import child_environment  # noqa: E402

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
)


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
            "GRADIOMETER_ANONYMOUS": "1",  # nothing in a published run names this machine
        }
    )
    # Relative paths only: what the trainer prints then names no folder of this machine.
    words = [sys.executable, "-P", "-m", "trainer", "--run-dir", sample.name, "--attempt", "0"]
    with (rank_dir(run_dir, 0) / "log.txt").open("ab") as log:
        done = subprocess.run(words, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode != 0:
        text = (rank_dir(run_dir, 0) / "log.txt").read_text(errors="replace")
        raise RuntimeError(f"{sample.name}: the training ended with {done.returncode}:\n{text[-3000:]}")
    return run_dir


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
    parser.add_argument("--only", choices=[sample.name for sample in SAMPLES], help="make this one only")
    parser.add_argument("--to", type=Path, default=HERE, help="folder to put the runs in (default: beside this file)")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for sample in SAMPLES:
        if options.only in (None, sample.name):
            print(f"{sample.name}: {sample.about}", flush=True)
            path = make(sample, options.to)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            print(f"  {path}: {size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
