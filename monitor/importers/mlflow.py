"""A run of MLflow's file store: a folder with ``meta.yaml`` and ``metrics/``, in which each metric has a file of its
own with a line ``milliseconds value step`` for each value."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from monitor.importers.lines import read_lines
from monitor.importers.rows import MAX_NAME, Account, Row, number_of, step_of
from monitor.runfile.format import MAX_COLUMNS

META, METRICS = "meta.yaml", "metrics"


def metric_files(run: Path) -> list[Path]:
    """The files of the metrics, as many as a run may have columns; those of nested names (``train/loss``) too."""
    found: list[Path] = []
    for place, folders, files in os.walk(run / METRICS):
        folders.sort()
        found += [Path(place) / name for name in sorted(files) if not name.startswith(".")]
        if len(found) > MAX_COLUMNS:
            break
    return [file for file in found[:MAX_COLUMNS] if file.is_file() and not file.is_symlink()]


def read_run(run: Path, files: Sequence[Path], account: Account) -> Iterator[Row]:
    """One metric after another."""
    for file in files:
        name = file.relative_to(run / METRICS).as_posix()[:MAX_NAME]
        for line in read_lines(file, account):
            cells = [number_of(cell) for cell in line.split()]
            if not cells:
                continue
            if len(cells) not in (2, 3) or cells[0] is None or cells[1] is None:
                account.say(
                    "mlflow", f"{file}: a line is not 'milliseconds value step' ({line[:40]!r}) and is left out."
                )
                continue
            step = step_of(cells[2]) if len(cells) == 3 else None  # before 1.0 there were no steps
            yield Row(step, cells[0] / 1000, {name: cells[1]})
