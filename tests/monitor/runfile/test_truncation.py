"""A file may end anywhere: what was complete is read, and nothing else, in every stream."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.runfile import format as fmt
from monitor.runfile.attempt import RankData
from monitor.runfile.framing import parse_message, parse_schema
from monitor.runfile.reader import open_run
from monitor.runfile.segments import Tail, poll_lines, poll_rows, poll_tables
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.known import STREAMS, known_steps, steps_of, write_known

ROWS = 3
"""Rows of a batch."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without an end: three batches of every stream, not sealed."""
    run_dir = create_run(tmp_path_factory.mktemp("whole"))
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0, rows_per_batch=ROWS, seconds_per_batch=3600)
    for first in (1, 4, 7):
        write_known(writer, range(first, first + ROWS))
        assert writer.flush(60)
    writer.close()
    for seal in run_dir.rglob("*.seal"):
        seal.unlink()
    return run_dir


def ends(data: bytes, stream: str) -> list[int]:
    """Where each batch ends (the schema first), or each line of events."""
    if stream == "events":
        lines = data.splitlines(keepends=True)
        return [0, *(sum(map(len, lines[: count + 1])) for count in range(len(lines)))]
    found = [parse_schema(data).end]
    while (message := parse_message(data, found[-1])) is not None:
        found.append(message.end)
    return found


def count_rows(folder: Path, stream: str, final: bool) -> int:
    """Rows that the reader takes from the stream; fails at anything it complains about."""

    def refuse(path: Path, offset: int, what: str) -> None:
        raise AssertionError(f"{path.name}, byte {offset}: {what}")

    tail = Tail(folder, stream)
    if stream == "events":
        return sum(1 for _ in poll_lines(tail, final, refuse))
    if stream == "landscape":
        return sum(table.num_rows for table in poll_tables(tail, final, refuse))
    return sum(len(rows) for rows in poll_rows(tail, final, refuse))


@pytest.mark.parametrize("final", [False, True], ids=["live", "over"])
@pytest.mark.parametrize("stream", STREAMS)
def test_every_length_gives_exactly_the_complete_batches(whole: Path, tmp_path: Path, stream: str, final: bool) -> None:
    name = fmt.segment_name(stream, 0)
    data = (fmt.rank_dir(whole, 0) / name).read_bytes()
    complete = ends(data, stream)
    rows = 1 if stream == "events" else ROWS
    assert len(complete) == 1 + 9 // rows
    folder = fmt.rank_dir(tmp_path, 0)
    folder.mkdir(parents=True)
    problems: list[str] = []
    for length in range(len(data) + 1):
        (folder / name).write_bytes(data[:length])
        batches = max(0, sum(end <= length for end in complete) - 1)
        assert count_rows(folder, stream, final) == rows * batches, length
        if length in complete:
            rank = RankData(tmp_path, 0, 0, problems.append)
            rank.poll(final, problems.append)
            assert steps_of(rank)[stream] == list(range(1, rows * batches + 1)), length
    assert problems == []


@pytest.mark.parametrize("stream", STREAMS)
def test_a_file_that_grows_by_a_few_bytes_is_followed_to_the_same_rows(
    whole: Path, tmp_path: Path, stream: str
) -> None:
    name = fmt.segment_name(stream, 0)
    data = (fmt.rank_dir(whole, 0) / name).read_bytes()
    complete = ends(data, stream)
    rows = 1 if stream == "events" else ROWS
    folder = fmt.rank_dir(tmp_path, 0)
    folder.mkdir(parents=True)
    problems: list[str] = []
    rank = RankData(tmp_path, 0, 0, problems.append)
    with (folder / name).open("wb", buffering=0) as file:
        written = 0
        for length in sorted({*range(0, len(data), 7), *complete, *(end - 1 for end in complete[1:]), len(data)}):
            file.write(data[written:length])
            grown = rank.poll(False, problems.append)
            assert grown == any(written < end <= length for end in complete[1:]), length
            written = length
    assert steps_of(rank)[stream] == list(range(1, 10))
    assert len(complete) == 1 + 9 // rows
    assert problems == []


def test_a_torn_end_in_every_stream_at_once_opens_and_says_nothing(whole: Path, tmp_path: Path) -> None:
    """A killed process leaves just this; it is no damage."""
    run_dir = tmp_path / "run"
    for source in whole.rglob("*"):
        if source.is_file():
            target = run_dir / source.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            cut = 20 if source.suffix in (".arrows", ".jsonl") else 0
            target.write_bytes(source.read_bytes()[: -cut or None])
    write_exit(run_dir, 0, outcome="crashed", step=9, reason="killed", signal=9)
    run = open_run(run_dir)
    assert run.problems == ()
    found = known_steps(run)
    assert found["events"] == list(range(1, 9))
    assert all(found[stream] == list(range(1, 7)) for stream in STREAMS if stream != "events")
