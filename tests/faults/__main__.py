"""``python -m tests.faults``, ``make faults``: the fault benchmark.

Trains every case with several seeds, each beside its healthy twin, and scores what the doctor says of the run
directories. Rules are tuned on seeds 0, 1, 100 and 101, the published figures are of 105 to 109; the next ones to quote
are of seeds from 110 on, the default. Results go to tests/faults/results/: ``faults.json``, ``faults.txt`` and
``causes.svg``.

    make faults
    python -m tests.faults --only lr-x30-gpt,cosine --first-seed 0 --kept /tmp/trainings
    python -m tests.faults --cases my_package.my_cases
    GRADIOMETER_PEERS=/tmp/peers/bin/python python -m tests.faults     with losslint trainpulse trainscope pytscope
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from monitor.diagnosis.view import Signals
from monitor.runfile.reader import open_run
from tests.faults import report
from tests.faults.cases import Case
from tests.faults.harness import NO_TIME, Forge, TrainingFailed, job_of
from tests.faults.metrics import confusion, figures
from tests.faults.scoring import Score, events, judged, truth_of
from tests.faults.training import Job

RESULTS = Path(__file__).parent / "results"
PEERS = os.environ.get("GRADIOMETER_PEERS", sys.executable)
"""Python of an environment with the other detectors; ours has none of them."""
HEALTHY_SEEDS = 5
CLOSE = 1.05
"""A fixed training's final loss over that of the twin, at most."""


class Bench:
    """All trainings of some cases and seeds, and what is said of them."""

    def __init__(self, work: Sequence[tuple[Case, int]], first_seed: int, forge: Forge, jobs: int) -> None:
        self.work = list(work)
        self.spread = range(first_seed, first_seed + HEALTHY_SEEDS)
        self.forge, self.jobs = forge, jobs
        self.failed: dict[str, str] = {}
        """What the trainings that ended with an error said, by case and seed; they are left out of every figure."""

    def train(self, say: Callable[[str], None], *, twins: bool) -> None:
        """Every training there is to score, and with ``twins`` the healthy ones beside the broken ones."""
        first = [one for one in self.work if one[1] == self.spread[0]]
        wanted = [(f"{case.name} {seed}", job_of(case, seed)) for case, seed in first]
        if twins:
            wanted += self._twins()
        wanted += [(f"{case.name} {seed}", job_of(case, seed)) for case, seed in self.work if (case, seed) not in first]
        jobs = list({json.dumps(job, sort_keys=True): (name, job) for name, job in reversed(wanted)}.values())[::-1]
        say(f"{len(jobs)} trainings, {self.jobs} at a time")
        with ThreadPoolExecutor(self.jobs) as pool:
            for number, _ in enumerate(pool.map(lambda one: self._made(*one), jobs), 1):
                if number % 10 == 0 or number == len(jobs):
                    say(f"  {number}/{len(jobs)}")
        late = [name for name, told in self.failed.items() if told == NO_TIME]
        if late:
            say(f"{len(late)} trainings were not begun in the time given")
        for name, told in self.failed.items():
            if told != NO_TIME:
                say(f"left out, its training failed: {name}: {told.splitlines()[-1]:.200}")
        self.work = [(case, seed) for case, seed in self.work if f"{case.name} {seed}" not in self.failed]

    def _twins(self) -> list[tuple[str, Job]]:
        """The healthy trainings to hold broken ones against; those that most cases share come first."""
        broken = {case.name: case for case, _ in self.work if not case.healthy}.values()
        pairs = {(case.name, seed): case for case, seed in self.work if not case.healthy}
        pairs |= {(case.name, seed): case for case in broken for seed in self.spread}
        named = [(f"twin of {name} {seed}", job_of(case, seed, healthy=True)) for (name, seed), case in pairs.items()]
        shared = Counter(json.dumps(job, sort_keys=True) for _, job in named)
        return sorted(named, key=lambda one: -shared[json.dumps(one[1], sort_keys=True)])

    def _made(self, name: str, job: Job) -> Path | None:
        try:
            return self.forge.run(job)
        except TrainingFailed as error:
            self.failed[name] = str(error)
            return None

    def judge(self, *, twins: bool) -> list[Score]:
        """The doctor on every training."""
        asked = []
        for case, seed in self.work:
            held = self._held(case, seed) if twins and not case.healthy else None
            asked.append((case, seed, self.forge.run(job_of(case, seed)), held))
        with multiprocessing.get_context("spawn").Pool(self.jobs) as pool:
            return pool.map(judged, asked, chunksize=2)

    def _held(self, case: Case, seed: int) -> tuple[Path, list[Path]] | None:
        """The twin and the healthy runs; None where one of them could not be trained."""
        try:
            twin = self.forge.run(job_of(case, seed, healthy=True))
            return twin, [self.forge.run(job_of(case, other, healthy=True)) for other in self.spread]
        except TrainingFailed:
            return None

    def peers(self) -> dict[str, list[Score] | str]:
        """The other detectors on the scalars of every training."""
        runs = [Signals.from_run(open_run(self.forge.run(job_of(case, seed)))) for case, seed in self.work]
        words = [PEERS, str(Path(__file__).with_name("peer.py"))]
        done = subprocess.run(
            words, input=json.dumps([_scalars(run) for run in runs]), capture_output=True, text=True, check=True
        )
        answer: dict[str, list[Score] | str] = {}
        for name, alarms in json.loads(done.stdout).items():
            if isinstance(alarms, str):
                answer[name] = alarms
                continue
            answer[name] = [
                _peer_score(case, seed, run.last_step, steps)
                for (case, seed), run, steps in zip(self.work, runs, alarms, strict=True)
            ]
        return answer

    def fix(self, scores: Sequence[Score], say: Callable[[str], None]) -> list[Score]:
        """Train again with the patch of each incident that has one, against the twin's final loss. The fault is there
        again: the patch must bear it."""
        patched = [(case, seed, score) for (case, seed), score in zip(self.work, scores, strict=True) if score.patch]
        say(f"{len(patched)} trainings with the recommended patch")
        with ThreadPoolExecutor(self.jobs) as pool:
            closed = list(pool.map(lambda one: self._closes(*one), patched))
        found = {(case.name, seed): fixed for (case, seed, _), fixed in zip(patched, closed, strict=True)}
        return [replace(score, fixed=found.get((score.case, score.seed))) for score in scores]

    def _closes(self, case: Case, seed: int, score: Score) -> bool | None:
        """Whether the patched training ends where the twin does; None where it could not be trained."""
        path = self._made(f"patched {case.name} {seed}", job_of(case, seed, patch=score.patch))
        twin = self._made(f"twin of {case.name} {seed}", job_of(case, seed, healthy=True))
        return None if path is None or twin is None else _final_loss(path) <= CLOSE * _final_loss(twin)


def _scalars(run: Signals) -> dict[str, list[float]]:
    """What peer.py takes: rows at which loss and gradient norm are both there; an empty list for what was not timed."""
    loss, norm = run["train_loss"], run["grad_norm_preclip"]
    steps = np.intersect1d(loss.step, norm.step)
    found = {"steps": steps.tolist()}
    for name, signal in (("loss", loss), ("grad_norm", norm), ("lr", run["lr"]), ("step_time", run["step_time_s"])):
        row = np.clip(np.searchsorted(signal.step, steps, side="right") - 1, 0, None)
        found[name] = signal.value[row].tolist() if len(signal) else []
    return found


def _peer_score(case: Case, seed: int, last_step: int, alarms: Sequence[int]) -> Score:
    """A detector without names has no accept set: any alarm in time is a hit."""
    truth = truth_of(case, seed, last_step)
    found = events([(step, step) for step in alarms], truth)
    hit = reported = None
    if truth.onset is not None:
        in_time = [step for step in alarms if truth.onset - 2 <= step <= truth.onset + truth.window]
        hit, reported = bool(in_time), min(in_time, default=None)
    return Score(
        case.name, seed, last_step, truth.onset, found.true, found.false, found.late, hit=hit, reported_onset=reported
    )


def _final_loss(path: Path) -> float:
    """Median of the last fifty; infinite where the training was lost."""
    value = Signals.from_run(open_run(path))["train_loss"].tail(50).value
    return float(np.median(value)) if np.isfinite(value).all() else float("inf")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="tests.faults.cases", help="module with FAULTS and CONTROLS")
    parser.add_argument("--only", help="names of cases, comma-separated")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each fault (default: %(default)s)")
    parser.add_argument("--control-seeds", type=int, help="trainings of each control (default: as of each fault)")
    parser.add_argument("--first-seed", type=int, default=110)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--minutes", type=float, help="begin no training later than that, and score what there is")
    parser.add_argument("--no-twins", action="store_true", help="do not tell silent faults from manifest ones")
    parser.add_argument("--fixes", action="store_true", help="train again with the recommended patches")
    parser.add_argument(
        "--kept", type=Path, help="folder that keeps trainings: an interrupted benchmark goes on where it was"
    )
    parser.add_argument("--to", type=Path, default=RESULTS, help="folder for the results (default: %(default)s)")
    options = parser.parse_args(arguments)

    module = importlib.import_module(options.cases)
    only = set(options.only.split(",")) if options.only else None
    cases = [case for case in (*module.FAULTS, *module.CONTROLS) if only is None or case.name in only]
    if unknown := (only or set()) - {case.name for case in cases}:
        parser.error(
            f"no case is called {', '.join(sorted(unknown))}; {options.cases} has "
            f"{', '.join(case.name for case in (*module.FAULTS, *module.CONTROLS))}"
        )
    many = options.control_seeds or options.seeds
    work = [
        (case, options.first_seed + number)
        for number in range(max(many, options.seeds))  # all cases with one seed, then all with the next
        for case in cases
        if number < (many if case.healthy else options.seeds)
    ]
    console = Console(record=True, width=160, highlight=False)
    with tempfile.TemporaryDirectory(prefix="gradiometer-faults-") as folder:
        forge = Forge(options.kept or Path(folder), None if options.minutes is None else 60 * options.minutes)
        try:
            bench = Bench(work, options.first_seed, forge, options.jobs)
            twins = not options.no_twins
            bench.train(console.print, twins=twins or options.fixes)
            console.print("the doctor looks at them")
            scores = bench.judge(twins=twins)
            if options.fixes:
                scores = bench.fix(scores, console.print)
            others = bench.peers()
        finally:
            forge.close()
    if forge.under_other_rules:
        console.print(f"{len(forge.under_other_rules)} of the trainings were made under other rules of the doctor")
    tell(scores, others, cases, bench.failed, options, console)


def tell(
    scores: Sequence[Score],
    others: dict[str, list[Score] | str],
    cases: Sequence[Case],
    failed: Mapping[str, str],
    options: argparse.Namespace,
    console: Console,
) -> None:
    """Print the tables and write the files."""
    windows = {case.name: case.window for case in cases}
    found = figures(scores, windows.__getitem__)
    console.print(report.by_case(scores))
    for case in cases:
        if case.departs:
            console.print(f"{case.name} departs from the design notes: {case.departs}")
    console.print(report.goals(found))
    console.print(report.peers({"Gradiometer": scores, **others}, windows.__getitem__))
    options.to.mkdir(parents=True, exist_ok=True)
    peers: dict[str, Any] = {
        name: theirs if isinstance(theirs, str) else figures(theirs, windows.__getitem__).to_dict()
        for name, theirs in others.items()
    }
    by_case = {
        case.name: figures([s for s in scores if s.case == case.name], windows.__getitem__).to_dict() for case in cases
    }
    record = {
        "seeds": [options.first_seed, options.first_seed + options.seeds - 1],
        "departures": {case.name: case.departs for case in cases if case.departs},
        "failed": dict(failed),
        "all": found.to_dict(),
        "cases": by_case,
        "causes": confusion(scores),
        "peers": peers,
        "scores": [asdict(score) for score in scores],
    }
    (options.to / "faults.json").write_text(json.dumps(record, indent=1))
    (options.to / "faults.txt").write_text(console.export_text())
    (options.to / "causes.svg").write_text(report.picture(confusion(scores)))
    console.print(f"written: faults.json, faults.txt and causes.svg in {options.to}")


if __name__ == "__main__":
    main()
