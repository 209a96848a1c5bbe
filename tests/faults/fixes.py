"""``python -m tests.faults.fixes``: whether *Try this fix* mends what a change of the configuration can mend.

Each case is trained broken by the real launcher, its incident is given to ``app.fixes`` as the page gives it, and the
child that this starts is trained to the end, judged, and held against the healthy twin. A case is mended when the
verdict is *gone* and the child's final loss (median of 50 steps) is at most 1.05 times that of the twin. Results go to
tests/faults/results/fixes.json.

What becomes of a fault in the child, which is a training of the same seed from before the onset:

``data``     it lies in a batch: it is there again, unless the batch is skipped
``once``     the machine slipped: it does not come again
``always``   it is what the training has to stand, in the twin too; what is wrong is the configuration

The other faults of ``cases.py`` are mistakes in code or data, which no configuration mends: see ``NOT_FIXABLE``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from app import fixes
from monitor.diagnosis.engine import diagnose
from monitor.runfile.reader import open_run
from tests.faults.cases import FAULTS, GPT, Case
from tests.faults.harness import job_of, onset_of
from tests.faults.metrics import Share, share
from trainer.config import FaultConfig, TrainConfig, from_record, load_config, with_values
from trainer.launch import start, status

Recurs = Literal["data", "once", "always"]
RESULTS = Path(__file__).parent / "results"
CLOSE = 1.05
EARLY, WINDOW = 2, 100
"""Steps round the fault's onset in which the incident that is mended has to begin."""
CHECKPOINTS = {"checkpoint.every_steps": 50, "checkpoint.keep_last": 20}


@dataclass(frozen=True, slots=True)
class Fixable:
    """A fault, what becomes of it in the child, and what its healthy twin is."""

    case: Case
    recurs: Recurs
    twin: Mapping[str, Any] = field(default_factory=dict)
    """Of the configuration, where that is at fault."""
    preset: str | None = None

    @property
    def name(self) -> str:
        return self.case.name


def _named(name: str) -> Case:
    return next(case for case in FAULTS if case.name == name)


SGD = {**GPT, "optimizer.kind": "sgd", "optimizer.lr": 0.3}
FIXABLE: tuple[Fixable, ...] = (
    Fixable(_named("inputs-x1000"), "data"),
    Fixable(_named("repeated-token"), "data"),
    Fixable(Case("random-bytes", faults=({"kind": "random_bytes", "steps": 1},)), "data"),
    Fixable(_named("gradient-x50-gpt"), "once"),
    Fixable(_named("gradient-x50-mlp"), "once"),
    Fixable(_named("gradient-x50-cnn"), "once"),
    Fixable(_named("nan-activation-gpt"), "once"),
    Fixable(_named("nan-activation-mlp"), "once"),
    Fixable(
        Case("clip-off", config={**SGD, "clip.max_norm": None}, faults=({"kind": "heavy_tails", "steps": None},)),
        "always",
        twin={"clip.max_norm": 0.5},
    ),
    Fixable(
        Case("lr-too-high", config={"steps": 300, "threads": 1}, onset=(0, 0)),
        "always",
        twin={"optimizer.lr": 1.0},
        preset="explosion",
    ),
)
NOT_FIXABLE = {
    "lr-x30, lr-x300-one-step, lr-1000th": "the schedule's code is wrong; the configured rate is right",
    "gradient-zeroed, replaced-parameter, no-zero-grad, double-softmax, weight-decay": "a mistake in the loop",
    "shuffled-labels, inputs-unnormalised": "the data are wrong from the onset on",
    "dying-relu, qk-growth, stale-second-moment": "something writes into weights or moments, and would again",
    "fp16-overflow": "bf16 mends it, but the fault here overflows in any format",
    "clip-removed": "the loop leaves out the clipping that is configured; clip-off is the same by configuration",
    "resume-without-optimizer, tensor-leak, desync": "a mistake in the loop",
    "slow-loader, throughput-5-percent, slow-rank, hang": "time, not the training",
}
"""Faults of ``cases.py`` that are mended by removing them."""


@dataclass(frozen=True, slots=True)
class Result:
    """One fix that was tried."""

    case: str
    seed: int
    recurs: Recurs
    mended: bool | None
    """None without an incident, on which nothing can be tried."""
    why: str = ""
    onset: int | None = None
    incident: int | None = None
    patch: Mapping[str, Any] = field(default_factory=dict)
    from_step: int | None = None
    word: str = ""
    loss: float = float("nan")
    twin: float = float("nan")


def tried(one: Fixable, seed: int, runs: Path) -> Result:
    """Break, diagnose, mend, judge, compare."""
    broken_config, twin_config = _configs(one, seed)
    broken, twin = (trained(config, runs) for config in (broken_config, twin_config))
    head: dict[str, Any] = {"case": one.name, "seed": seed, "recurs": one.recurs}
    report = diagnose(str(broken)).to_dict()
    onset = onset_of(one.case, seed) if one.case.onset != (0, 0) else None
    incident = _incident(report["incidents"], onset)
    if incident is None:
        return Result(**head, mended=None, why="no incident was found at the onset", onset=onset)
    plan = fixes.plans(open_run(broken), incident, report["findings"])[0]
    patch = plan.experiment.patch
    child = fixes.begin(broken, plan, _faults=_recurring(one, broken_config.fault, patch))
    ended(child)
    outcome = fixes.settle(child)
    loss, goal = _final_loss(child), _final_loss(twin)
    close = bool(loss <= CLOSE * goal)
    return Result(
        **head,
        mended=outcome.word == "gone" and close,
        why=outcome.text,
        onset=onset,
        incident=incident["onset_step"],
        patch=dict(patch),
        from_step=plan.step,
        word=outcome.word,
        loss=loss,
        twin=goal,
    )


def _configs(one: Fixable, seed: int) -> tuple[TrainConfig, TrainConfig]:
    """The broken one and the healthy one."""
    if one.preset:
        base = with_values(load_config(None, preset=one.preset), {**one.case.config, "seed": seed})
        return base, with_values(base, one.twin)
    broken = from_record(job_of(one.case, seed, patch=CHECKPOINTS)["config"])
    healthy = from_record(job_of(one.case, seed, healthy=one.recurs != "always", patch=CHECKPOINTS)["config"])
    return broken, with_values(healthy, one.twin)


def _incident(incidents: Sequence[Mapping[str, Any]], onset: int | None) -> Mapping[str, Any] | None:
    """The worst that begins with the fault; the worst of all where the configuration is the fault from the start."""
    near = [i for i in incidents if onset is None or onset - EARLY <= i["onset_step"] <= onset + WINDOW]
    return near[0] if near else None


def _recurring(one: Fixable, faults: Sequence[FaultConfig], patch: Mapping[str, Any]) -> list[FaultConfig]:
    """The faults that the child meets."""
    if one.recurs == "once":
        return []
    if one.recurs == "always":
        return list(faults)
    after, batches = patch.get("skip.after_step", 0), patch.get("skip.batches", 0)
    return [fault for fault in faults if not after < fault.step <= after + batches]


def trained(config: TrainConfig, runs: Path) -> Path:
    """The run directory of a training that has ended."""
    path = start(config, runs).run_dir
    ended(path)
    return path


def ended(path: Path) -> None:
    while status(path).running:
        time.sleep(0.5)


def _final_loss(path: Path) -> float:
    """Median of the last fifty; infinite where the training was lost."""
    value = open_run(path).series("train_loss").tail(50).value
    return float(np.median(value)) if len(value) and np.isfinite(value).all() else float("inf")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.fixes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="names of cases, comma-separated")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each case")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time, one thread each")
    parser.add_argument("--to", type=Path, default=RESULTS, help="folder for the results (default: %(default)s)")
    options = parser.parse_args(arguments)
    only = set(options.only.split(",")) if options.only else None
    chosen = [one for one in FIXABLE if only is None or one.name in only]
    if unknown := (only or set()) - {one.name for one in chosen}:
        parser.error(f"no fixable case is called {', '.join(sorted(unknown))}: {', '.join(o.name for o in FIXABLE)}")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    work = [(one, seed) for seed in seeds for one in chosen]
    results: list[Result] = []
    folder = Path(tempfile.mkdtemp(prefix="gradiometer-fixes-"))
    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            for result in pool.map(lambda pair: tried(*pair, folder / f"{pair[0].name}-{pair[1]}"), work):
                results.append(result)
                print(_line(result), flush=True)
                write(results, options.to)
    finally:
        shutil.rmtree(folder)
    print(f"mended: {found(results)}")
    print(f"written: {options.to / 'fixes.json'}")


def found(results: Sequence[Result]) -> Share:
    return share(result.mended for result in results)


def write(results: Sequence[Result], folder: Path) -> None:
    """What is there so far; a share of each kind of fault beside that of all."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {kind: found([r for r in results if r.recurs == kind]).to_dict() for kind in ("data", "once", "always")}
    record = {
        "all": found(results).to_dict(),
        **kinds,
        "not_fixable": NOT_FIXABLE,
        "results": [asdict(r) for r in results],
    }
    (folder / "fixes.json").write_text(json.dumps(record, indent=1, default=float))


def _line(result: Result) -> str:
    said = {True: "mended", False: "NOT mended", None: "nothing to try"}[result.mended]
    losses = f"loss {result.loss:.4g}, twin {result.twin:.4g}"
    return f"{result.case} {result.seed}: {said}; {result.word or '-'}; {losses}; {dict(result.patch)}; {result.why}"


if __name__ == "__main__":
    main()
