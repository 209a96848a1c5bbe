"""``python -m tests.faults``: the fault benchmark. Trains every case with several seeds and prints what the doctor saw.

Results go to tests/faults/results/ as JSON. Faults first, then healthy controls, on which every finding of warning or
worse is a false alarm.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from math import sqrt
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.cases import Case
from tests.faults.harness import Outcome, score, train

RESULTS = Path(__file__).parent / "results"


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share. Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953, with z = 1.96."""
    if trials == 0:
        return 0.0, 1.0
    z, share = 1.96, hits / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def run_one(case: Case, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="gradiometer-faults-") as folder:
        return score(case, seed, train(case, seed, Path(folder)))


def share(outcomes: Sequence[bool]) -> str:
    """``5/6 [0.44, 0.97]``; empty when nothing was to be scored."""
    if not outcomes:
        return ""
    low, high = wilson(sum(outcomes), len(outcomes))
    return f"{sum(outcomes)}/{len(outcomes)} [{low:.2f}, {high:.2f}]"


def table(outcomes: Sequence[Outcome]) -> Table:
    shown = Table("case", "seen in time", "first layer", "onset error", "false alarms", "said", box=None)
    for name in dict.fromkeys(outcome.case for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.case == name]
        errors = [abs(o.reported_onset - o.onset) for o in mine if o.reported_onset is not None and o.onset is not None]
        shown.add_row(
            name,
            share([outcome.hit for outcome in mine if outcome.hit is not None]),
            share([outcome.layer_right for outcome in mine if outcome.layer_right is not None]),
            "/".join(map(str, sorted(errors))),
            str(sum(outcome.false_alarms for outcome in mine)),
            "; ".join(dict.fromkeys(said for outcome in mine for said in outcome.findings))[:60],
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--cases", default="tests.faults.cases", help="module with FAULTS and CONTROLS")
    parser.add_argument("--only", help="names of cases, comma-separated")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each case")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    arguments = parser.parse_args()

    module = importlib.import_module(arguments.cases)
    only = set(arguments.only.split(",")) if arguments.only else None
    cases = [case for case in (*module.FAULTS, *module.CONTROLS) if only is None or case.name in only]
    work = [(case, arguments.first_seed + i) for case in cases for i in range(arguments.seeds)]
    console = Console()
    console.print(f"{len(work)} trainings, {arguments.jobs} at a time")
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for outcome in pool.map(lambda item: run_one(*item), work):
            outcomes.append(outcome)
            console.print(
                f"  {len(outcomes)}/{len(work)} {outcome.case} seed {outcome.seed}: {outcome.findings or '-'}"
            )
    console.print(table(outcomes))
    hits = [outcome.hit for outcome in outcomes if outcome.hit is not None]
    controls = [outcome for outcome in outcomes if outcome.onset is None]
    console.print(f"faults seen in time: {share(hits)}")
    console.print(f"healthy trainings with a false alarm: {share([o.false_alarms > 0 for o in controls])}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "faults.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    console.print(f"written: {RESULTS / 'faults.json'}")


if __name__ == "__main__":
    main()
