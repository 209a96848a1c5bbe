"""What watching the gradients costs a training step: the monitor beside what others do, in every step.

    python -m tests.bench.overhead [1M] [10M] [--quick] [--rounds N] [--threads N] [--only METHOD ...]

Each method has a process of its own that trains two copies of the model in turns, one of them watched; ratios are
within a round, and medians of the rounds with their range. ``bare`` beside bare is the noise. The memory limit is one
pass over as many bytes as the gradients have, in the same run. Cadences of the default set are longer than a block is,
in part: its time in call is the mean of all steps.

Time on the wall says what a user waits, and what else runs on the machine; processor time of the whole process says
what work is done. With one thread, which is the default, the two agree on a quiet machine, and the step is as long as
it gets: with n threads the same work in call is up to n times the share.

What bounds the monitor: not arithmetic. A step of the model pushes its code and data out of the caches, so what runs
once a step runs cold: the fingerprint of a batch takes 15 us in a loop of its own and 150 us in a training, and merely
finding 113 gradients more than half of the memory limit's time. At 1M the barest way to the norms, not stored, is
already three to five times the limit, so no monitor in Python comes near it. Below the table stands where the monitor's
own time went, part by part (``parts.py``).
``_foreach_norm`` runs on one thread, and stays: a product with two threads for each tensor gains a tenth at 10M at
best, and on a busy machine waits at a barrier for each tensor, up to sixty times as long.

The peers are no part of this project and are skipped where they are not installed. To have them measured:

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install torch numpy pandas tensorboard wandb mlflow trackio aim \\
        lightning cockpit-for-pytorch backpack-for-pytorch 'setuptools<81'
    GRADIOMETER_PEERS=/tmp/peers/bin/python make bench
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import dataclass

import torch

from tests.bench.hook_cost import WHOLE_GOALS
from tests.bench.models import GPT, SIZES
from tests.bench.parts import BESIDE
from tests.bench.report import Line, bars, number, save, table
from tests.bench.run_directory import PEERS as PEERS_PYTHON
from tests.bench.run_directory import ROOT, child
from tests.bench.watchers import METHODS, PEERS

BLOCKS = {"tiny": (1, 4), "1M": (5, 20), "10M": (3, 10)}
"""Rounds, and steps of a block."""
PROFILED = {"ours-norms": "norms", "ours-standard": "standard"}
NAMES = {
    "bare": "bare again (noise)",
    "limit": "memory limit",
    "item": ".norm().item() loop",
    "foreach": "_foreach_norm, not stored",
    "ours-norms": "monitor, detail=norms",
    "ours-standard": "monitor, default set",
    "composer": "Composer OptimizerMonitor",
    "lightning": "Lightning grad_norm",
    "cockpit": "Cockpit GradNorm",
    "tensorboard-log": "TensorBoard scalars",
    "wandb-log": "W&B log",
    "trackio-log": "Trackio log",
    "mlflow-log": "MLflow log",
    "aim-log": "Aim track",
    "wandb-watch-100": "W&B watch, every 100",
    "wandb-watch-1": "W&B watch, every step",
}


@dataclass(frozen=True)
class Cost:
    """One method's, over the rounds."""

    bare_ms: float
    """Processor time of the bare step."""
    added_ms: float
    """Processor time that the watched step has more."""
    in_call_ms: float | None
    cpu: list[float]
    """Ratio to the bare step, sorted, of each round."""
    wall: list[float]

    @staticmethod
    def of(times: dict[str, dict[str, list[float]]], call: list[float]) -> Cost:
        ratios = {
            clock: sorted(w / b for b, w in zip(times[clock]["bare"], times[clock]["watched"], strict=True))
            for clock in ("cpu", "wall")
        }
        added = [w - b for b, w in zip(times["cpu"]["bare"], times["cpu"]["watched"], strict=True)]
        mean = statistics.fmean(call) if call else None
        return Cost(statistics.median(times["cpu"]["bare"]), statistics.median(added), mean, **ratios)

    @property
    def own_ms(self) -> float:
        """What it adds to a step: its time in call, which is measured finely; else the difference of whole steps."""
        return self.added_ms if self.in_call_ms is None else self.in_call_ms


def costs(size: str, names: list[str], rounds: int, steps: int, threads: int) -> tuple[dict[str, Cost], dict[str, str]]:
    """Of every method that can be measured here; of the others why not."""
    found: dict[str, Cost] = {}
    absent: dict[str, str] = {}
    for name in names:
        python = sys.executable if name in METHODS else PEERS_PYTHON
        words = ["-m", "tests.bench.watchers", name, size, *map(str, (rounds, steps, threads))]
        result = child([python, *words], timeout=900, threads=threads)
        if "skipped" in result:
            absent[name] = str(result["skipped"])
        else:
            found[name] = Cost.of(result, result["call"])
    return found, absent


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"


def comparison(title: str, found: dict[str, Cost], absent: dict[str, str]) -> str:
    """Every method in a row, the cheapest first."""
    unit = found["limit"].own_ms if "limit" in found else None
    rows = [("", "in call, ms", "x limit", "step, processor time", "step, wall")]
    for name, cost in sorted(found.items(), key=lambda one: one[1].own_ms):
        call = "in hooks" if cost.in_call_ms is None else number(cost.in_call_ms)
        of_limit = "" if unit is None or name == "bare" else f"{cost.own_ms / unit:.2f}"
        rows.append((NAMES[name], "" if name == "bare" else call, of_limit, spread(cost.cpu), spread(cost.wall)))
    rows += [(NAMES[name], "absent", "", why[:70], "") for name, why in absent.items()]
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows]
    return "\n  ".join([title, *(line.rstrip() for line in lines)])


def profile(size: str, name: str, threads: int, quick: bool) -> dict[str, float]:
    """Microseconds a step of each part of one of ours, from a process of its own."""
    words = [size, PROFILED[name], "20" if quick else "100", str(threads)]
    found = child([sys.executable, "-m", "tests.bench.parts", *words], timeout=900, threads=threads)
    if "skipped" in found:
        raise RuntimeError(f"the parts of {NAMES[name]} could not be timed: {found['skipped']}")
    return found


def part_table(title: str, parts: dict[str, float]) -> str:
    """The parts, the costliest first, below what they are held against."""
    beside = {name: spent for name, spent in parts.items() if name in BESIDE}
    own = sorted(parts.items() - beside.items(), key=lambda part: -part[1])
    whole = sum(spent for _, spent in own)
    rows = [f"{spent:10.1f} us  {name}" for name, spent in beside.items()]
    rows.append(f"{whole:10.1f} us  the monitor, of which")
    rows += [f"{spent:10.1f} us  {spent / whole:4.0%}  {name}" for name, spent in own]
    return "\n  ".join([title, *rows])


def goals(size: str, found: dict[str, Cost]) -> list[Line]:
    """What the design asks for, as far as it could be measured."""
    lines: list[Line] = []
    known = size in WHOLE_GOALS

    def against(other: str, mine: str, what: str, goal: float) -> None:
        if other in found and mine in found and found[other].own_ms > 0:
            both = f"{number(found[mine].own_ms)} ms to {number(found[other].own_ms)} ms"
            lines.append(
                Line(
                    f"{size}: {what}",
                    found[mine].own_ms / found[other].own_ms,
                    "x",
                    goal if known else None,
                    beside=both,
                )
            )

    against("limit", "ours-norms", "norms every step, stored, of the memory limit", 1.3)
    against("trackio-log", "ours-norms", "norms every step, stored, of Trackio's", 0.5)
    against("wandb-watch-1", "ours-standard", "default set, of W&B watch in every step", 0.05)
    if "ours-standard" in found:
        cost = found["ours-standard"]
        noise = f"; bare beside bare {spread(found['bare'].cpu)}" if "bare" in found else ""
        ratio = 1 + cost.own_ms / cost.bare_ms
        beside = (
            f"{number(cost.own_ms)} ms of a step of {number(cost.bare_ms)} ms; whole steps {spread(cost.cpu)}{noise}"
        )
        lines.append(Line(f"{size}: default set, step", ratio, "x", WHOLE_GOALS.get(size), beside=beside))
    return lines


def main(quick: bool | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", choices=[[], *SIZES], default=[])
    parser.add_argument("--quick", action="store_true", help="a tiny model and a few steps: whether it works")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=[*METHODS, *PEERS], default=[*METHODS, *PEERS])
    options = parser.parse_args([] if quick is not None else None)
    quick = options.quick or bool(quick)
    if sys.executable == PEERS_PYTHON:
        print("  GRADIOMETER_PEERS is not set: peers are looked for in this environment")
    lines: list[Line] = []
    charts: list[list[str]] = []
    more: dict[str, object] = {"threads": options.threads, "quick": quick, "cpus": os.cpu_count()}
    for size in options.sizes or (["tiny"] if quick else ["1M", "10M"]):
        rounds, steps = BLOCKS[size]
        rounds = options.rounds or rounds
        found, absent = costs(size, options.only, rounds, steps, options.threads)
        model = GPT(*SIZES[size])
        tensors = [parameter.numel() for parameter in model.parameters()]
        title = (
            f"{size}: {sum(tensors) / 1e6:.2f} M parameters in {len(tensors)} tensors, {options.threads} thread(s), "
        )
        title += f"{rounds} rounds of {steps} steps, torch {torch.__version__}"
        print(comparison(title, found, absent), flush=True)
        lines += goals(size, found)
        own = {NAMES[name]: cost.own_ms for name, cost in found.items() if name != "bare" and cost.own_ms > 0}
        charts.append(bars(f"Added to a training step, {size} parameters", own, "ms of processor time", "monitor"))
        parts = {name: profile(size, name, options.threads, quick) for name in PROFILED if name in found}
        for name, profiled in parts.items():
            print(part_table(f"{size}: where the time of {NAMES[name]} goes", profiled), flush=True)
        costs_of = {name: vars(cost) for name, cost in found.items()}
        more[size] = {"costs": costs_of, "absent": absent, "parts": parts}
    print(table("goals are those of the design", lines))
    if any(line.ratio is not None and line.ratio > 1 for line in lines):
        print("  missed: what bounds it stands above, part by part")
    print("  written:", *(str(path.relative_to(ROOT)) for path in save("overhead", lines, more, charts)))


if __name__ == "__main__":
    main()
