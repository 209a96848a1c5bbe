"""Time and memory of a diagnosis, post hoc and live, of a long run with all that the monitor records by default.

    python -m tests.bench.diagnosis [--quick]

The run is written by ``RankWriter`` and diagnosed in fresh processes, so that the peak memory is the diagnosis's own.
Seconds are processor time on this machine, which other load hardly moves; what carries over are the ratios: of a live
look to a diagnosis from scratch, and of the goal.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.bench.report import Line, save, table

ROOT = Path(__file__).resolve().parents[2]
STEPS, LAYERS, MODULES = 100_000, 200, 60
SECONDS, GIB = 5.0, 1.0
"""The goals."""
PER_LAYER = {
    "weight_norm": 20, "update_norm": 20, "update_to_weight_ratio": 20, "grad_cosine": 20, "update_cosine": 20,
    "adam_rms": 10, "grad_abs_max": 10, "grad_zero_share": 10, "adam_floor_share": 100,
}  # fmt: skip
PER_MODULE = {
    "activation_mean": 50, "activation_rms": 50, "activation_absmax": 50, "activation_zero_share": 50,
    "dead_units_share": 50, "saturated_units_share": 50, "attention_logit_bound": 10, "attention_entropy_min": 100,
    "attention_entropy_mean": 100,
}  # fmt: skip
"""Steps between two measurements, as by ``monitor.attach``."""
TIMES = {
    "step_time_s": 0.1, "data_wait_s": 0.004, "forward_s": 0.03, "backward_s": 0.05, "optimizer_s": 0.01,
    "monitor_s": 0.001, "other_s": 0.005,
}  # fmt: skip


def write_run(folder: Path, steps: int, layers: int, broken: bool) -> Path:
    """A run whose loss falls with noise; ``broken`` with a gradient explosion in nine tenths of the way."""
    rng = np.random.default_rng(7)
    run = create_run(folder, config={"optimizer": {"lr": 3e-4}})
    begin_attempt(run, planned_steps=steps)
    writer = RankWriter(run, 0, queue_rows=1_000_000)
    writer.define_layers([f"blocks.{i // 4}.linear{i % 4}.weight" for i in range(layers)], [(64, 64)] * layers)
    writer.define_modules([f"blocks.{i}" for i in range(MODULES)])
    base = np.exp(rng.normal(0, 0.5, layers)).astype(np.float32)
    noise = np.exp(rng.normal(0, 0.15, (4096, layers))).astype(np.float32)
    onset = int(0.9 * steps)
    for step in range(1, steps + 1):
        norms = base * noise[rng.integers(4096)]
        if broken and step >= onset:
            norms = norms * np.float32(1.6 ** min(step - onset, 30))
        values = {
            "train_loss": 2 + 4 / (1 + step / 500) + rng.normal(0, 0.02), "lr": 3e-4 * min(1, step / 1000),
            "grad_norm_preclip": float(np.linalg.norm(norms)), "clip_coef": 0.9, "grad_norm_postclip": 1.0,
            "tokens": step * 4096.0, "tokens_per_s": 4e4 * (1 + rng.normal(0, 0.01)), "samples": 16.0,
            "batch_id": float(step),
            **{name: second * (1 + rng.normal(0, 0.02)) for name, second in TIMES.items()},
        }  # fmt: skip
        if broken and step >= onset + 3:
            values["train_loss"] *= 4
        moment = 1.8e9 + 0.1 * step
        writer.scalars(step, moment, values)
        stats = {"grad_norm_preclip": norms}
        stats |= {name: _drawn(name, norms) for name, every in PER_LAYER.items() if step % every == 0}
        writer.layers(step, moment, stats)
        modules = {
            name: _drawn(name, noise[step % 4096, :1].repeat(MODULES))
            for name, n in PER_MODULE.items()
            if step % n == 0
        }
        if modules:
            writer.modules(step, moment, modules)
        if step % 2_000 == 0:
            writer.flush(120)
    writer.close()
    write_exit(run, 0, outcome="finished", step=steps, reason="done")
    return run


def _drawn(name: str, noise: np.ndarray) -> np.ndarray:
    level = {
        "weight_norm": 10.0,
        "update_norm": 0.01,
        "update_to_weight_ratio": 1e-3,
        "grad_zero_share": 0.01,
        "dead_units_share": 0.02,
        "saturated_units_share": 0.02,
        "adam_floor_share": 0.0,
        "attention_entropy_min": 0.5,
        "attention_entropy_mean": 0.7,
        "grad_cosine": 0.1,
        "update_cosine": 0.5,
    }
    return np.float32(level.get(name, 1.0)) * (noise if "share" not in name else np.ones_like(noise))


# In fresh processes -----------------------------------------------------------------------------------------------


def post_hoc(path: str) -> dict[str, float]:
    """Open the run and diagnose it; prints nothing itself."""
    from monitor.diagnosis.engine import diagnose
    from monitor.runfile.reader import open_run

    began = time.process_time()
    run = open_run(path)
    opened, wall = time.process_time(), time.perf_counter()
    report = diagnose(run)
    return {
        "open_s": opened - began, "diagnose_s": time.process_time() - opened, "wall_s": time.perf_counter() - wall,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "findings": len(report.findings),
    }  # fmt: skip


def live(path: str) -> dict[str, float]:
    """Processor seconds of a look from scratch, of the looks after it with 100 new steps each, and of the triggers.

    The run has ended: the steps that are new are cut off at first.
    """
    from monitor.diagnosis.engine import diagnose
    from monitor.diagnosis.live import Triggers
    from monitor.diagnosis.view import Kept, Signals
    from monitor.runfile.reader import open_run

    run = open_run(path)
    last = run.last_step or 0
    kept: Kept = {}
    took, clock = [], time.process_time
    for step in range(last - 500, last + 1, 100):
        began = clock()
        diagnose(Signals.from_run(run, kept=kept).until(step))
        took.append(clock() - began)
    began = clock()
    Triggers().stands_out(run.series)
    return {"first_s": took[0], "later_s": statistics.median(took[1:]), "row_us": (clock() - began) / last * 1e6}


def child(name: str, path: Path) -> dict[str, float]:
    """What ``name`` of this module found out about ``path`` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tests.bench.diagnosis", name, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main(*, quick: bool = False) -> None:
    steps, layers = (4_000, 40) if quick else (STEPS, LAYERS)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for broken in (False, True):
            kind = "broken" if broken else "healthy"
            run = write_run(Path(folder) / kind, steps, layers, broken)
            found = child("post_hoc", run)
            what = f"diagnose {steps:,} steps x {layers} layers, {kind}"
            beside = f"{found['wall_s']:.2f} s by the clock; opening {found['open_s']:.2f} s; "
            beside += f"{found['findings']:.0f} findings"
            lines.append(Line(what, found["diagnose_s"], "s", None if quick else SECONDS, beside=beside))
            lines.append(Line(f"{what}, peak memory", found["peak_gib"], "GiB", None if quick else GIB))
            looks = child("live", run)
            beside = f"{looks['later_s']:.2f} s; the triggers {looks['row_us']:.0f} us a row"
            share = looks["later_s"] / looks["first_s"]
            lines.append(Line(f"look again after 100 steps, {kind}, of a look from scratch", share, "x", beside=beside))
    title = "Diagnosis"
    print(table(title, lines))
    if not quick:
        save("diagnosis", lines, {"steps": steps, "layers": layers}, [])


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in ("post_hoc", "live"):
        print(json.dumps({"post_hoc": post_hoc, "live": live}[sys.argv[1]](sys.argv[2])))
    else:
        main(quick="--quick" in sys.argv)
