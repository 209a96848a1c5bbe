"""What leaves as Parquet or CSV is what the run holds, absent and non-finite values told apart."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from monitor.errors import RunError
from monitor.runfile.export import export_run
from monitor.runfile.writer import RankWriter
from tests.monitor.runfile.conftest import LAYERS, SHAPES, START


@pytest.fixture
def written(run_dir: Path, writer: RankWriter) -> Path:
    writer.define_layers(LAYERS, SHAPES)
    writer.scalars(1, START + 1, {"train_loss": math.nan, "lr": 0.1})
    writer.scalars(2, START + 2, {"train_loss": -math.inf})
    writer.event("eval", 0, values={"val_loss": 9.0})
    writer.layers(1, START, {"norm/x": (np.array([1, np.inf, 3], np.float32), np.array([True, True, False]))})
    writer.define_modules(["embed", "block"])
    writer.modules(1, START, {"act_rms": np.array([0.5, np.nan], np.float32)})
    writer.system(START, {"rss_gib": 1.5})
    writer.system(START + 2, {"cpu_pct": math.nan})
    writer.close()
    return run_dir


def test_parquet_holds_the_same_values(written: Path, tmp_path: Path) -> None:
    files = export_run(written, tmp_path / "out")
    assert [file.name for file in files] == [
        "scalars.parquet",
        "layers-norm-x.parquet",
        "modules-act_rms.parquet",
        "system.parquet",
        "events.jsonl",
    ]
    scalars = parquet.read_table(files[0]).to_pydict()
    assert scalars["step"] == [0, 1, 2]
    assert scalars["time"] == [None, START + 1, START + 2]
    assert scalars["lr"] == [None, 0.1, None]
    assert scalars["val_loss"] == [9.0, None, None]
    assert scalars["train_loss"][0] is None
    assert math.isnan(scalars["train_loss"][1])
    assert scalars["train_loss"][2] == -math.inf
    layers = parquet.read_table(files[1]).to_pydict()
    assert layers == {"step": [1], LAYERS[0]: [1.0], LAYERS[1]: [math.inf], LAYERS[2]: [None]}
    modules = parquet.read_table(files[2]).to_pydict()
    assert (modules["embed"], math.isnan(modules["block"][0])) == ([0.5], True)
    system = parquet.read_table(files[3]).to_pydict()
    assert system["rss_gib"] == [1.5, None]
    assert system["cpu_pct"][0] is None
    assert math.isnan(system["cpu_pct"][1])
    assert json.loads(files[4].read_text())["values"] == {"val_loss": 9.0}


def test_csv_spells_what_is_not_finite(written: Path, tmp_path: Path) -> None:
    export_run(written, tmp_path / "out", "csv")
    with (tmp_path / "out" / "scalars.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["train_loss"] for row in rows] == ["", "NaN", "-Infinity"]
    assert [row["lr"] for row in rows] == ["", "0.1", ""]


def test_an_unknown_format_names_the_known_ones(written: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"'xlsx' cannot be exported to\. Choose from: parquet, csv"):
        export_run(written, tmp_path / "out", "xlsx")


def test_nothing_is_overwritten(written: Path, tmp_path: Path) -> None:
    export_run(written, tmp_path / "out")
    with pytest.raises(RunError, match="exists already"):
        export_run(written, tmp_path / "out")
