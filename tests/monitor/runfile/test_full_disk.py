"""A disk that is full at any moment: the training goes on, no row that fits in memory is lost, nothing torn is left."""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile import writer as writer_module
from monitor.runfile.compact import compact_run
from monitor.runfile.export import export_run
from monitor.runfile.reader import open_run
from monitor.runfile.store import list_runs
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.known import STREAMS, known_steps, write_known


class Ballast:
    """What others put on the same disk."""

    def __init__(self, disk: Path):
        self._disk = disk
        self._count = 0

    def fill(self) -> None:
        """Take every block that is left."""
        self._count += 1
        with (self._disk / f"ballast-{self._count}").open("wb", buffering=0) as file:
            for size in (4096, 1):
                with pytest.raises(OSError, match="No space"):
                    while True:
                        file.write(b"x" * size)

    def take_names(self) -> None:
        """Take every file that can still be made."""
        with pytest.raises(OSError, match="No space"):
            while True:
                self._count += 1
                (self._disk / f"ballast-{self._count}").touch()

    def go(self) -> None:
        for path in self._disk.glob("ballast-*"):
            path.unlink()


def new_run(disk: Path) -> Path:
    run = create_run(disk, run_id="one")
    begin_attempt(run)
    return run


def heartbeat(run: Path) -> dict[str, object]:
    return fmt.load_json(fmt.rank_dir(run, 0) / fmt.HEARTBEAT_FILE)


def is_told(run: Path) -> bool:
    return any("disk full" in text for text in heartbeat(run)["warnings"])  # type: ignore[attr-defined]


def leftovers(folder: Path) -> list[str]:
    """Temporary files and empty segments: what a failure must not leave behind."""
    return [
        path.name
        for path in folder.rglob("*")
        if path.name.endswith(".tmp") or (path.suffix in (".arrows", ".jsonl") and path.stat().st_size == 0)
    ]


def check(run_dir: Path, last: int) -> None:
    """Everything up to ``last`` is there, in every stream, and the directory is clean."""
    run = open_run(run_dir)
    assert run.problems == ()
    assert known_steps(run) == {stream: list(range(1, last + 1)) for stream in STREAMS}
    assert leftovers(run_dir) == []


@pytest.mark.parametrize("segment_bytes", [3_000, 16 << 20], ids=["while rotating", "in one segment"])
@pytest.mark.parametrize("before", [0, 40], ids=["before the first row", "later"])
def test_rows_of_every_stream_wait_for_space_and_are_written_then(
    small_disk: Path, segment_bytes: int, before: int
) -> None:
    run, ballast = new_run(small_disk), Ballast(small_disk)
    writer = RankWriter(run, 0, seconds_per_batch=0.05, rows_per_batch=10, segment_bytes=segment_bytes)
    write_known(writer, range(1, before + 1))
    assert writer.flush()
    ballast.fill()
    write_known(writer, range(before + 1, 101))
    assert not writer.flush(timeout=0.4)
    assert writer.error is None
    assert is_told(run)
    followed = open_run(run)
    assert followed.problems == ()
    assert all(before <= len(steps) < 100 or not before for steps in known_steps(followed).values())
    ballast.go()
    assert writer.flush(timeout=10)
    assert writer.rows_dropped == 0
    assert not is_told(run)
    followed.refresh()
    assert followed.problems == ()
    assert known_steps(followed)["layers"] == list(range(1, 101))
    writer.close()
    check(run, 100)
    assert any("has space again" in event.fields["text"] for event in open_run(run).events("warning"))


def test_a_new_column_on_a_full_disk_waits_as_well(small_disk: Path) -> None:
    """The old segment cannot be ended and the new one not begun; neither is left in halves."""
    run, ballast = new_run(small_disk), Ballast(small_disk)
    writer = RankWriter(run, 0, seconds_per_batch=0.05)
    for step in range(1, 11):
        writer.scalars(step, float(step), {"a": step})
    assert writer.flush()
    ballast.fill()
    for step in range(11, 21):
        writer.scalars(step, float(step), {"a": step, "b": step})
    assert not writer.flush(timeout=0.4)
    assert leftovers(run) == []
    assert open_run(run).series("a").step.tolist() == list(range(1, 11))
    ballast.go()
    assert writer.flush(timeout=10)
    writer.close()
    read = open_run(run)
    assert read.problems == ()
    assert read.series("a").step.tolist() == list(range(1, 21))
    assert read.series("b").step.tolist() == list(range(11, 21))


def test_without_room_for_another_file_open_segments_go_on(few_files: Path) -> None:
    run, ballast = new_run(few_files), Ballast(few_files)
    writer = RankWriter(run, 0, seconds_per_batch=0.05)
    write_known(writer, range(1, 11))
    assert writer.flush()
    ballast.take_names()
    write_known(writer, range(11, 51))
    assert writer.flush(timeout=10)
    assert known_steps(open_run(run)) == {stream: list(range(1, 51)) for stream in STREAMS}
    assert heartbeat(run)["step"] == 50  # written over in place
    writer.scalars(51, 0.0, {"another": 1.0})
    assert not writer.flush(timeout=0.4)
    ballast.go()
    assert writer.flush(timeout=10)
    writer.close()
    assert writer.rows_dropped == 0
    assert open_run(run).series("another").step.tolist() == [51]
    assert open_run(run).problems == ()


def test_a_disk_that_others_fill_and_free_at_random_costs_nothing(small_disk: Path) -> None:
    chance = random.Random(5)
    run, ballast = new_run(small_disk), Ballast(small_disk)
    writer = RankWriter(run, 0, seconds_per_batch=0.01, rows_per_batch=4, segment_bytes=4_000)
    followed = open_run(run)
    for first in range(1, 121, 4):
        if chance.random() < 0.5:
            ballast.fill()
        write_known(writer, range(first, first + 4))
        writer.flush(timeout=chance.choice([0.0, 0.02]))
        followed.refresh()
        known_steps(followed)
        if chance.random() < 0.5:
            ballast.go()
    ballast.go()
    assert writer.flush(timeout=10)
    writer.close()
    followed.refresh()
    assert followed.problems == ()
    assert known_steps(followed)["scalars"] == list(range(1, 121))
    check(run, 120)
    assert writer.rows_dropped == 0


def test_closing_on_a_full_disk_ends_in_time_and_counts_what_is_lost(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "CLOSE_SECONDS", 0.3)
    run, ballast = new_run(small_disk), Ballast(small_disk)
    writer = RankWriter(run, 0)
    write_known(writer, range(1, 31))
    assert writer.flush()
    ballast.fill()
    write_known(writer, range(31, 201))
    writer.close()
    assert not writer._thread.is_alive()
    assert writer.error is None
    found = known_steps(open_run(run))
    lost = sum(200 - len(steps) for steps in found.values())
    assert writer.rows_dropped == lost > 0
    assert all(steps == list(range(1, len(steps) + 1)) for steps in found.values())
    assert all(len(steps) >= 30 for steps in found.values())
    assert heartbeat(run)["state"] == "closing"
    assert leftovers(run) == []
    with pytest.raises(RunError, match=r"the end of attempt 0 of .* cannot be recorded: No space left"):
        write_exit(run, 0, outcome="finished", step=200, reason="done")
    assert not (run / "attempts" / "0000" / "exit.json").exists()
    ballast.go()
    assert write_exit(run, 0, outcome="finished", step=200, reason="done")
    assert open_run(run).state.word == "finished"
    assert open_run(run).problems == ()


def test_space_that_returns_while_the_writer_closes_is_used(small_disk: Path) -> None:
    run, ballast = new_run(small_disk), Ballast(small_disk)
    writer = RankWriter(run, 0, seconds_per_batch=0.05)
    ballast.fill()
    write_known(writer, range(1, 101))
    assert not writer.flush(timeout=0.2)
    pid = os.fork()
    if pid == 0:
        time.sleep(0.3)
        ballast.go()
        os._exit(0)
    writer.close()
    os.waitpid(pid, 0)
    assert writer.rows_dropped == 0
    check(run, 100)


def test_nothing_half_is_begun_on_a_full_disk(small_disk: Path) -> None:
    run, ballast = new_run(small_disk), Ballast(small_disk)
    ballast.fill()
    with pytest.raises(RunError, match="cannot be created: No space left"):
        create_run(small_disk, run_id="two")
    with pytest.raises(RunError, match=r"an attempt of .* cannot be made: No space left"):
        begin_attempt(run)
    with pytest.raises(RunError, match="cannot be written: No space left"):
        RankWriter(run, 0)
    assert leftovers(small_disk) == []
    assert not (fmt.rank_dir(run, 0) / fmt.HEARTBEAT_FILE).exists()
    assert {row.id for row in list_runs(small_disk)} >= {"one"}
    ballast.go()
    writer = RankWriter(run, 0)  # nobody has claimed it
    write_known(writer, range(1, 4))
    writer.close()
    check(run, 3)


def test_a_compaction_that_does_not_fit_leaves_the_run_as_it_was(small_disk: Path) -> None:
    run, ballast = new_run(small_disk), Ballast(small_disk)
    writer = RankWriter(run, 0, rows_per_batch=10, segment_bytes=4_000)
    write_known(writer, range(1, 201))
    writer.close()
    write_exit(run, 0, outcome="finished", step=200, reason="done")
    free = os.statvfs(small_disk).f_bavail * 4096
    for room in (0, 12_000, 40_000, free):  # none, too little for one stream, for all of them, enough
        ballast.fill()
        os.truncate(small_disk / f"ballast-{ballast._count}", max(0, free - room - 4096))
        if room < free:
            with pytest.raises(RunError, match=r"cannot be compacted: .*No space left.*segments are as they were"):
                compact_run(run, remove=False)
        else:
            compact_run(run, remove=True)
        check(run, 200)
        ballast.go()
        free = os.statvfs(small_disk).f_bavail * 4096
    gc.collect()  # a run read before may still map segments that are gone: room that would come free later
    ballast.fill()
    with pytest.raises(RunError, match=r"cannot be written: .*No space left"):
        export_run(run, small_disk / "export")


def test_a_limit_on_the_size_of_files_is_met_like_a_full_disk(tmp_path: Path) -> None:
    """EFBIG, as from `ulimit -f`; a quota of the file system (EDQUOT) takes the same path."""
    assert {errno.EFBIG, errno.EDQUOT, errno.ENOSPC} == set(writer_module._DISK_FULL)
    code = """
        import resource, sys
        from monitor.runfile.writer import RankWriter
        from tests.monitor.runfile.known import write_known
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        writer = RankWriter(sys.argv[1], 0, rows_per_batch=10, seconds_per_batch=0.05)
        write_known(writer, range(1, 11))
        assert writer.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        write_known(writer, range(11, 101))
        assert not writer.flush(timeout=0.4) and writer.error is None
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert writer.flush(timeout=10)
        writer.close()
        assert writer.rows_dropped == 0
    """
    run = new_run(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(run)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    check(run, 100)
    assert json.loads((fmt.rank_dir(run, 0) / "heartbeat.json").read_text())["step"] == 100
