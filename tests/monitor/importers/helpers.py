"""What the tests of the importers share."""

from __future__ import annotations

import math
from pathlib import Path

from monitor.importers import Taken, import_path
from monitor.runfile.reader import Run, open_run

FIXTURES = Path(__file__).parent / "fixtures"
STEPS = range(0, 300, 10)


def loss_at(step: int) -> float:
    """As in fixtures/make.py."""
    return math.inf if step == 210 else 3.0 - step / 128


def norm_at(step: int) -> float:
    """As in fixtures/make.py."""
    return math.nan if step == 200 else 1.0 + step % 3 / 4


def taken(source: Path, runs: Path) -> Taken:
    """What became of the only source in ``source``."""
    (one,) = import_path(source, runs)
    return one


def read(source: Path, runs: Path) -> Run:
    """The only run in ``source``."""
    (run_dir,) = taken(source, runs).runs
    run = open_run(run_dir)
    assert not run.problems
    return run


def log(folder: Path, text: str, name: str = "train.log") -> Path:
    """A file with this text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def series(run: Run, name: str) -> dict[int, float]:
    """Step -> value on the current line."""
    signal = run.series(name)
    return dict(zip(signal.step.tolist(), signal.value.tolist(), strict=True))


def same(found: dict[int, float], wanted: dict[int, float]) -> bool:
    """Equal, a NaN being equal to a NaN."""
    return found.keys() == wanted.keys() and all(
        found[step] == value or (math.isnan(value) and math.isnan(found[step])) for step, value in wanted.items()
    )
