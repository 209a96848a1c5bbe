"""Compaction on its own: of long ended runs of one's own, never of a live one, never two at once."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import tidy
from app.tidy import Tidy, worth_it
from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.compact import compact_run, unmerged_bytes
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, begin_attempt, write_exit
from tests.monitor.runfile.conftest import write_run, write_steps


@pytest.fixture(autouse=True)
def every_run_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidy, "LEAST_BYTES", 1)
    monkeypatch.delenv("GRADIOMETER_COMPACT", raising=False)


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    run = write_run(tmp_path, 500, segment_bytes=4000)
    write_exit(run, 0, outcome="finished", step=500, reason="done")
    return run


AUTOGROUP = Path("/proc/self/autogroup")


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="Linux shares the processor out by process here")
@pytest.mark.parametrize("own_session", [True, False])
def test_compaction_yields_with_its_session_where_that_is_its_own(own_session: bool) -> None:
    code = "from pathlib import Path; from app.tidy import yield_to_everything as y; y(); " + (
        "print(Path('/proc/self/autogroup').read_text())"
    )
    told = subprocess.run([sys.executable, "-c", code], start_new_session=own_session, capture_output=True, text=True)
    # of a process that is in the first session of the machine, where there is no share to speak of, nothing is said
    assert told.stdout.split()[-1:] == (["19"] if own_session else AUTOGROUP.read_text("ascii").split()[-1:]), (
        told.stderr
    )


def compact_files(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("compact/*"))


def test_an_ended_run_that_is_looked_at_is_compacted_and_keeps_its_segments(ended: Path) -> None:
    done: list[Path] = []
    keeper = Tidy(done.append)
    run = open_run(ended)
    before, segments = run.series("train_loss").value.tobytes(), sorted(ended.rglob("*.arrows"))
    assert unmerged_bytes(run) == sum(path.stat().st_size for path in segments)
    keeper.consider(run)
    assert keeper.join(120)
    assert done == [run.path]
    assert "scalars-0000-00000.levels.arrow" in compact_files(ended)
    assert sorted(ended.rglob("*.arrows")) == segments
    again = open_run(ended)
    assert again.series("train_loss").value.tobytes() == before
    assert not worth_it(again) and unmerged_bytes(again) == 0
    keeper.consider(again)
    assert keeper.join(120) and done == [run.path]


@pytest.fixture
def unwanted(ended: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The run, made one that must be left alone."""
    writer = None
    if request.param == "live":
        begin_attempt(ended, parent=0, resume_step=500)
        writer = RankWriter(ended, 1)
        write_steps(writer, 501, 510)
        assert writer.flush(30)
    elif request.param == "damaged":
        path = fmt.rank_dir(ended, 0) / "scalars-000000.arrows"
        data = bytearray(path.read_bytes())
        data[-40] ^= 1
        path.write_bytes(data)
    elif request.param == "off":
        monkeypatch.setenv("GRADIOMETER_COMPACT", "0")
    elif request.param == "short":
        monkeypatch.setattr(tidy, "LEAST_BYTES", 1 << 40)
    elif request.param == "many ranks":
        monkeypatch.setattr(tidy, "MOST_RANKS", 0)
    elif request.param == "too large":
        monkeypatch.setattr(tidy, "MEMORY_SHARE", 0.0)
    elif request.param == "disk full":
        monkeypatch.setattr(tidy, "DISK_FACTOR", 1 << 50)
    elif request.param == "another's":
        monkeypatch.setattr(os, "geteuid", lambda: ended.stat().st_uid + 1)
    elif request.param == "sample":
        monkeypatch.setattr("app.data.SAMPLES", ended.parent)
    yield ended
    if writer is not None:
        writer.close()


KINDS = ["live", "damaged", "off", "short", "many ranks", "too large", "disk full", "another's", "sample"]


@pytest.mark.parametrize("unwanted", KINDS, indirect=True)
def test_what_must_be_left_alone_is_left_alone(unwanted: Path) -> None:
    keeper = Tidy(lambda path: pytest.fail(f"{path} was compacted"))
    keeper.consider(open_run(unwanted))
    assert keeper.join(0)
    assert compact_files(unwanted) == []


def test_two_compactions_of_one_run_do_not_meet(ended: Path) -> None:
    other = os.open(ended, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="is being compacted by another process"):
            compact_run(ended, remove=True)
        assert compact_files(ended) == []
    finally:
        os.close(other)
    assert compact_run(ended)


def test_a_folder_that_is_not_there_is_said_as_ever(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        compact_run(tmp_path / "missing")
