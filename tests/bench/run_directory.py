"""Speed and size of the run directory beside other formats and loggers: writing, reading, following, zooming.

    python -m tests.bench.run_directory [--quick] [--rounds N]

Everything is taken in one run, the contestants of a row in turns, medians of the rounds; quote ratios, not times. Each
measurement that a user would make in a fresh process is made in one (imports are not counted). *Cold* is with the
files dropped from the page cache (``posix_fadvise``), where the kernel does so. *Live* is a run whose writer is
still at it, *sealed* one that has ended, *compacted* one with compact files and levels.

The loggers are no part of this project and are skipped where they are not installed. To have them measured:

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install numpy pandas tensorboard wandb mlflow trackio aim
    GRADIOMETER_PEERS=/tmp/peers/bin/python make bench

Where a goal is missed, a profile of what took the time is printed below the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from monitor.runfile.compact import compact_run
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, write_exit
from tests.bench.ours import begin, put
from tests.bench.peer import LOGGERS, PLAIN, rows
from tests.bench.report import Line, bars, number, save, table

ROOT = Path(__file__).resolve().parents[2]
PEERS = os.environ.get("GRADIOMETER_PEERS", sys.executable)
NAME = "layer.3.weight"
RAW_S = 0.029
"""What the column of a mapped file of 1M x 20 took on the machine of the design's goals."""
STATES = ("live", "sealed", "compacted")

Measured = dict[str, float]


# Fresh processes -----------------------------------------------------------------------------------------------------


def child(words: list[str], timeout: float = 300, threads: int = 1) -> dict[str, Any]:
    """What a process of one measurement printed; ``{"skipped": why}`` when it could not be made."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"skipped": f"{words[3:5]} took longer than {timeout:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"skipped": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
    return json.loads(lines[-1])


def ours(*words: object) -> dict[str, Any]:
    return child([sys.executable, "-m", "tests.bench.ours", *map(str, words)])


def peer(*words: object, kind: str) -> dict[str, Any]:
    python = PEERS if kind in LOGGERS else sys.executable
    command, *rest = words
    return child([python, str(ROOT / "tests" / "bench" / "peer.py"), str(command), kind, *map(str, rest)])


def drop_from_cache(folder: Path) -> None:
    """Ask the kernel to forget the files' pages, so that the next reader meets the disk."""
    if hasattr(os, "posix_fadvise"):
        for path in folder.rglob("*"):
            if path.is_file():
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)


class Rounds:
    """Figures of several rounds by what they are about."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.skipped: dict[str, str] = {}

    def add(self, key: str, result: dict[str, Any]) -> None:
        if "skipped" in result:
            if key not in self.skipped:
                print(f"  skipped {key}: {result['skipped']}", flush=True)
            self.skipped[key] = str(result["skipped"])
            return
        for name, value in result.items():
            self.found[key][name].append(float(value))

    def median(self, key: str, name: str) -> float:
        return statistics.median(self.found[key][name])

    def range(self, key: str, name: str) -> str:
        values = self.found[key][name]
        return f"{number(min(values))} to {number(max(values))}"


# Writing -------------------------------------------------------------------------------------------------------------


def writing(work: Path, width: int, size: Size) -> tuple[list[Line], dict[str, float], dict[str, float]]:
    """Steps a second and bytes a value of ``width`` values a step, everybody in turns."""
    print(f"writing {width} values a step", flush=True)
    found = Rounds()
    steps = size.write_steps if width > 100 else 3 * size.write_steps
    for number_of_round in range(size.rounds):
        kinds = ["ours", *PLAIN, *LOGGERS]
        for kind in kinds[number_of_round:] + kinds[:number_of_round]:
            if kind in found.skipped:
                continue
            with tempfile.TemporaryDirectory(dir=work, ignore_cleanup_errors=True) as folder:
                if kind == "ours":
                    found.add(kind, ours("write", folder, width, steps))
                else:
                    found.add(kind, peer("write", folder, width, steps, size.peer_seconds, kind=kind))
    rates: dict[str, float] = {}
    weights: dict[str, float] = {}
    for kind, result in found.found.items():
        name = "run directory" if kind == "ours" else kind
        rates[name] = statistics.median(n / s for n, s in zip(result["steps"], result["seconds"], strict=True))
        weights[name] = statistics.median(
            b / (n * width) for b, n in zip(result["bytes"], result["steps"], strict=True)
        )
    kind = "layers" if width > 100 else "scalars"
    goal = width > 100
    mine = rates["run directory"]
    us = {who: found.median("ours", f"{who}_thread_us") for who in ("training", "writer")}
    costs = f"processor time a step: training thread {us['training']:.1f} us, writer thread {us['writer']:.1f} us"
    others = ", ".join(f"{name} {number(mine / rate)}x" for name, rate in rates.items() if name != "run directory")
    heavier = ", ".join(f"{name} {number(weight)}" for name, weight in weights.items() if name != "run directory")
    lines = [
        Line(f"write {width} {kind} a step, of the raw append's steps/s", mine / rates["raw"], "x",
             0.8 if goal else None, True, f"{mine:,.0f} steps/s, {costs}; it is {others}"),
        Line(f"write {width} {kind} a step, bytes a value", weights["run directory"], "B", 4.2 if goal else None,
             beside=heavier),
    ]  # fmt: skip
    return lines, rates, weights


# Following -----------------------------------------------------------------------------------------------------------


def polls(path: Path, writer: RankWriter, names: list[str], data: list[list[float]], last: int) -> tuple[Measured, int]:
    """Milliseconds of a poll with ten new steps and of one without news, by a reader that has seen the rest."""
    run = open_run(path)
    run.series(names[3])
    fresh, still = [], []
    for _ in range(25):
        put(writer, names, data, last + 1, last + 10)
        last += 10
        writer.flush()
        began = time.perf_counter()
        run.refresh()
        middle = time.perf_counter()
        assert run.last_step == last
        run.refresh()  # the heartbeat, which the writer has just rewritten, may be news as well
        again = time.perf_counter()
        run.refresh()
        still.append((time.perf_counter() - again) * 1e3)
        fresh.append((middle - began) * 1e3)
    return {"news": statistics.median(fresh), "none": statistics.median(still)}, last


def make_states(
    work: Path, width: int, steps: int, marks: tuple[int, ...] = ()
) -> tuple[dict[str, Path], dict[int, Measured], float]:
    """One run of ``steps`` steps, as it is while it goes on, after it has ended, and compacted; polls at ``marks``."""
    writer, names = begin(work / f"of {width}", width)
    (path,) = (work / f"of {width}").iterdir()
    data, at, poll = rows(width), 0, {}
    for mark in sorted({*marks, steps}):
        put(writer, names, data, at + 1, mark)
        at = mark
        writer.flush(60)
        if mark in marks:
            poll[mark], at = polls(path, writer, names, data, at)
    states = {"sealed": path}
    for state in ("live", "compacted"):
        if state == "compacted":
            writer.close()
            write_exit(path, 0, outcome="finished", step=at, reason="done")
        states[state] = Path(shutil.copytree(path, work / f"{state} {width}" / path.name))
    began = time.perf_counter()
    compact_run(states["compacted"])
    return states, poll, time.perf_counter() - began


def following(poll: dict[int, Measured]) -> list[Line]:
    least = poll[min(poll)]["news"]
    lines = []
    for steps, result in poll.items():
        beside = f"without news {number(result['none'])} ms; {result['news'] / least:.2f}x that of {min(poll):,} steps"
        lines.append(
            Line(f"poll with 10 new steps, run of {steps:,} steps x 20", result["news"], "ms", 2.0, beside=beside)
        )
    return lines


# Reading -------------------------------------------------------------------------------------------------------------


def reading(
    work: Path, width: int, steps: int, states: dict[str, Path], size: Size
) -> tuple[list[Line], dict[str, float]]:
    """Open a run and have one series whole; then in 2 000 points."""
    print(f"reading {steps:,} steps x {width}", flush=True)
    found = Rounds()
    for _ in range(size.rounds):
        for state in STATES:
            path = states[state]
            for warmth in ("warm", "cold"):
                for command in ("read", "zoom"):
                    if warmth == "cold":
                        drop_from_cache(path)
                    given = (steps,) if command == "zoom" else ()
                    found.add(f"{command} {state} {warmth}", ours(command, path, NAME, *given))
            found.add(f"page {state}", ours("page", path))
        if width == 20:
            others_read(work, steps, found, size)
    lines = read_lines(width, steps, found)
    times = {f"run directory, {state}": found.median(f"read {state} warm", "seconds") for state in STATES}
    times |= {key: found.median(key, "whole") for key in found.found if "whole" in found.found[key]}
    return lines, times


def others_read(work: Path, steps: int, found: Rounds, size: Size) -> None:
    """The same series from other formats; of slow ones a part, whose time is scaled up."""
    for kind, share in (("raw", 1), ("csv", 10), ("sqlite", 10), ("jsonl", 20), ("tensorboard", 200)):
        folder = work / f"read {kind}"
        if kind in found.skipped:
            continue
        if not folder.exists():
            folder.mkdir()
            made = peer("write", folder, 20, steps // share, 120, kind=kind)
            if "skipped" in made:
                found.add(kind, made)
                continue
        result = peer("read", folder, "layer,20" if kind == "raw" else NAME, kind=kind)
        if "seconds" in result:
            result["whole"] = result["seconds"] * steps / result["steps"]
        key = kind if share == 1 else f"{kind} (1/{share}, scaled)"
        found.add(key, result)


def read_lines(width: int, steps: int, found: Rounds) -> list[Line]:
    of = f"{steps:,} x {width}"
    goals = {"live": 0.15, "sealed": 0.15, "compacted": 0.03}
    lines: list[Line] = []
    for state in STATES:
        key = f"read {state} warm"
        beside = f"{found.range(key, 'seconds')} s; cold {number(found.median(f'read {state} cold', 'seconds'))} s; "
        beside += f"memory {found.median(key, 'own'):.0f} MB own, {found.median(key, 'peak'):.0f} MB with mapped files"
        goal = goals[state] if width == 20 and steps >= 1_000_000 else None
        what = f"one series whole of {of}, {state}"
        lines.append(Line(what, found.median(key, "seconds"), "s", goal, beside=beside))
        if goal is not None and "raw" in found.found:  # what a busy machine does not change
            ratio = found.median(key, "seconds") / found.median("raw", "seconds")
            beside = f"the file took {number(found.median('raw', 'seconds'))} s"
            lines.append(
                Line(f"the same, of a mapped raw file's time, {state}", ratio, "x", goal / RAW_S, beside=beside)
            )
    for state in STATES:
        key = f"zoom {state} warm"
        beside = f"cold {number(found.median(f'zoom {state} cold', 'first'))} s; "
        beside += f"memory {found.median(key, 'own'):.0f} MB own, {found.median(key, 'peak'):.0f} MB with mapped files"
        lines.append(
            Line(f"open and first 2,000 points of {of}, {state}", found.median(key, "first"), "s", beside=beside)
        )
        low, high = (pick(found.found[key]["zoom"]) * 1e3 for pick in (min, max))
        other = found.median(key, "other") * 1e3
        beside = f"{number(low)} to {number(high)} ms; first view of another series {number(other)} ms"
        lines.append(
            Line(f"zoom to 2,000 points of {of}, {state}", found.median(key, "zoom") * 1e3, "ms", 5.0, beside=beside)
        )
    for state in STATES:
        again = f"again without news {number(found.median(f'page {state}', 'again') * 1e3)} ms"
        beside = f"{found.median(f'page {state}', 'charts'):.0f} charts, "
        beside += f"{found.median(f'page {state}', 'kb'):.0f} kB; {again}"
        what = f"open and all charts of the page of {of}, {state}"
        lines.append(Line(what, found.median(f"page {state}", "first"), "s", beside=beside))
    return lines


# All of it -----------------------------------------------------------------------------------------------------------


class Size:
    """How much is done."""

    def __init__(self, quick: bool, rounds: int | None) -> None:
        self.rounds = rounds or (1 if quick else 3)
        self.write_steps = 5_000 if quick else 40_000
        self.peer_seconds = 0.3 if quick else 2.0
        self.long, self.wide = (50_000, 5_000) if quick else (1_000_000, 100_000)
        self.marks = (1_000, 50_000) if quick else (1_000, 100_000, 1_000_000)


def bound(line: Line, states: dict[str, Path]) -> str:
    """What bounds a missed line: a profile, where it is about one opening and reading."""
    state = line.what.rsplit(", ", 1)[-1]
    if state not in states:
        return ""
    return ours("profile", states[state], NAME, "read" if "whole" in line.what else "zoom").get("text", "")


def main(quick: bool | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a run of seconds on small sizes: whether it works")
    parser.add_argument("--rounds", type=int, default=None)
    options = parser.parse_args([] if quick is not None else None)
    size = Size(options.quick or bool(quick), options.rounds)
    if sys.executable == PEERS:
        print("  GRADIOMETER_PEERS is not set: loggers are looked for in this environment")
    lines: list[Line] = []
    charts: list[list[str]] = []
    more: dict[str, Any] = {"rounds": size.rounds, "quick": options.quick or bool(quick), "cpus": os.cpu_count()}
    states: dict[int, dict[str, Path]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        for width in (200, 20):
            found, rates, weights = writing(work, width, size)
            lines += found
            charts.append(bars(f"Writing {width} values a step", rates, "steps/s", "run directory"))
            charts.append(bars(f"Size on disk at {width} values a step", weights, "bytes a value", "run directory"))
            more[f"write {width}"] = {"steps_per_s": rates, "bytes_per_value": weights}
        for width, steps in ((20, size.long), (200, size.wide)):
            print(f"making a run of {steps:,} steps x {width}", flush=True)
            made, poll, took = make_states(work, width, steps, size.marks if width == 20 else ())
            states[width] = made
            if poll:
                lines += following(poll)
            found, times = reading(work, width, steps, made, size)
            lines += found
            lines.append(Line(f"compacting {steps:,} x {width}", took, "s"))
            charts.append(
                bars(f"One series whole of {steps:,} x {width}, opening included", times, "s", "run directory")
            )
            more[f"read {width}"] = times
        print(table("\nrun directory: goals are those of the design, for a machine of two cores", lines))
        for line in lines:
            if line.ratio is not None and line.ratio > 1:
                print(f"  missed by {line.ratio:.2f}x: {line.what}")
                print(bound(line, states[200 if "x 200" in line.what else 20]), end="\n")
    print("  written:", *(str(path.relative_to(ROOT)) for path in save("run_directory", lines, more, charts)))


if __name__ == "__main__":
    main()
