"""Statistics that few rows have: they come back as they were given, and cost what was measured."""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.runfile import format as fmt
from monitor.runfile.blocks import BLOCK_BYTES
from monitor.runfile.columns import list_array, number_array
from monitor.runfile.compact import compact_run
from monitor.runfile.compacted import MAGIC, compact_file, file_blocks, file_crc, write_batches
from monitor.runfile.framing import END_OF_STREAM, encode_batch, encode_schema, stamp
from monitor.runfile.levelfile import LevelFiles, Levels, level_file
from monitor.runfile.levels import layer_window
from monitor.runfile.reader import Run, open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit

EXAMPLES = int(os.environ.get("GRADIOMETER_EXAMPLES", "30"))
"""More of them: GRADIOMETER_EXAMPLES=2000 pytest -k any_pattern."""
STATS = ("often", "seldom", "once", "never")
Given = dict[str, dict[int, tuple[np.ndarray, np.ndarray]]]
"""Statistic -> step -> values and presence, [L] each."""


def assert_is(run: Run, told: Given, stream: str) -> None:
    """What is read of a run is what was given, bit for bit."""
    for stat in STATS:
        rows = told[stat]
        matrix = getattr(run, stream)(stat)
        assert matrix.step.tolist() == sorted(rows), stat
        for at, step in enumerate(matrix.step.tolist()):
            value, present = rows[step]
            assert matrix.present[at].tolist() == present.tolist(), (stat, step)
            assert matrix.value[at][present].tobytes() == value[present].tobytes(), (stat, step)


@given(data=st.data(), seed=st.integers(0, 2**32 - 1), width=st.sampled_from([1, 3, 9]))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_pattern_of_statistics_is_read_as_it_was_given(data: st.DataObject, seed: int, width: int) -> None:
    """While it is written, when it is over, compacted with and without its segments, and through its levels."""
    chance = np.random.default_rng(seed)
    count = data.draw(st.integers(1, 200))
    steps = np.cumsum(chance.integers(1, 4, count)).tolist()
    shares = dict(zip(STATS, (data.draw(st.sampled_from([1.0, 0.5])), 0.2, 0.02, 0.0), strict=True))
    whole = data.draw(st.booleans())  # no layer is ever absent
    looks = set(chance.choice(steps, min(3, count), replace=False).tolist())
    stream = data.draw(st.sampled_from(["layers", "modules"]))
    told: Given = {stat: {} for stat in STATS}
    with TemporaryDirectory() as folder:
        run_dir = create_run(folder)
        begin_attempt(run_dir)
        writer = RankWriter(
            run_dir, 0, rows_per_batch=data.draw(st.integers(1, 9)), segment_bytes=data.draw(st.sampled_from([1, 9000]))
        )
        names = [f"l{index}" for index in range(width)]
        writer.define_layers(names, [(2,)] * width)
        writer.define_modules(names)
        followed = open_run(run_dir)
        for step in steps:
            row = {}
            for stat, share in shares.items():
                if chance.random() < share:
                    bits = chance.integers(0, 2**32, width, dtype=np.uint32)
                    value = (bits | np.isnan(bits.view(np.float32)) * np.uint32(1 << 22)).view(np.float32)  # quiet NaN
                    present = np.ones(width, bool) if whole else chance.random(width) < 0.7
                    row[stat] = told[stat][step] = (value, present)
            getattr(writer, stream)(step, float(step), row)
            if step in looks:
                assert writer.flush(60)
                followed.refresh()
                assert_is(followed, told, stream)
        writer.close()
        write_exit(run_dir, 0, outcome="finished", step=steps[-1], reason="done")
        assert_is(open_run(run_dir), told, stream)
        for remove in (False, True):
            compact_run(run_dir, remove=remove)
            again = open_run(run_dir)
            assert_is(again, told, stream)
            assert not again.problems
        if stream == "layers" and count > 64:
            assert_levels(run_dir, np.array(steps), told, width)


def assert_levels(run_dir: Path, steps: np.ndarray, told: Given, width: int) -> None:
    """Rows of a compact file, found without reading the others, are what was given."""
    files = LevelFiles(run_dir, "layers", 0, 0, steps)
    for stat in (stat for stat in STATS if told[stat]):
        levels = Levels(files, stat, width)
        low, high = len(steps) // 3, len(steps)
        value, present = levels.values(low, high)
        there = np.ones(value.shape, bool) if present is None else present
        given_rows = np.array([step in told[stat] for step in steps.tolist()])
        for at, step in enumerate(steps[low:high].tolist()):
            cell = told[stat].get(step, (np.zeros(width, np.float32), np.zeros(width, bool)))
            assert there[at].tolist() == cell[1].tolist()
            assert value[at][cell[1]].tobytes() == cell[0][cell[1]].tobytes()
        first = [row for row in np.flatnonzero(given_rows).tolist() if told[stat][int(steps[row])][1][0]]
        wanted = [told[stat][int(steps[row])][0][0] for row in first]
        np.testing.assert_array_equal(levels.at(np.array(first, np.int64)), wanted)
        levels.at(np.arange(len(steps)))  # of absent rows it means nothing, and is within bounds


def written(run_dir: Path, rare: int, width: int = 64, rows: int = 640) -> int:
    """Bytes of a run with one statistic in every row and ``rare`` ones in every tenth."""
    writer = RankWriter(run_dir, 0, rows_per_batch=64, seconds_per_batch=3600)
    writer.define_layers([f"l{index}" for index in range(width)], [(2,)] * width)
    for step in range(rows):
        stats = {"often": np.full(width, step)}
        if step % 10 == 0:
            stats |= {f"rare{index}": np.full(width, index) for index in range(rare)}
        writer.layers(step, float(step), stats)
        if step % 64 == 63:
            assert writer.flush(60)
    writer.close()
    write_exit(run_dir, 0, outcome="finished", step=rows, reason="done")
    folder = fmt.rank_dir(run_dir, 0)
    return sum(path.stat().st_size for path in folder.glob("layers-*.arrows"))


def test_a_statistic_costs_the_rows_that_have_it(tmp_path: Path) -> None:
    """Of a row that lacks it a few bytes, in segments and in the compact file."""
    dirs = [create_run(tmp_path / name) for name in ("alone", "beside")]
    for run_dir in dirs:
        begin_attempt(run_dir)
    alone, beside = written(dirs[0], 0), written(dirs[1], 10)
    measured = 10 * 64 * 64 * 4
    assert measured < beside - alone < measured + 10 * 640 * 8
    compacted = {each.stream: each for run_dir in dirs[1:] for each in compact_run(run_dir)}
    assert compacted["layers"].bytes_after < alone + measured + 10 * 640 * 8


@pytest.mark.parametrize("width", [3, 255])
def test_segments_with_lists_of_fixed_size_are_read_as_before(tmp_path: Path, width: int) -> None:
    """As this version wrote them once; 255 is a size whose bytes look like the mark of a message."""
    run_dir = create_run(tmp_path)
    begin_attempt(run_dir)
    written(run_dir, 2, width)
    wanted = [open_run(run_dir).layers(stat) for stat in ("often", "rare0", "rare1")]
    for path in sorted(fmt.rank_dir(run_dir, 0).glob("layers-*.arrows")):
        with pa.ipc.open_stream(path.read_bytes()) as reader:
            table = reader.read_all()
        fields = [
            field if field.name in ("step", "time") else field.with_type(pa.list_(pa.float32(), width))
            for field in table.schema
        ]
        schema = pa.schema(fields, metadata=table.schema.metadata)
        arrays = [pa.array(column.to_pylist(), field.type) for column, field in zip(table.columns, fields, strict=True)]
        batch = pa.record_batch(arrays, schema=schema)
        head = encode_schema(schema)
        path.write_bytes(head + encode_batch(batch, len(head), zlib.crc32(head)))
        path.with_name(path.name + fmt.SEAL_SUFFIX).unlink()
    for again in (open_run(run_dir), (compact_run(run_dir, remove=True), open_run(run_dir))[1]):
        assert not again.problems
        for matrix in wanted:
            found = again.layers(matrix.stat)
            assert found.step.tobytes() == matrix.step.tobytes()
            assert found.value.tobytes() == matrix.value.tobytes()
            assert found.present.all()


def test_a_damaged_block_of_a_compact_file_costs_the_rows_that_lie_in_it(tmp_path: Path) -> None:
    """Which rows these are follows from the rows that have the statistic."""
    run_dir, width = create_run(tmp_path), 64
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0)
    writer.define_layers([f"l{index}" for index in range(width)], [(2,)] * width)
    told = {step: np.arange(width, dtype=np.float32) + step * width for step in range(0, 4000, 3)}
    for step in range(4000):
        writer.layers(step, float(step), {"s": told.get(step)})
    writer.close()
    write_exit(run_dir, 0, outcome="finished", step=3999, reason="done")
    compact_run(run_dir, remove=True)
    path = compact_file(run_dir, "layers", 0, 0)
    data = bytearray(path.read_bytes())
    hit = data.index(told[2001].tobytes())
    data[hit] ^= 1
    path.write_bytes(data)

    run = open_run(run_dir)
    found = run.layers("s")
    low = hit // BLOCK_BYTES * BLOCK_BYTES
    places = {step: hit + (step - 2001) // 3 * width * 4 for step in told}
    whole = [step for step, at in places.items() if at + width * 4 <= low or at >= low + BLOCK_BYTES]
    assert found.step.tolist() == whole
    assert 0 < len(told) - len(whole) <= BLOCK_BYTES // (4 * width) + 1
    np.testing.assert_array_equal(found.value, [told[step] for step in whole])
    assert len(run.problems) == 1
    assert f"{len(told) - len(whole)} rows of 's'" in run.problems[0]


TRUE = np.array([0, 2, 2, 4], np.int32).tobytes()
"""Where the lists of :func:`rows` end."""
LIES = ([0, 2, 4, 4], [0, 1, 1, 4], [2, 0, 0, 2], [0, 2, 2, 2**31 - 1], [-4, 2, 2, 4], [0, 0, 2, 4])


def rows() -> pa.RecordBatch:
    """Three rows of two layers, the second null."""
    schema = fmt.layers_schema(["s"], [{"name": name, "shape": [2]} for name in ("a", "b")])
    lists = list_array(np.array([[5, 6], [7, 8]], np.float32), None, np.array([True, False, True]))
    return pa.record_batch([number_array(np.arange(3)), number_array(np.arange(3.0)), lists], schema=schema)


def lie(path: Path, begin: int, ends: list[int]) -> None:
    """Let the lists of :func:`rows` end elsewhere, with checksums of the batches that are right again."""
    data = path.read_bytes()
    assert data.count(TRUE) == 1
    path.write_bytes(data.replace(TRUE, np.array(ends, np.int32).tobytes()))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        stamp(file.fileno(), mapped, begin)


@pytest.mark.parametrize("ends", LIES)
def test_lists_that_are_not_where_they_must_be_are_left_out(tmp_path: Path, ends: list[int]) -> None:
    """Their checksums are right, and another reader would take something else for each."""
    run_dir = create_run(tmp_path)
    begin_attempt(run_dir)
    path = fmt.rank_dir(run_dir, 0) / fmt.segment_name("layers", 0)
    path.parent.mkdir()
    head = encode_schema(rows().schema)
    path.write_bytes(head + encode_batch(rows(), len(head), zlib.crc32(head)) + END_OF_STREAM)
    assert open_run(run_dir).layers("s").value.tolist() == [[5, 6], [7, 8]]
    lie(path, 0, ends)
    run = open_run(run_dir)
    assert "lists of another length than 2" in run.problems[0]
    assert len(run.layers("s").step) == 0


@pytest.mark.parametrize("ends", LIES)
def test_a_compact_file_of_lies_gives_no_value_of_them(tmp_path: Path, ends: list[int]) -> None:
    """Even when the blocks in its seal are right, and through its levels."""
    run_dir = create_run(tmp_path)
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0)
    writer.define_layers(["a", "b"], [(2,), (2,)])
    for step in range(100):
        writer.layers(step, float(step), {"s": np.array([1, 2]) if step < 3 and step != 1 else None})
    writer.close()
    write_exit(run_dir, 0, outcome="finished", step=99, reason="done")
    compact_run(run_dir, remove=True)
    assert not open_run(run_dir).problems
    path = compact_file(run_dir, "layers", 0, 0)
    schema = rows().schema
    nothing = list_array(np.empty((0, 2), np.float32), None, np.zeros(97, bool))
    rest = pa.record_batch([number_array(np.arange(3, 100)), number_array(np.arange(3.0, 100)), nothing], schema=schema)
    count = write_batches(path, schema, iter([rows(), rest]))
    lie(path, len(MAGIC), ends)
    of_source = {"file": path.name, "bytes": path.stat().st_size, "crc32": f"{file_crc(path):08x}"}
    more = {"rows": 100, "batches": count, "segments": 1, "blocks": file_blocks(path)}
    fmt.atomic_write_json(path.with_name(path.name + fmt.SEAL_SUFFIX), of_source | more)
    levels_seal = level_file(run_dir, "layers", 0, 0).with_name(
        level_file(run_dir, "layers", 0, 0).name + fmt.SEAL_SUFFIX
    )
    fmt.atomic_write_json(levels_seal, fmt.load_json(levels_seal) | {"source": of_source})

    run = open_run(run_dir)
    found = run.layers("s")
    assert any("'s' are damaged" in problem for problem in run.problems)
    assert all(row in ([5, 6], [7, 8]) for row in found.value.tolist())
    assert len(found.step) < 2
    chart = layer_window(open_run(run_dir), "s", first=0, last=2)
    assert int(chart.count.sum()) <= 2 * len(found.step)
