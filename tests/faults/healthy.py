"""Healthy trainings of every kind the trainer knows: a finding of warning or worse on one of them is a false alarm.

``python -m tests.faults.healthy [--only a,b] [--runs FOLDER]``. With ``--runs`` the runs are kept, and a second call
only asks the doctor again, so that a changed rule is tried on all of them in seconds. Some of these trainings do
misbehave for a while, because their learning rate or their batch is at the edge: ``edge`` says so, and what the doctor
says of them is read by a human beside the curve and is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.rule import Severity
from monitor.runfile.store import list_runs

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1800.0
"""Enough for the slowest of them on one core of a busy machine."""
SMALL: dict[str, Any] = {
    "steps": 400,
    "batch_size": 8,
    "task.seq_len": 64,
    "task.max_data_mib": 4.0,
    "model.n_layer": 2,
    "model.d_model": 64,
    "model.n_head": 2,
    "evaluation.every_steps": 50,
    "evaluation.batches": 2,
    "evaluation.sample_bytes": None,
    "checkpoint.every_steps": None,
    "checkpoint.keep_best": False,
    "monitor.landscape_every": None,
    "monitor.budget": 0.5,
    "threads": 1,
}
"""Seconds on one core, and measured as often as the catalogue of signals says, whatever it costs."""


@dataclass(frozen=True, slots=True)
class Healthy:
    """One training without a mistake in it."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    """Dotted values on top of ``SMALL``."""
    resume_at: int | None = None
    """A checkpoint is written at this step, and the run goes on from it once it has ended."""
    edge: str = ""
    """What really goes wrong for a while; empty where nothing does."""


def gpt(name: str, resume_at: int | None = None, edge: str = "", **config: Any) -> Healthy:
    """``optimizer__lr`` stands for ``optimizer.lr``."""
    return Healthy(name, {key.replace("__", "."): value for key, value in config.items()}, resume_at, edge)


def digits(kind: str, name: str, **config: Any) -> Healthy:
    wide = {"task__kind": kind, "batch_size": 64, "model__d_model": 32}
    return gpt(f"{kind}: {name}", **{**wide, **config})


TRAININGS: tuple[Healthy, ...] = (
    gpt("adamw, cosine"),
    gpt("adam", optimizer__kind="adam", optimizer__weight_decay=0.0),
    gpt("stable adamw", optimizer__kind="stable_adamw"),
    gpt("sgd", optimizer__kind="sgd", optimizer__lr=0.1, optimizer__weight_decay=1e-4),
    gpt("lars", optimizer__kind="lars", optimizer__lr=5.0, optimizer__weight_decay=1e-4),
    gpt("lamb", optimizer__kind="lamb", optimizer__lr=1e-2),
    gpt("beta2 0.999", optimizer__beta2=0.999),
    gpt("cosine restarts", schedule__kind="cosine_restarts", schedule__period_steps=100),
    gpt("linear", schedule__kind="linear"),
    gpt("step", schedule__kind="step"),
    gpt("exponential", schedule__kind="exponential"),
    gpt("inverse square root", schedule__kind="inverse_sqrt"),
    gpt("one cycle", schedule__kind="one_cycle"),
    gpt("warm-up, stable, decay", schedule__kind="wsd"),
    gpt("constant, no warm-up", schedule__kind="constant", schedule__warmup_steps=0),
    gpt("clipping by value", clip__kind="value", clip__max_value=0.1),
    gpt("adaptive clipping", clip__kind="adaptive"),
    gpt("no clipping", clip__max_norm=None),
    gpt("tight clipping", clip__max_norm=0.1),
    gpt("fp16, growth every 20", precision__kind="fp16", precision__growth_interval=20),
    gpt("fp16, scale 2^30 at first", precision__kind="fp16", precision__init_scale=2.0**30,
        precision__growth_interval=100),
    gpt("bf16", precision__kind="bf16"),
    gpt("accumulation", grad_accum_steps=4),
    gpt("dropout", model__dropout=0.3),
    gpt("label smoothing", loss__label_smoothing=0.1),
    gpt("z-loss", loss__z_loss=1e-4),
    gpt("curriculum, doubling", curriculum__kind="step", curriculum__first_len=8, curriculum__steps=300),
    gpt("curriculum, linear", curriculum__kind="linear", curriculum__first_len=8, curriculum__steps=300),
    gpt("lora", adapter__kind="lora"),
    gpt("bottleneck", adapter__kind="bottleneck"),
    gpt("prefix", adapter__kind="prefix"),
    gpt("adversarial", adversarial__epsilon=0.01,
        edge="at seed 2007 the gradient of step 57 is 24 times as large, and the loss of that step 1.7 times"),
    gpt("running mean", ema__decay=0.99),
    gpt("gradient noise", gradient_noise__eta=0.001),
    gpt("batch of 2", batch_size=2),
    gpt("batch of 64", batch_size=64, task__seq_len=32),
    gpt("qk norm, tied head", model__qk_norm=True, model__tied_head=True),
    gpt("he initialisation", model__init="he"),
    gpt("byte pairs", task__tokens="bpe",
        edge="at seed 2000 the gradient of step 55 is 31 times as large, in all layers, and clipped to 1/18"),
    gpt("resumed", resume_at=150),
    gpt("resumed in a curriculum", resume_at=150, curriculum__kind="step", curriculum__first_len=8,
        curriculum__steps=300),
    gpt("two ranks", parallel__processes=2),
    gpt("two ranks, accumulation", parallel__processes=2, grad_accum_steps=2),
    gpt("two ranks, zero1", parallel__processes=2, parallel__mode="zero1"),
    gpt("charmlp", task__kind="charmlp", batch_size=32),
    gpt("charmlp: batch of 4", task__kind="charmlp", batch_size=4),
    gpt("charmlp: sgd, one cycle", task__kind="charmlp", batch_size=32, optimizer__kind="sgd", optimizer__lr=0.2,
        optimizer__weight_decay=1e-4, schedule__kind="one_cycle"),
    gpt("charmlp: sgd, decay of 0.1", task__kind="charmlp", batch_size=32, optimizer__kind="sgd", optimizer__lr=0.2,
        schedule__kind="one_cycle",
        edge="L2 of 0.1 at a rate of 0.2 shrinks the weights by 2 % a step: they halve, and the loss climbs by a half"),
    digits("mlp", "adamw"),
    digits("mlp", "sgd", optimizer__kind="sgd", optimizer__lr=0.1, optimizer__weight_decay=1e-4),
    digits("mlp", "batch of 4", batch_size=4),
    digits("mlp", "whole data a step", batch_size=1024),
    digits("mlp", "adversarial", adversarial__epsilon=0.1),
    digits("mlp", "three restarts", schedule__kind="cosine_restarts", schedule__period_steps=100),
    digits("mlp", "resumed", resume_at=150),
    digits("cnn", "adamw"),
    digits("cnn", "batch norm", model__batch_norm=True),
    digits("cnn", "batch norm, batch of 4", model__batch_norm=True, batch_size=4),
    digits("cnn", "sgd, step", optimizer__kind="sgd", optimizer__lr=0.1, optimizer__weight_decay=1e-4,
           schedule__kind="step"),
    digits("cnn", "shifts and noise", task__shift_px=1, task__noise_std=0.2, model__dropout=0.2),
    digits("cnn", "fp16", precision__kind="fp16", precision__growth_interval=20),
)  # fmt: skip


def train(training: Healthy, runs: Path, seed: int) -> Path:
    """Train it in ``runs``, in processes of their own, and return its run directory."""
    values = {**SMALL, **training.config, "seed": seed}
    if training.resume_at:
        values |= {"checkpoint.every_steps": training.resume_at, "checkpoint.keep_last": 9}
    words = ["--runs", str(runs), "--name", "healthy"]
    for key, value in values.items():
        words += ["--set", f"{key}={'none' if value is None else json.dumps(value)}"]
    _trainer(training, words)
    (summary,) = list_runs(runs)
    if training.resume_at:
        _trainer(training, ["--resume", str(summary.path), "--at-step", str(training.resume_at)])
    return summary.path


def _trainer(training: Healthy, words: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = training.config.get("parallel.processes", 1)
    command = [sys.executable, "-m", "trainer", *words]
    if processes > 1:
        together = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "trainer"]
        command = [sys.executable, *together, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode != 0:
        raise RuntimeError(f"{training.name}: the training ended with {done.returncode}\n{done.stderr[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.healthy", description=__doc__)
    parser.add_argument("--only", help="names, separated by semicolons")
    parser.add_argument("--seed", type=int, default=2000)
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs, or has them from the last time")
    arguments = parser.parse_args()
    only = set(arguments.only.split(";")) if arguments.only else None
    trainings = [training for training in TRAININGS if only is None or training.name in only]
    with tempfile.TemporaryDirectory(prefix="gradiometer-healthy-") as scratch:
        root = arguments.runs or Path(scratch)
        wrong = steps = 0
        for training in trainings:
            folder = root / "".join(sign if sign.isalnum() else "-" for sign in f"{training.name}-{arguments.seed}")
            kept = list_runs(folder) if folder.is_dir() else []
            report = diagnose(kept[0].path if kept else train(training, folder, arguments.seed))
            alarms = report.at_least(Severity.WARNING)
            if not training.edge:
                wrong, steps = wrong + len(alarms), steps + report.steps
            print(f"{training.name}: {report.steps} steps, {'FALSE ALARM' if alarms and not training.edge else 'ok'}")
            for finding in report.findings:
                print(f"    {finding.severity} {finding.id}@{finding.onset_step}: {finding.summary}", flush=True)
    print(f"{wrong} false alarms in {steps} healthy steps: {1000 * wrong / max(1, steps):.2f} per 1 000")


if __name__ == "__main__":
    main()
