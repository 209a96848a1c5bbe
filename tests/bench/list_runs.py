"""What a list of many runs costs, beside the least that any list must do.

    python tests/bench/list_runs.py [--runs N] [--rounds N] [--keep FOLDER]

Real writers make a few runs (finished, stopped, crashed, resumed, cut short), whose small files are then written again
under other ids with other configurations, and whose segments are linked. Everything is measured in turn in fresh
processes, so that a busy machine hits all alike; medians of wall time and of CPU time, files in the page cache:

    limit        os.scandir, and json.load of every run.json
    no index     list_runs: every small file of every run
    first        RunIndex without a file, which it then writes
    cold         RunIndex in a new process, from the file
    warm         the same one asked again
    search       a query for a number in the configuration, over all rows
    command      gradiometer runs --no-incidents, from the start of the interpreter to its end (wall only)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from monitor.runfile import format as fmt
from monitor.runfile.index import INDEX_FILE, REST_S
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit

ROOT = Path(__file__).resolve().parents[2]
GOALS = {"cold": 1.0, "warm": 0.2}
"""Seconds for 10 000 runs; from the design's performance table."""
CONFIG = {
    "model": {"n_layer": 6, "n_head": 6, "d_model": 384, "context": 256, "dropout": 0.0},
    "optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1, "eps": 1e-8},
    "schedule": {"kind": "cosine", "warmup_steps": 100, "min_lr_ratio": 0.1},
    "clip": {"max_norm": 1.0}, "steps": 200, "batch_size": 32, "grad_accum_steps": 1, "precision": "fp32", "seed": 0,
}  # fmt: skip

MEASURE = """
import json, os, sys, time
folder, what = sys.argv[1:]
clocks = lambda: (time.perf_counter(), time.process_time())
def timed(action):
    before = clocks()
    result = action()
    return [after - start for after, start in zip(clocks(), before)], result
def limit():
    for entry in os.scandir(folder):
        if entry.name[0] != ".":
            with open(entry.path + "/run.json", "rb") as file:
                json.load(file)
times = {}
if what == "limit":
    times["limit"], _ = timed(limit)
elif what == "no index":
    from monitor.runfile.store import list_runs
    times["no index"], _ = timed(lambda: list_runs(folder))
else:
    from monitor.runfile.index import RunIndex
    from monitor.runfile.search import parse
    index = RunIndex(folder)
    times[what], listed = timed(index.read)
    if what == "cold":
        for _ in range(3):
            times["warm"], listed = timed(index.read)
        search = lambda: parse("lr>=1e-3").select(listed.rows, 0.0, index.config_of, lambda row: row)
        times["search"], found = timed(search)
        assert 0 < len(found) < len(listed.rows)
print(json.dumps(times))
"""


def template(runs: Path, kind: str) -> Path:
    """A small run that a real writer has written, moved out of the list."""
    run_dir = create_run(runs, name=kind, task="gpt", config=CONFIG)
    for number in range(2 if kind == "resumed" else 1):
        parent = number - 1 if number else None
        begin_attempt(run_dir, parent=parent, resume_step=20 * number, planned_steps=200, environment={"device": "cpu"})
        writer = RankWriter(run_dir, number)
        for step in range(20 * number + 1, 20 * number + 21):
            writer.scalars(step, time.time(), {"train_loss": 5.0 / step, "lr": 1e-3, "grad_norm_preclip": 1.0})
        writer.close()
        if kind != "cut short":
            outcome = kind if kind in fmt.OUTCOMES else "finished"
            write_exit(run_dir, number, outcome=outcome, step=20 * number + 20, reason="all steps done")
    return run_dir


def make(folder: Path, count: int) -> None:
    """``count`` runs in ``folder``."""
    kinds = ["finished"] * 90 + ["stopped", "crashed", "resumed", "crashed", "resumed"] + ["cut short"]
    originals: dict[str, dict[Path, bytes | Path]] = {}
    for kind in dict.fromkeys(kinds):
        original = template(folder.parent / "templates", kind)
        files = [path for path in original.rglob("*") if path.is_file()]
        originals[kind] = {
            path.relative_to(original): path.read_bytes() if path.suffix == ".json" else path for path in files
        }
    for number in range(count):
        kind = kinds[number % len(kinds)]
        run_dir = folder / f"20260101-{number:06d}-sweep-{number & 0xFFFF:04x}"
        for relative, content in originals[kind].items():
            target = run_dir / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                os.link(content, target)
            elif relative.name == fmt.RUN_FILE:
                lr = 1e-4 * (1 + number % 50)
                own = {"id": run_dir.name, "name": f"sweep {number}", "created": 1.77e9 + number}
                config = {**CONFIG, "optimizer": {**CONFIG["optimizer"], "lr": lr}, "seed": number}  # type: ignore[dict-item]
                target.write_text(json.dumps(json.loads(content) | own | {"config": config}))
            else:
                target.write_bytes(content)


def measured(folder: Path, what: str) -> dict[str, list[float]]:
    """Seconds of wall and CPU time by name, from a process of its own."""
    if what == "command":
        words = [sys.executable, "-m", "app", "runs", "--no-incidents", "--runs", str(folder)]
        began = time.perf_counter()
        subprocess.run(words, cwd=ROOT, env=environment(), check=True, capture_output=True)
        return {"command": [time.perf_counter() - began]}
    if what == "first":
        (folder / INDEX_FILE).unlink(missing_ok=True)
    words = [sys.executable, "-c", MEASURE, str(folder), what]
    done = subprocess.run(words, cwd=ROOT, env=environment(), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="make the runs there, and use them again if they are"
    )
    # Not sys.argv when every benchmark runs in turn: the words there are not for this one.
    given = parser.parse_args(sys.argv[1:] if __name__ == "__main__" else [])
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.keep or Path(temporary)) / "runs"
        if not folder.exists():
            make(folder, given.runs)
            time.sleep(2 * REST_S)  # what was changed just now is not taken from an index
        count = sum(not entry.name.startswith(".") for entry in folder.iterdir())
        taken: dict[str, list[list[float]]] = {}
        for _ in range(given.rounds):
            for what in ("limit", "no index", "first", "cold", "command"):
                for name, times in measured(folder, what).items():
                    taken.setdefault(name, []).append(times)
        index = folder / INDEX_FILE  # a small folder has none
        report(taken, count, index.stat().st_size if index.exists() else 0)


def report(taken: dict[str, list[list[float]]], count: int, size: int) -> None:
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in taken.items()}
    limit = medians["limit"]
    print(f"{count} runs, index of {size / 2**20:.1f} MiB, medians of {len(taken['limit'])} rounds")
    print(f"{'':10} {'wall':>9} {'x limit':>8} {'CPU':>9} {'x limit':>8}")
    for name in ("limit", "no index", "first", "cold", "warm", "search", "command"):
        wall, *cpu = medians[name]
        line = f"{name:10} {wall:7.3f} s {wall / limit[0]:8.2f}"
        line += f" {cpu[0]:7.3f} s {cpu[0] / limit[1]:8.2f}" if cpu else " " * 19
        goal = GOALS.get(name)
        print(line + (f"   goal {goal} s for 10 000" if goal else ""))


if __name__ == "__main__":
    main()
