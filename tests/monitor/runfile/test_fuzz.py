"""Runs that are broken at random: reader, doctor, export and the rest end with data or with one of our own messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from monitor.errors import RunError
from monitor.runfile.reader import open_run
from monitor.runfile.store import list_runs
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.fuzz import Chance, mutate, touch_everything
from tests.monitor.runfile.known import known_steps, write_known

ROUNDS = int(os.environ.get("GRADIOMETER_FUZZ", "12"))
"""More of them: GRADIOMETER_FUZZ=2000 pytest tests/monitor/runfile/test_fuzz.py"""
FIRST = int(os.environ.get("GRADIOMETER_FUZZ_SEED", "0"))


def test_broken_samples_end_with_data_or_one_message(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.monitor.runfile.fuzz", str(tmp_path), str(FIRST), str(ROUNDS)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        capture_output=True,
        text=True,
        timeout=120 + 10 * ROUNDS,
    )
    seeds = done.stdout.split()
    assert done.returncode == 0, f"seed {seeds[-1:]}, return code {done.returncode}: {done.stderr[-3000:]}"
    assert len(seeds) == ROUNDS


def test_mutated_runs_open_and_give_no_wrong_number(tmp_path: Path) -> None:
    run_dir = create_run(tmp_path / "runs", run_id="one")
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0, rows_per_batch=10)
    write_known(writer, range(1, 41))
    writer.close()
    write_exit(run_dir, 0, outcome="finished", step=40, reason="done")
    files = {path: path.read_bytes() for path in sorted(run_dir.rglob("*")) if path.is_file()}
    for seed in range(4 * ROUNDS):
        chance = Chance(seed)
        broken = chance.sample(sorted(files), chance.randint(1, 3))
        for path in broken:
            path.write_bytes(mutate(files[path], chance))
        list_runs(tmp_path / "runs")
        try:
            run = open_run(run_dir)
        except RunError:
            pass  # run.json itself was hit
        else:
            touch_everything(run)
            known_steps(run)
            series = run.series("ratio", attempt=0)
            np.testing.assert_array_equal(series.value, series.step / 7, err_msg=f"seed {seed}")
        for path in broken:
            path.write_bytes(files[path])
