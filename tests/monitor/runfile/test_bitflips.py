"""One flipped bit anywhere in a stream: never a wrong value, and what is left out is said.

What no checksum covers is in FORMAT.md, and :func:`is_uncovered` below is that table as code.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from monitor.runfile import compact, levelfile, levels
from monitor.runfile import format as fmt
from monitor.runfile.attempt import RankData
from monitor.runfile.compact import compact_run
from monitor.runfile.framing import END_OF_STREAM, parse_message, parse_schema
from monitor.runfile.levels import Window, layer_window, window
from monitor.runfile.reader import Run, open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.known import START, STREAMS, steps_of, write_known

FLIPS = int(os.environ.get("GRADIOMETER_FLIPS", "12"))
"""Bits flipped in each part of each file; every byte of every file: GRADIOMETER_FLIPS=0 pytest -k flipped."""
ROWS = 4
LAST = 12


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ended run with three batches of every stream, sealed."""
    run_dir = create_run(tmp_path_factory.mktemp("sealed"))
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0, rows_per_batch=ROWS, seconds_per_batch=3600)
    for first in range(1, LAST + 1, ROWS):
        write_known(writer, range(first, first + ROWS))
        assert writer.flush(60)
    writer.close()
    write_exit(run_dir, 0, outcome="finished", step=LAST, reason="done")
    return run_dir


def parts(data: bytes, stream: str) -> list[tuple[int, int]]:
    """The parts that a file is made of: schema, and of each batch its prefix, metadata and body; or lines."""
    if stream == "events":
        edges = [0]
        for line in data.splitlines(keepends=True):
            edges += [edges[-1] + line.index(b', "crc32"'), edges[-1] + len(line)]
    else:
        begin = 8 if data.startswith(b"ARROW1") else 0
        edges = [0, *([8] if begin else []), begin + 8]
        message = parse_schema(data, begin)
        while message is not None:
            edges += [message.start, message.start + 8, message.metadata_end, message.end]
            message = parse_message(data, message.end)
        edges.append(len(data))
    edges = sorted(set(edges))
    return list(itertools.pairwise(edges))


def flips(data: bytes, stream: str) -> Iterator[tuple[int, bytes]]:
    """(byte, the file with one bit of it flipped): of every part some, or of every byte one."""
    chance = random.Random(stream)
    for low, high in parts(data, stream):
        places = range(low, high) if FLIPS <= 0 or high - low <= FLIPS else chance.sample(range(low, high), FLIPS)
        for at in places:
            changed = bytearray(data)
            changed[at] ^= 1 << chance.randrange(8)
            yield at, bytes(changed)


def is_uncovered(data: bytes, at: int, stream: str) -> bool:
    """Whether byte ``at`` may change without a word (FORMAT.md, "What is covered by a checksum")."""
    if stream != "events":
        return at >= len(data) - len(END_OF_STREAM)
    line_end = data.index(b"\n", at)
    line = data[data.rfind(b"\n", 0, at) + 1 : line_end]
    from_end = line_end - at
    return from_end in (1, 2) or (len(b'12345678"}') < from_end <= len(line) - line.index(b', "crc32"'))


@pytest.mark.parametrize(
    ("stream", "has_seal"),
    [(stream, seal) for stream in STREAMS for seal in (True, False) if seal or stream != "events"],
)
def test_a_flipped_bit_in_a_segment_is_said_and_no_value_is_wrong(
    sealed: Path, tmp_path: Path, stream: str, has_seal: bool
) -> None:
    """Without a seal as well: only of a line of events whose newline is damaged it takes the seal to know."""
    name = fmt.segment_name(stream, 0)
    data = (fmt.rank_dir(sealed, 0) / name).read_bytes()
    folder = fmt.rank_dir(tmp_path, 0)
    folder.mkdir(parents=True)
    if has_seal:
        shutil.copy(fmt.rank_dir(sealed, 0) / f"{name}.seal", folder)
    for at, changed in flips(data, stream):
        (folder / name).write_bytes(changed)
        problems: list[str] = []
        rank = RankData(tmp_path, 0, 0, problems.append)
        rank.poll(True, problems.append)
        kept = steps_of(rank)[stream]
        assert problems or (is_uncovered(data, at, stream) and kept == list(range(1, LAST + 1))), at
        assert all(name in problem for problem in problems)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_flipped_bit_in_a_live_segment_is_said_when_more_has_been_written(
    sealed: Path, tmp_path: Path, stream: str
) -> None:
    """The last message may be a write in progress, and a damaged schema is told when the segment is over (above)."""
    name = fmt.segment_name(stream, 0)
    data = (fmt.rank_dir(sealed, 0) / name).read_bytes()
    if stream != "events":
        data = data[: -len(END_OF_STREAM)]
    folder = fmt.rank_dir(tmp_path, 0)
    folder.mkdir(parents=True)
    if stream == "events":
        schema, last, whole = 0, data.rindex(b"\n", 0, -1) + 1, data
    else:
        whole = data + END_OF_STREAM
        schema, last = parse_schema(data).end, parts(whole, stream)[-4][0]
    for at, changed in flips(whole, stream):
        if at >= len(data):
            continue
        (folder / name).write_bytes(changed[: len(data)])
        problems: list[str] = []
        rank = RankData(tmp_path, 0, 0, problems.append)
        rank.poll(False, problems.append)
        kept = steps_of(rank)[stream]
        assert problems or at < schema or at >= last or is_uncovered(data, at, stream), at
        assert len(kept) < LAST or is_uncovered(data, at, stream), at


@pytest.fixture(scope="module")
def compacted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compacted run, its segments gone, with levels of a small factor; blocks are as large as ever."""
    run_dir = create_run(tmp_path_factory.mktemp("compacted"))
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0)
    write_known(writer, range(1, 61))
    writer.close()
    write_exit(run_dir, 0, outcome="finished", step=60, reason="done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levelfile, "FACTOR", 4)
        patch.setattr(compact, "_rows_per_batch", lambda _: 25)
        compact_run(run_dir, remove=True)
    return run_dir


@pytest.mark.parametrize("stream", ["scalars", "layers", "modules", "system"])
def test_a_flipped_bit_in_a_compact_file_is_said_and_no_value_is_wrong(
    compacted: Path, tmp_path: Path, stream: str
) -> None:
    run_dir = shutil.copytree(compacted, tmp_path / "run")
    path = run_dir / "compact" / f"{stream}-0000-00000.arrow"
    data = path.read_bytes()
    for at, changed in flips(data, stream):
        path.write_bytes(changed)
        problems: list[str] = []
        rank = RankData(run_dir, 0, 0, problems.append)
        kept = steps_of(rank)[stream]
        beyond = at >= parts(data, stream)[-1][0]  # end mark and table of contents, which our reader does not need
        assert problems or (beyond and kept == list(range(1, 61))), at
        assert all(str(path) in problem for problem in problems)


def check_cells(found: Window, stream: str) -> None:
    """Both columns grow with the step, so that every cell follows from its ends."""
    assert (found.first_step[1:] == found.last_step[:-1] + 1).all()
    if stream == "scalars":
        np.testing.assert_array_equal(found.min, found.first_step / 7)
        np.testing.assert_array_equal(found.max, found.last_step / 7)
        np.testing.assert_array_equal(found.last, found.last_step / 7)
        np.testing.assert_array_equal(found.count, found.last_step - found.first_step + 1)
        return
    for layer in (0, 1):
        np.testing.assert_array_equal(found.min[:, layer], found.first_step + layer)
        np.testing.assert_array_equal(found.max[:, layer], found.last_step + layer)
    np.testing.assert_array_equal(found.max[:, 2], found.last_step // 2 * 2 + 2)
    np.testing.assert_array_equal(found.count[:, 2], found.last_step // 2 - (found.first_step - 1) // 2)
    assert not (found.nan.any() or found.posinf.any() or found.neginf.any())


@pytest.mark.parametrize("stream", ["scalars", "layers"])
def test_a_flipped_bit_in_a_level_file_changes_no_cell(compacted: Path, tmp_path: Path, stream: str) -> None:
    run_dir = shutil.copytree(compacted, tmp_path / "run")
    path = run_dir / "compact" / f"{stream}-0000-00000.levels.arrow"

    def read(run: Run) -> None:
        view, name = (window, "ratio") if stream == "scalars" else (layer_window, "norm")
        for first, last, points in ((None, None, 5), (7, 55, 3)):
            check_cells(view(run, name, first, last, points), stream)

    data = path.read_bytes()
    run = open_run(run_dir)
    read(run)
    assert run.problems == ()
    for at, changed in flips(data, stream):
        path.write_bytes(changed)
        run._problems.clear()
        levels._FILES.clear()  # mapped once
        read(run)
        beyond = at >= parts(data, stream)[-1][0]
        assert beyond or any(str(path) in problem for problem in run.problems), at


def test_a_flipped_bit_in_the_rows_below_the_levels_is_said(compacted: Path, tmp_path: Path) -> None:
    """A wide window comes from the levels; its two ends come from the rows, by their own checksums."""
    run_dir = shutil.copytree(compacted, tmp_path / "run")
    path = run_dir / "compact" / "scalars-0000-00000.arrow"
    data = bytearray(path.read_bytes())
    data[data.index(np.float64(2 / 7).tobytes())] ^= 1
    path.write_bytes(data)
    run = open_run(run_dir)
    found = window(run, "ratio", 2, 58, 3)
    assert 2 / 7 not in found.min
    assert run.problems
    assert all(str(path) in problem for problem in run.problems)


def test_what_is_not_damaged_is_kept_block_by_block(tmp_path: Path) -> None:
    run_dir = create_run(tmp_path)
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0, rows_per_batch=5000)
    for step in range(1, 40_001):
        writer.scalars(step, START + step, {"a": step / 7, "b": -float(step)})
    writer.close()
    write_exit(run_dir, 0, outcome="finished", step=40_000, reason="done")
    compact_run(run_dir, remove=True)
    path = run_dir / "compact" / "scalars-0000-00000.arrow"
    data = bytearray(path.read_bytes())
    data[data.index(np.float64(20_000 / 7).tobytes()) + 1] ^= 4
    path.write_bytes(data)
    run = open_run(run_dir)
    assert run.problems == ()  # nothing was asked for yet
    assert len(run.series("b")) == 40_000
    left = run.series("a")
    assert 40_000 - 2 * 8192 <= len(left) < 40_000
    assert 20_000 not in left.step
    np.testing.assert_array_equal(left.value, left.step / 7)
    (problem,) = run.problems
    assert f"{40_000 - len(left)} rows of 'a' are damaged" in problem
    assert len(run.times()) == 40_000
