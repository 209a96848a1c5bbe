"""A run is read by FORMAT.md alone: its code blocks are run, and they import none of our code."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import monitor.runfile
from monitor.runfile.compact import compact_run
from monitor.runfile.control import Inbox, ask, asked, record_change
from monitor.runfile.landscapes import write_landscape
from monitor.runfile.reader import open_run
from monitor.runfile.records import LandscapeSample
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.conftest import LAYERS, SHAPES, START

FORMAT = (Path(monitor.runfile.__file__).parent / "FORMAT.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL)


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    """The functions that FORMAT.md defines."""
    names: dict[str, Any] = {}
    exec("\n".join(BLOCKS), names)
    return names


def test_the_code_in_the_specification_imports_none_of_ours() -> None:
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(ast.parse("\n".join(BLOCKS)))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert imported == {"json", "pathlib", "pyarrow", "struct", "zlib"}


@pytest.fixture
def written(run_dir: Path) -> Path:
    """Two attempts with a rewind, NaN, infinities, absent values, growing columns, changing layers, late values."""
    writer = RankWriter(run_dir, 0, rows_per_batch=7, segment_bytes=4000)
    writer.define_layers(LAYERS, SHAPES)
    writer.define_modules(["embed", "block"])
    for step in range(1, 61):
        values = {"train_loss": math.nan if step == 9 else math.inf if step == 10 else 1 / step}
        if step > 30 and step % 10 == 0:
            values["val_loss"] = -math.inf if step == 40 else 2.0 / step
        writer.scalars(step, START + step, values)
        norms = np.array([step, np.nan, np.inf], np.float32)
        present = np.array([True, True, step % 2 == 0])
        writer.layers(step, START + step, {"grad_norm_preclip": (norms, present), "extra": None if step % 3 else norms})
        writer.modules(step, START + step, {"act_rms": np.array([step, -np.inf], np.float32)})
    writer.event("log", 12, values={"accuracy": 0.5, "train_loss": math.nan})
    writer.event("eval", 13, values={"accuracy": math.inf})
    writer.close()
    begin_attempt(run_dir, parent=0, resume_step=50)
    with_rewind = RankWriter(run_dir, 1)
    for step in range(51, 71):
        with_rewind.scalars(step, START + step, {"train_loss": -1.0 * step})
    with_rewind.close()
    begin_attempt(run_dir, parent=1, resume_step=60)  # died before its first step
    RankWriter(run_dir, 2).close()
    points = np.array([-1.0, 0, 1]), np.array([0.0, 0, 2])
    plane = LandscapeSample(40, START, "plane", "pca", 1.0, points[0], np.array([1, math.nan, 3]), 1.0, 0, points[1],
                            '{"unit": "l2"}')  # fmt: skip
    write_landscape(run_dir, "00000040-plane-0a1b2c3d", [plane])
    return run_dir


def test_scalars_read_by_the_specification_equal_ours(written: Path, spec: dict[str, Any]) -> None:
    run = open_run(written)
    assert set(run.names) == {"train_loss", "val_loss", "accuracy"}
    for name in run.names:
        ours = run.series(name)
        theirs = spec["run_series"](written, name)
        assert ours.step.tolist() == list(theirs)
        np.testing.assert_array_equal(ours.value, list(theirs.values()))
    assert run.series("train_loss").step.tolist() == list(range(1, 71))


def test_layers_read_by_the_specification_equal_ours(written: Path, spec: dict[str, Any]) -> None:
    folder = written / "attempts" / "0000" / "rank-00000"
    for stat in ("grad_norm_preclip", "extra"):
        ours = open_run(written).layers(stat, attempt=0)
        theirs = spec["layers"](folder, stat)
        assert ours.step.tolist() == list(theirs)
        for row, (step, cells) in enumerate(theirs.items()):
            measured = [name for name, there in zip(ours.names, ours.present[row], strict=True) if there]
            assert measured == list(cells), step
            np.testing.assert_array_equal(ours.value[row][ours.present[row]], list(cells.values()))


def test_surfaces_read_by_the_specification_equal_ours(written: Path, spec: dict[str, Any]) -> None:
    (ours,) = open_run(written).landscape("plane")
    path = written / "landscape" / f"{ours.name}.arrows"
    ((kind, detail, losses),) = spec["surface"](path)
    assert (kind, detail, spec["damaged"](path)) == (ours.kind, ours.detail, [])
    points = zip(ours.coords.tolist(), ours.coords_y.tolist(), strict=True)
    np.testing.assert_array_equal([losses[point] for point in points], ours.loss)


def test_modules_read_by_the_specification_equal_ours(written: Path, spec: dict[str, Any]) -> None:
    ours = open_run(written).modules("act_rms", attempt=0)
    theirs = spec["layers"](written / "attempts" / "0000" / "rank-00000", "act_rms", "modules")
    assert (ours.names, ours.step.tolist()) == (("embed", "block"), list(theirs))
    np.testing.assert_array_equal(ours.value, [list(cells.values()) for cells in theirs.values()])


@pytest.fixture
def thinned(run_dir: Path) -> Path:
    """A statistic of every step and one of some; NaN, infinities and an absent layer; a dense window and a flush."""
    writer = RankWriter(run_dir, 0, rows_per_batch=8, layer_budget_bytes=16_000)
    writer.define_layers(LAYERS, SHAPES)
    writer.define_modules(["embed", "block"])
    for step in range(1, 401):
        norms = np.array([step % 37, np.nan if step % 50 == 0 else 1, np.inf if step % 70 == 0 else -step], np.float32)
        present = np.array([step % 5 > 0, True, True])
        stats = {"norm": (norms, present), "rare": None if step % 9 else norms, "bad": np.full(3, -np.inf)}
        writer.layers(step, START + step, stats)
        writer.modules(step, START + step, {"act_rms": norms[1:]})
        if step == 333:
            writer.keep_dense(20)
        if step == 390:
            assert writer.flush()
    writer.close()
    return run_dir


def test_a_thinned_run_read_by_the_specification_equals_ours(thinned: Path, spec: dict[str, Any]) -> None:
    run, folder = open_run(thinned), thinned / "attempts" / "0000" / "rank-00000"
    streams = {"layers": ("layers", "dense"), "modules": ("modules", "dense_modules")}
    for kind, stat in (("layers", "norm"), ("layers", "rare"), ("layers", "bad"), ("modules", "act_rms")):
        ours = getattr(run, kind)(stat)
        theirs = spec["layers"](folder, stat, *streams[kind])
        assert ours.step.tolist() == list(theirs)
        assert len(ours.step) < (400 if stat != "rare" else 44)
        for row, cells in enumerate(theirs.values()):
            shown = ours.value[row][ours.present[row]]
            np.testing.assert_array_equal(shown, list(cells.values()))
        assert set(range(320, 350)) & set(range(9, 400, 9) if stat == "rare" else range(400)) <= set(theirs)
        (part,) = run.extents(stat, stream=kind, windows=False)
        told = spec["intervals"](folder, stat, kind)
        several = part.since < part.step
        assert {(first, last) for first, last, _ in told} >= {
            (first, last) for first, last in zip(part.since[several].tolist(), part.step[several].tolist(), strict=True)
        }
        rows = {int(step): row for row, step in enumerate(part.step)}
        for first, last, cells in told:
            row = rows[last]
            assert part.since[row] == first
            for layer, name in enumerate(part.names):
                for extreme in ("min", "max", "nan", "posinf", "neginf"):
                    value = getattr(part, extreme)[row, layer]
                    missing = None if extreme in ("min", "max") else 0
                    expected = cells[name].get(extreme, missing)
                    assert math.isnan(value) if expected is None else value == expected, (stat, last, name, extreme)


def test_checksums_and_seals_hold_as_specified(written: Path, spec: dict[str, Any]) -> None:
    segments = sorted(written.glob("attempts/*/rank-*/*.arrows"))
    assert len(segments) > 3
    assert all(spec["damaged"](segment) == [] for segment in segments)
    seals = sorted(written.glob("attempts/*/rank-*/*.seal"))
    assert len(seals) == len(segments) + 1  # and the events
    assert all(spec["check_seal"](seal) for seal in seals)


def test_lines_of_events_carry_their_checksum_as_specified(written: Path, spec: dict[str, Any]) -> None:
    lines = (written / "attempts" / "0000" / "rank-00000" / "events-000000.jsonl").read_bytes().splitlines()
    assert len(lines) == 2
    assert all(b'"crc32"' in line and spec["whole_line"](line) for line in lines)
    assert not any(spec["whole_line"](line.replace(b"accuracy", b"accuracx")) for line in lines)
    assert spec["whole_line"](b'{"kind": "note", "time": 1.0, "step": 1}')


def test_blocks_of_compact_and_level_files_hold_as_specified(tmp_path: Path, spec: dict[str, Any]) -> None:
    run_dir = compact_files(tmp_path)
    seals = sorted((run_dir / "compact").glob("*.seal"))
    assert len(seals) == 3
    assert all(spec["damaged_blocks"](seal) == [] for seal in seals)
    largest = run_dir / "compact" / "scalars-0000-00000.arrow"
    data = bytearray(largest.read_bytes())
    assert len(data) > 2 << 16
    data[(1 << 16) + 5] ^= 1
    largest.write_bytes(data)
    assert spec["damaged_blocks"](largest.with_name(largest.name + ".seal")) == [1 << 16]


def compact_files(runs: Path) -> Path:
    """A compacted run of scalars and layers, with the levels of the scalars."""
    run_dir = create_run(runs)
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0, rows_per_batch=1000)
    writer.define_layers(LAYERS, SHAPES)
    for step in range(1, 8001):
        writer.scalars(step, START + step, {"train_loss": 1 / step, "rare": math.nan if step % 5 else None})  # type: ignore[dict-item]
        if step <= 50:
            writer.layers(step, START + step, {"norm": np.arange(3) + step})
    writer.close()
    write_exit(run_dir, 0, outcome="finished", step=8000, reason="done")
    compact_run(run_dir)
    return run_dir


def test_pandas_reads_segments_and_compact_files(tmp_path: Path) -> None:
    """A compact file is what pandas calls a Feather file; a segment goes through pyarrow's stream reader."""
    run_dir = compact_files(tmp_path)
    whole = pd.read_feather(run_dir / "compact" / "scalars-0000-00000.arrow", dtype_backend="pyarrow")
    with pa.ipc.open_stream(run_dir / "attempts" / "0000" / "rank-00000" / "scalars-000000.arrows") as reader:
        live = reader.read_all().to_pandas(types_mapper=pd.ArrowDtype)
    for table in (whole, live):
        assert table["step"].tolist() == list(range(1, 8001))
        assert table["train_loss"].tolist() == [1 / step for step in range(1, 8001)]
        assert table["rare"].isna().sum() == 1600 or table["rare"].count() == 6400
    layers = pd.read_feather(run_dir / "compact" / "layers-0000-00000.arrow")
    assert layers["norm"][9].tolist() == [10, 11, 12]


def test_the_specification_finds_a_flipped_bit(written: Path, spec: dict[str, Any]) -> None:
    segment = written / "attempts" / "0000" / "rank-00000" / "scalars-000000.arrows"
    data = bytearray(segment.read_bytes())
    data[-40] ^= 1
    segment.write_bytes(data)
    assert len(spec["damaged"](segment)) == 1
    assert not spec["check_seal"](segment.with_name(segment.name + ".seal"))


@pytest.mark.parametrize("name", ["written", "thinned"])
def test_every_file_of_a_run_is_in_the_specification(name: str, request: pytest.FixtureRequest) -> None:
    written: Path = request.getfixturevalue(name)
    tree = FORMAT.split("## Tree")[1].split("## Versions")[0]
    for path in written.rglob("*"):
        stem = re.sub(r"\d{4,}", "", path.name.removesuffix(".seal")) or "0000/"
        assert any(re.sub(r"\d{4,}", "", word) == stem for word in tree.replace("/", " ").split()) or stem == "0000/", (
            path
        )


def test_requests_and_changes_read_by_the_specification_are_ours(run_dir: Path, spec: dict[str, Any]) -> None:
    writer = RankWriter(run_dir, 0)
    writer.heartbeat(step=4, requests=["set_lr", "pause"])
    writer.close()
    inbox = Inbox(run_dir, 0, ("set_lr", "pause"), lambda **fields: None, lambda: 4)
    ask(run_dir, "set_lr", factor=0.5)
    inbox.look()
    inbox.answer(*inbox.take(), "done", 5, "halved")
    ask(run_dir, "pause")
    record_change(run_dir, 0, 5, {"optimizer.lr": 5e-4}, "000000")
    record_change(run_dir, 0, 9, {"clip.max_norm": None}, "000001")
    folder = run_dir / "attempts" / "0000"
    theirs, ours = spec["requests"](folder), asked(run_dir, 0)
    assert [(name, (receipt or {}).get("state")) for name, (_, receipt) in theirs.items()] == [
        ("000000", "done"), ("000001", None),
    ]  # fmt: skip
    for one, (request, receipt) in zip(ours, theirs.values(), strict=True):
        assert one.request is not None and one.receipt == receipt
        assert (one.request.do, one.request.created, one.request.pid) == (
            request["do"], request["created"], request["by"]["pid"],
        )  # fmt: skip
    (attempt,) = open_run(run_dir).attempts
    for step in (0, 4, 5, 8, 9):
        assert spec["overrides_after"](folder, step) == attempt.overrides_at(step)
