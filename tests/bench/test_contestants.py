"""The contestants of the benchmark do the same work, and its figures say what they claim."""

from __future__ import annotations

import importlib.util
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from tests.bench import ours, peer
from tests.bench.report import Line, bars, picture, table
from tests.bench.run_directory import NAME, child

STEPS = 130


@pytest.mark.parametrize("kind", ["ours", *peer.PLAIN])
def test_everybody_writes_and_reads_the_same_numbers(tmp_path: Path, kind: str) -> None:
    data = peer.rows(20)
    wanted = sum(data[step % 2000][3] for step in range(1, STEPS + 1))
    if kind == "ours":
        written = ours.write(tmp_path, 20, STEPS)
        (run,) = tmp_path.iterdir()
        found = ours.read(run, NAME)
        assert ours.zoom(run, NAME, STEPS)["points"] == STEPS
    else:
        written = peer.write(kind, tmp_path, 20, STEPS, 60)
        found = peer.read(kind, tmp_path, "layer,20" if kind == "raw" else NAME)
    assert written["steps"] == found["steps"] == STEPS
    assert found["sum"] == pytest.approx(wanted, rel=1e-12)
    assert written["bytes"] >= STEPS * 20 * 8


def test_layers_are_written_as_float32(tmp_path: Path) -> None:
    written = ours.write(tmp_path, 200, STEPS)
    (run,) = tmp_path.iterdir()
    data = peer.rows(200)
    wanted = np.array([data[step % 2000][3] for step in range(1, STEPS + 1)], np.float32)
    assert ours.read(run, NAME)["sum"] == wanted.astype(float).sum()
    assert 4 <= written["bytes"] / (200 * STEPS) < 8


@pytest.mark.skipif(importlib.util.find_spec("aim") is not None, reason="aim is installed here")
def test_a_logger_that_is_not_installed_is_skipped_with_a_word(tmp_path: Path) -> None:
    script = str(Path(peer.__file__))
    assert "aim" in child([sys.executable, script, "write", "aim", str(tmp_path), "20", "10", "1"])["skipped"]


def test_a_goal_is_met_at_a_ratio_of_one_or_less() -> None:
    most, least = Line("a", 2.0, "s", 4.0), Line("b", 2.0, "x", 4.0, least=True)
    assert (most.ratio, least.ratio, Line("c", 1.0, "s").ratio) == (0.5, 2.0, None)
    text = table("title", [most, least])
    assert "0.50 met" in text and "2.00 MISSED" in text


def test_the_picture_is_well_formed_and_orders_by_size() -> None:
    chart = bars("a < b", {"run directory": 10.0, "raw": 1000.0, "csv": 0.5}, "steps/s", "run directory")
    root = ElementTree.fromstring(picture([chart]))
    widths = [float(node.get("width", "0")) for node in root.iter() if node.tag.endswith("rect")][1:]
    assert widths[1] > widths[0] > widths[2] > 0
