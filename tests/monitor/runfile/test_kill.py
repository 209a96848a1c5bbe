"""kill -9 at any moment: no acknowledged row is lost, no value is wrong, and every directory opens.

More of them: GRADIOMETER_KILLS=500 pytest tests/monitor/runfile/test_kill.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monitor.runfile import format as fmt
from monitor.runfile.compact import compact_run
from monitor.runfile.compacted import COMPACT_STREAMS
from monitor.runfile.reader import open_run
from monitor.runfile.store import list_runs
from monitor.runfile.trash import delete_run, empty_trash, list_trash, restore_run, trash_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.known import STREAMS, known_steps, write_known

KILLS = int(os.environ.get("GRADIOMETER_KILLS", "16"))
EVERYTHING = {stream: list(range(1, 301)) for stream in STREAMS}
"""What is in the ended run below."""

NURSERY = """
import os, random, signal, sys, time

def nursery(kills, child, longest):
    # Fork from a warm process, so that the moment of the kill falls into the work and not into the imports.
    for kill in range(kills):
        chance = random.Random(kill)
        ready, begun = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(kill, chance, lambda: os.write(begun, b"."))
            os._exit(0)
        os.close(begun)
        os.read(ready, 1)
        os.close(ready)
        time.sleep(chance.uniform(0.0, longest))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
"""


def killed(code: str, *arguments: object) -> None:
    """Run the nursery with ``code``, which defines what its children do."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NURSERY + code, *map(str, arguments)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60 + 10 * KILLS,
    )
    assert done.returncode == 0, done.stderr


WRITING = """
from pathlib import Path
from monitor.runfile.writer import RankWriter, begin_attempt, create_run
from tests.monitor.runfile.known import write_known

def child(kill, chance, begun):
    run = create_run(runs, run_id=f"run-{kill:03d}")
    begin_attempt(run)
    acknowledged = os.open(runs / f"run-{kill:03d}.txt", os.O_WRONLY | os.O_CREAT)
    rows = chance.choice([1, 10, 64])
    # The smallest segments are full after a batch or two, so that many of the kills fall into a rotation.
    writer = RankWriter(run, 0, rows_per_batch=rows, segment_bytes=chance.choice([2_000, 20_000, 16 << 20]))
    begun()
    step = 0
    while True:
        count = chance.randint(1, 2 * rows)
        write_known(writer, range(step + 1, step + count + 1))
        step += count
        if writer.flush():
            os.pwrite(acknowledged, b"%09d" % step, 0)

runs = Path(sys.argv[1])
nursery(int(sys.argv[2]), child, 0.2)
"""


def test_no_acknowledged_row_of_any_stream_is_lost(tmp_path: Path) -> None:
    killed(WRITING, tmp_path, KILLS)
    written = rotated = 0
    for kill in range(KILLS):
        acknowledged = int((tmp_path / f"run-{kill:03d}.txt").read_text() or 0)
        run = open_run(tmp_path / f"run-{kill:03d}")
        assert run.problems == ()
        assert run.state.word in ("crashed", "starting")  # starting: killed before its first heartbeat
        for stream, steps in known_steps(run).items():
            assert steps == list(range(1, len(steps) + 1)), stream
            assert len(steps) >= acknowledged, stream
        written += acknowledged
        rotated += len(list(run.path.rglob("*-000001.*")))
    assert [row.problem for row in list_runs(tmp_path)] == [None] * KILLS
    assert written > 0
    assert rotated > 0 or KILLS < 100


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ended run in many segments."""
    run_dir = create_run(tmp_path_factory.mktemp("ended"), run_id="one")
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0, rows_per_batch=10, segment_bytes=4_000)
    write_known(writer, range(1, 301))
    writer.close()
    write_exit(run_dir, 0, outcome="finished", step=300, reason="done")
    return run_dir


COMPACTING = """
from pathlib import Path
from monitor.runfile.compact import compact_run

def child(kill, chance, begun):
    begun()
    compact_run(runs / f"run-{kill:03d}", remove=kill % 2 == 1)

runs = Path(sys.argv[1])
nursery(int(sys.argv[2]), child, float(sys.argv[3]))
"""


def test_a_compaction_cut_short_loses_nothing_and_is_done_again(ended: Path, tmp_path: Path) -> None:
    for kill in range(KILLS):
        shutil.copytree(ended, tmp_path / f"run-{kill:03d}")
    whole = shutil.copytree(ended, tmp_path / "whole")
    began = time.perf_counter()
    compact_run(whole)
    killed(COMPACTING, tmp_path, KILLS, 1.5 * (time.perf_counter() - began))
    cut_short = 0
    for kill in range(KILLS):
        run_dir = tmp_path / f"run-{kill:03d}"
        left = len(list((run_dir / "compact").glob("*.seal")))
        cut_short += 0 < left < 6 or bool(list((run_dir / "compact").glob(".*.tmp")))
        run = open_run(run_dir)
        assert run.problems == ()
        assert known_steps(run) == EVERYTHING
        for stream in COMPACT_STREAMS:  # what is left of the segments would still be one without the compact file
            numbers = sorted(int(path.stem[-6:]) for path in run_dir.rglob(f"{stream}-*.arrows"))
            assert numbers == list(range(len(numbers)))
        compact_run(run_dir, remove=True)
        again = open_run(run_dir)
        assert again.problems == ()
        assert known_steps(again) == EVERYTHING
        assert {path.name.split("-")[0] for path in run_dir.rglob("*.arrows")} == {"landscape"}
    assert cut_short > 0 or KILLS < 100  # of a few, all may miss the moment


BEGINNING = """
from pathlib import Path
from monitor.runfile.writer import RankWriter, begin_attempt
from tests.monitor.runfile.known import write_known

def child(kill, chance, begun):
    begun()
    while True:
        number = begin_attempt(run, parent=0, resume_step=300)
        os.write(told, b"%d\\n" % number)

run, told = Path(sys.argv[1]), os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
nursery(int(sys.argv[2]), child, 0.02)
"""


def test_an_attempt_cut_short_while_it_begins_hides_nothing_and_is_followed_by_another(
    ended: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(ended, tmp_path / "run")
    killed(BEGINNING, run_dir, KILLS, tmp_path / "told")
    told = [int(line) for line in (tmp_path / "told").read_text().split()]
    assert len(set(told)) == len(told) > 0
    assert all((fmt.attempt_dir(run_dir, number) / "attempt.json").exists() for number in told)
    run = open_run(run_dir)
    assert run.problems == ()
    assert known_steps(run) == EVERYTHING
    assert len(run.series("ratio")) == 300
    number = begin_attempt(run_dir, parent=0, resume_step=300)
    assert number == max(attempt.number for attempt in run.attempts) + 1
    writer = RankWriter(run_dir, number)
    write_known(writer, range(301, 311))
    writer.close()
    run.refresh()
    assert run.series("ratio").step.tolist() == list(range(1, 311))
    assert run.problems == ()


THROWING = """
from pathlib import Path
from monitor.runfile.trash import delete_run, restore_run, trash_run

def child(kill, chance, begun):
    begun()
    name = f"run-{kill:03d}"
    while True:
        trash_run(runs, name)
        if chance.random() < 0.05:
            delete_run(runs, name)
            return
        restore_run(runs, name)

runs = Path(sys.argv[1])
nursery(int(sys.argv[2]), child, 0.02)
"""


def test_a_run_is_here_or_in_the_trash_or_gone_and_never_half(ended: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for kill in range(KILLS):
        shutil.copytree(ended, runs / f"run-{kill:03d}")
    killed(THROWING, runs, KILLS)
    here = {row.id for row in list_runs(runs)}
    thrown = {one.id for one in list_trash(runs)}
    assert here.isdisjoint(thrown)
    for name in thrown:
        restore_run(runs, name)
    whole = here | thrown
    assert whole
    for name in whole:
        run = open_run(runs / name)
        assert run.problems == ()
        assert known_steps(run) == EVERYTHING
    # What is gone was asked to go: nothing of it is left but what the next emptying takes.
    gone = {f"run-{kill:03d}" for kill in range(KILLS)} - whole
    for name in gone:
        assert not (runs / name).exists()
        assert not (runs / ".trash" / name).exists()
    empty_trash(runs)
    assert list((runs / ".trash").iterdir()) == []
    name = whole.pop()
    trash_run(runs, name)
    delete_run(runs, name)
    assert not (runs / name).exists()
