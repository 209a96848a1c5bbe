"""Landscape samples on disk: those of the training, and the files that are made from checkpoints afterwards."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile import landscapes
from monitor.runfile.landscapes import LandscapeFiles, landscape_file, read_landscape, write_landscape
from monitor.runfile.reader import open_run
from monitor.runfile.records import LandscapeSample
from monitor.runfile.writer import RankWriter, begin_attempt
from tests.monitor.runfile.conftest import START

NAME = "00000030-plane-0a1b2c3d"


def plane(step: int = 30, attempt: int = 0, points: int = 6, name: str = NAME) -> LandscapeSample:
    """The first of 2 x 3 points, one of them NaN."""
    x, y = np.array([-1.0, 0, 1, -1, 0, 1])[:points], np.array([0.0, 0, 0, 2, 2, 2])[:points]
    loss = np.array([3.0, np.nan, 1, np.inf, 5, 6])[:points]
    detail = json.dumps({"points": 6, "trajectory": {"step": [10, 30], "x": [0.5, 0], "y": [0.1, 0]}})
    return LandscapeSample(step, START, "plane", "pca", 1.0, x, loss, 2.0, attempt, y, detail, name)


@pytest.fixture
def trained(run_dir: Path) -> Path:
    writer = RankWriter(run_dir, 0)
    for step in range(1, 61):
        writer.scalars(step, START + step, {"train_loss": 1.0})
    writer.landscape(30, START, kind="line", direction="random", radius=1, coords=[0], loss=[1], baseline=1)
    writer.landscape(40, START, kind="plane", direction="random", radius=1, coords=[0, 1], loss=[1, 2], baseline=1,
                     coords_y=[5, 6], detail={"unit": "filter"})  # fmt: skip
    writer.close()
    return run_dir


def test_what_was_written_afterwards_comes_back_among_the_trainings_own(trained: Path) -> None:
    run = open_run(trained)
    write_landscape(trained, NAME, [plane()])
    assert run.refresh() and run.problems == ()
    assert [(one.step, one.kind, one.name) for one in run.landscape()] == [
        (30, "line", ""), (30, "plane", NAME), (40, "plane", ""),
    ]  # fmt: skip
    own, later = run.landscape("plane")[::-1]
    assert (own.coords_y.tolist(), own.detail) == ([5, 6], {"unit": "filter"})
    for name in ("coords", "coords_y", "loss"):
        np.testing.assert_array_equal(getattr(later, name), getattr(plane(), name))
    assert later.detail["trajectory"]["step"] == [10, 30]
    x, y, loss, known = later.grid()
    assert (x.tolist(), y.tolist(), known.all()) == ([-1, 0, 1], [0, 2], True)
    np.testing.assert_array_equal(loss, [[3, np.nan, 1], [np.inf, 5, 6]])


def test_a_part_of_a_plane_says_which_points_are_there(trained: Path) -> None:
    write_landscape(trained, NAME, [plane(points=4)])
    x, y, loss, known = open_run(trained).landscape("plane")[0].grid()
    assert known.tolist() == [[True, True, True], [True, False, False]]
    assert np.isnan(loss[0, 1]) and np.isnan(loss[1, 1]) and known[0, 1]
    assert (len(x), len(y)) == (3, 2)


def test_a_file_that_is_replaced_is_read_again_and_one_that_is_deleted_forgotten(trained: Path) -> None:
    run = open_run(trained)
    for points in (2, 5, 6):
        write_landscape(trained, NAME, [plane(points=points)])
        assert run.refresh()
        assert [len(one.coords) for one in run.landscape("plane") if one.name] == [points]
    assert not run.refresh()
    landscape_file(trained, NAME).unlink()
    assert run.refresh() and not any(one.name for one in run.landscape())


def test_an_old_folder_is_looked_at_once(trained: Path) -> None:
    path = write_landscape(trained, NAME, [plane()])
    os.utime(path.parent, (START, START))
    files, said = LandscapeFiles(trained), list[str]()
    assert files.refresh(said.append) and not files.refresh(said.append)
    path.write_bytes(b"changed behind its back, without a rename")
    os.utime(path.parent, (START, START))
    assert not files.refresh(said.append) and said == []


def test_a_sample_of_a_checkpoint_that_was_rewound_does_not_count(trained: Path) -> None:
    write_landscape(trained, NAME, [plane()])
    begin_attempt(trained, parent=0, resume_step=20)
    writer = RankWriter(trained, 1)
    writer.scalars(21, START, {"train_loss": 1.0})
    writer.close()
    run = open_run(trained)
    assert run.landscape() == []
    write_landscape(trained, NAME, [plane(attempt=1)])
    assert run.refresh() and [one.attempt for one in run.landscape()] == [1]


def test_a_stream_from_before_planes_is_read(run_dir: Path) -> None:
    old = pa.schema(list(fmt.landscape_schema())[:-2], metadata=fmt.landscape_schema().metadata)
    row = {"step": [3], "time": [START], "kind": ["line"], "direction": ["x"], "radius": [1.0], "coords": [[0.0, 1]],
           "loss": [[1.0, 2]], "baseline": [1.0]}  # fmt: skip
    head = landscapes.encode_schema(old)
    batch = landscapes.encode_batch(pa.record_batch(row, schema=old), len(head), landscapes.zlib.crc32(head))
    fmt.rank_dir(run_dir, 0).mkdir(parents=True, exist_ok=True)
    (fmt.rank_dir(run_dir, 0) / "landscape-000000.arrows").write_bytes(head + batch)
    run = open_run(run_dir)
    (sample,) = run.landscape()
    assert (run.problems, sample.loss.tolist(), sample.coords_y.tolist(), sample.detail) == ((), [1, 2], [], {})
    with pytest.raises(ValueError, match="no second coordinate"):
        sample.grid()


def test_every_flipped_byte_is_noticed_or_harmless(trained: Path) -> None:
    path = write_landscape(trained, NAME, [plane()])
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            found = read_landscape(trained, NAME)
        except RunError as error:
            refused += str(path) in str(error)
            continue
        np.testing.assert_array_equal(found[0].loss, plane().loss)  # the end mark alone has no checksum
    assert refused > len(whole) // 7 - 4
    for size in range(0, len(whole) - 8, 11):
        path.write_bytes(whole[:size])
        with pytest.raises(RunError, match="cannot be read"):
            read_landscape(trained, NAME)


def test_what_is_hostile_is_one_message_and_the_rest_is_read(trained: Path, tmp_path: Path) -> None:
    good = write_landscape(trained, NAME, [plane()])
    folder = good.parent
    (folder / "00000031-plane-00000000.arrows").symlink_to(good)
    (folder / "00000032-plane-00000000.arrows").write_bytes(b"\xff" * 100)
    (folder / "00000033-plane-00000000.arrows").mkdir()
    os.mkfifo(folder / "00000034-plane-00000000.arrows")
    with (folder / "00000035-plane-00000000.arrows").open("wb") as file:
        file.truncate(landscapes.MOST_BYTES + 1)
    (folder / "note.arrows").write_bytes(b"")
    (folder / ".00000036-plane-00000000.arrows.1-ab.tmp").write_bytes(b"")
    run = open_run(trained)
    assert [one.name for one in run.landscape("plane") if one.name] == [NAME]
    assert len(run.problems) == 5 and all("landscape/000000" in problem for problem in run.problems)


def test_a_folder_that_is_a_link_is_not_followed(trained: Path, tmp_path: Path) -> None:
    (trained / "landscape").symlink_to(tmp_path)
    with pytest.raises(RunError, match="symbolic link"):
        write_landscape(trained, NAME, [plane()])
    with pytest.raises(RunError, match="symbolic link"):
        read_landscape(trained, NAME)
    run = open_run(trained)
    assert "symbolic link" in run.problems[0] and not run.refresh()


@pytest.mark.parametrize("name", ["../../x", "plane", "00000030-plane-0a1b2c3", "00000030-plane-0a1b2c3d/../x"])
def test_a_name_that_leads_elsewhere_is_refused(trained: Path, name: str) -> None:
    with pytest.raises(RunError, match="accepted are names"):
        write_landscape(trained, name, [plane()])


def test_bounds_are_kept(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        write_landscape(trained, f"{number:08d}-line-00000000", [plane(step=number + 1)])
    monkeypatch.setattr(landscapes, "MOST_FILES", 2)
    run = open_run(trained)
    assert len([one for one in run.landscape() if one.name]) == 2 and "more than 2 files" in run.problems[0]
    monkeypatch.setattr(landscapes, "MOST_FILES", 1000)
    monkeypatch.setattr(landscapes, "MOST_BYTES_IN_ALL", 1)
    assert not any(one.name for one in open_run(trained).landscape())
    monkeypatch.setattr(fmt, "MAX_LANDSCAPE_POINTS", 5)
    assert read_landscape(trained, "00000000-line-00000000") == []
    scattered = replace(plane(), coords=np.arange(4096.0), coords_y=np.arange(4096.0), loss=np.zeros(4096))
    with pytest.raises(ValueError, match="no grid"):
        scattered.grid()
    assert replace(plane(), detail_json="[" * 100_000).detail == {}
    assert replace(plane(), detail_json="[1]").detail == {}
