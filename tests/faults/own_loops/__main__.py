"""Trains the loops, asks the doctor about each, and counts. The package's docstring says of what these are a test."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

import monitor
from monitor.diagnosis.rule import Severity
from monitor.runfile.store import list_runs
from tests.faults import own_loops
from tests.faults.own_loops.broken import BROKEN
from tests.faults.own_loops.broken_third import BROKEN_THIRD
from tests.faults.own_loops.healthy import HEALTHY
from tests.faults.own_loops.healthy_third import HEALTHY_THIRD
from tests.faults.own_loops.parts import BUDGET, run

LOOPS = {loop.name: loop for loop in (*HEALTHY, *BROKEN, *HEALTHY_THIRD, *BROKEN_THIRD)}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.own_loops", description=own_loops.__doc__)
    parser.add_argument("--only", help=f"names, separated by commas: {', '.join(LOOPS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs, or has them from the last time")
    parser.add_argument("--budget", type=float, default=BUDGET, help="of the monitor; 0.02 is what attach has")
    arguments = parser.parse_args(words)
    names = arguments.only.split(",") if arguments.only else list(LOOPS)
    if unknown := [name for name in names if name not in LOOPS]:
        parser.error(f"no such loop: {', '.join(unknown)}; there are {', '.join(LOOPS)}")
    with tempfile.TemporaryDirectory(prefix="gradiometer-own-loops-") as scratch:
        false = steps = told = explained = broken = 0
        for name in names:
            loop, folder = LOOPS[name], (arguments.runs or Path(scratch)) / f"{name}-{arguments.seed}"
            kept = list_runs(folder) if folder.is_dir() else []
            report = monitor.diagnose(kept[0].path if kept else run(loop, folder, arguments.seed, arguments.budget))
            alarms = report.at_least(Severity.WARNING)
            if loop.onset is None:
                false, steps = false + len(alarms), steps + report.steps
                answer = "FALSE ALARM" if alarms else "ok"
            else:
                seen, why = loop.told(report), loop.explained(report)
                broken, told, explained = broken + 1, told + seen, explained + why
                answer = f"broken at {loop.onset}, {'told' if seen else 'NOT TOLD'}{', and why' if why else ''}"
            print(f"{name}: {report.steps} steps, {answer}")
            for finding in report.findings:
                print(f"    {finding.severity} {finding.id}@{finding.onset_step}: {finding.summary}", flush=True)
    rate = 1000 * false / max(1, steps)
    print(
        f"{false} false alarms in {steps} healthy steps: {rate:.2f} per 1 000; {explained} with the cause and "
        f"{told} of {broken} broken loops told"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
