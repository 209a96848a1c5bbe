"""Sealed segments are mapped and their columns wait; nobody can tell but by the memory and the time."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.runfile import format as fmt
from monitor.runfile import segments
from monitor.runfile.reader import Run, open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.conftest import LAYERS, SHAPES, START, write_run, write_steps

PARTS = ("train_loss", "val_loss", "late", "norm", "rare", "rss_gib")


def write(writer: RankWriter, first: int, last: int) -> None:
    """Rows with gaps, a column that begins late, layers in part, and machine samples."""
    for step in range(first, last + 1):
        values = {"train_loss": math.nan if step % 7 == 0 else float(step)}
        if step % 5 == 0:
            values["val_loss"] = -float(step)
        if step > 40:
            values["late"] = step / 2
        writer.scalars(step, START + step, values)
        norms = np.array([step, np.nan, -step], np.float32)
        present = np.array([True, True, step % 3 != 0])
        writer.layers(step, START + step, {"norm": (norms, present) if step > 20 else norms,
                                           "rare": None if step % 4 else norms})  # fmt: skip
        writer.system(START + step, {"rss_gib": float(step)})
    assert writer.flush(30)


def read(run: Run, part: str) -> list[object]:
    """All that a run says of one column."""
    if part == "rss_gib":
        return [run.system().to_csv()]
    if part in ("norm", "rare"):
        matrix = run.layers(part)
        value = np.where(matrix.present, matrix.value, np.float32(0))
        return [matrix.step.tolist(), value.tobytes(), matrix.present.tolist()]
    signal = run.series(part)
    return [signal.step.tolist(), signal.value.tobytes()]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 25), st.sets(st.sampled_from(PARTS))), min_size=1, max_size=8),
    st.integers(500, 6000),
)
def test_a_column_asked_for_at_any_time_is_whole(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[int, set[str]]], segment_bytes: int
) -> None:
    run_dir = create_run(tmp_path_factory.mktemp("mapped"))
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0, rows_per_batch=9, segment_bytes=segment_bytes)
    writer.define_layers(LAYERS, SHAPES)
    write(writer, 1, 30)
    run, last = open_run(run_dir), 30
    for more, asked in turns:
        for part in asked:
            read(run, part)
        write(writer, last + 1, last + more)
        last += more
        run.refresh()
    writer.close()
    run.refresh()
    for seal in run_dir.rglob("*.arrows.seal"):
        seal.unlink()
    unmapped = open_run(run_dir)
    assert [read(run, part) for part in PARTS] == [read(unmapped, part) for part in PARTS]
    assert run.problems == unmapped.problems == ()


def test_damage_in_a_sealed_segment_costs_what_it_costs_in_an_open_one(tmp_path: Path) -> None:
    whole = write_run(tmp_path, 40, rows_per_batch=8)
    write_exit(whole, 0, outcome="finished", step=40, reason="done")
    random = np.random.default_rng(3)
    messages: list[str] = []
    for number in range(60):
        run_dir = shutil.copytree(whole, tmp_path / f"copy{number}")
        path = fmt.rank_dir(run_dir, 0) / ("scalars-000000.arrows" if number % 2 else "layers-000000.arrows")
        data = bytearray(path.read_bytes())
        at = int(random.integers(len(data)))
        data[at] ^= 1 << int(random.integers(8))
        path.write_bytes(data)
        mapped = open_run(run_dir)
        told = mapped.problems
        found = [mapped.series("train_loss").step.tolist(), mapped.layers("grad_norm_preclip").value.tobytes()]
        for seal in run_dir.rglob("*.arrows.seal"):
            seal.unlink()
        read_run = open_run(run_dir)
        assert told == read_run.problems and len(told) <= 1
        assert found == [
            read_run.series("train_loss").step.tolist(),
            read_run.layers("grad_norm_preclip").value.tobytes(),
        ]
        messages += told
    assert len(messages) > 40  # the rest hit the end mark, which is no data
    assert sum("crc32 differs" in text for text in messages) > 10


def test_a_seal_that_fits_other_bytes_does_not_make_them_right(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 16, rows_per_batch=8)
    path = fmt.rank_dir(run_dir, 0) / "scalars-000000.arrows"
    seal = path.with_name(path.name + ".seal")
    fmt.atomic_write_json(seal, fmt.load_json(seal) | {"crc32": "00000000"})
    run = open_run(run_dir)
    assert run.series("train_loss").step.tolist() == list(range(1, 17))
    assert run.problems == ()


def test_columns_wait_until_they_are_asked_for(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path, 50))
    columns = run.ranks(0)[0].scalars._columns
    assert [len(column.value) for column in columns.values()] == [0, 0]
    assert len(run.series("lr")) == 50
    assert [len(column.value) for column in columns.values()] == [0, 50]


def test_a_live_run_is_followed_without_loading_what_waits(tmp_path: Path) -> None:
    run_dir = create_run(tmp_path)
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0, rows_per_batch=50, segment_bytes=4000)
    write_steps(writer, 1, 500)
    assert writer.flush(30)
    run = open_run(run_dir)
    column = run.ranks(0)[0].scalars._columns["lr"]
    for first in range(501, 601, 10):
        write_steps(writer, first, first + 9)
        assert writer.flush(30) and run.refresh()
    assert len(column.value) == 0
    assert len(run.series("lr")) == 600
    writer.close()


def test_no_more_segments_are_mapped_than_descriptors_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = write_run(tmp_path, 300, rows_per_batch=10, segment_bytes=1500)
    monkeypatch.setattr(segments, "MAX_MAPPED", len(segments._MAPPED) + 3)
    run = open_run(run_dir)
    assert len(list(run_dir.rglob("scalars-*.arrows"))) > 4
    assert run.series("train_loss").step.tolist() == list(range(1, 301))
    assert run.layers("grad_norm_preclip").step.tolist() == list(range(1, 301))
