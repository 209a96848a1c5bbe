"""Runs that are thrown away, taken back and deleted; nothing else is ever touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from monitor.errors import RunError
from monitor.runfile import trash
from monitor.runfile.reader import open_run
from monitor.runfile.store import list_runs
from monitor.runfile.trash import delete_run, empty_trash, list_trash, restore_run, trash_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.conftest import write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def ended(runs: Path) -> Path:
    run = write_run(runs, 5)
    write_exit(run, 0, outcome="finished", step=5, reason="done")
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_goes_into_the_trash_and_comes_back_as_it_was(runs: Path, ended: Path) -> None:
    before = contents(ended)
    there = trash_run(runs, ended.name)
    assert there == runs / ".trash" / ended.name
    assert list_runs(runs) == []
    assert contents(there) == before
    (one,) = list_trash(runs)
    assert (one.id, one.name, one.path) == (ended.name, "written", there)
    assert restore_run(runs, ended.name) == ended
    assert contents(ended) == before
    assert list_trash(runs) == []
    assert len(open_run(ended).series("train_loss")) == 5


def test_the_last_thrown_away_is_listed_first(runs: Path) -> None:
    for name in ("a", "b"):
        run = create_run(runs, run_id=name, now=lambda: 1.0)
        trash_run(runs, run.name)
    listed = list_trash(runs)
    assert {one.id for one in listed} == {"a", "b"}
    assert listed[0].trashed >= listed[1].trashed > 1e9


def test_delete_is_for_good_and_only_from_the_trash(runs: Path, ended: Path) -> None:
    with pytest.raises(RunError, match="has no trash"):
        delete_run(runs, ended.name)
    trash_run(runs, ended.name)
    delete_run(runs, ended.name)
    assert list((runs / ".trash").iterdir()) == []
    with pytest.raises(RunError, match="is not in the trash"):
        restore_run(runs, ended.name)


def test_emptying_takes_what_an_interrupted_deletion_left(
    runs: Path, ended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = create_run(runs, run_id="other", now=lambda: 1.0)
    for run in (ended, other):
        trash_run(runs, run.name)
    with monkeypatch.context() as patch:

        def half(name: str, dir_fd: int) -> None:
            os.unlink(f"{name}/run.json", dir_fd=dir_fd)
            raise PermissionError(13, "Permission denied")

        patch.setattr(trash.shutil, "rmtree", half)
        with pytest.raises(RunError, match="not deleted in full"):
            delete_run(runs, ended.name)
    assert [one.id for one in list_trash(runs)] == ["other"]  # a half run cannot be taken back
    assert empty_trash(runs) == ["other"]
    assert list((runs / ".trash").iterdir()) == []
    assert empty_trash(runs) == []


def test_no_trash_is_an_empty_one(tmp_path: Path) -> None:
    assert list_trash(tmp_path / "none") == []
    tmp_path.joinpath("runs").mkdir()
    assert list_trash(tmp_path / "runs") == []
    assert empty_trash(tmp_path / "runs") == []
    assert not (tmp_path / "runs" / ".trash").exists()


def test_a_run_that_goes_on_is_refused(runs: Path) -> None:
    run = create_run(runs)
    begin_attempt(run)
    writer = RankWriter(run, 0)
    writer.scalars(1, 1.0, {"train_loss": 1.0})
    assert writer.flush()
    with pytest.raises(RunError, match=r"the run is running\. Stop it first"):
        trash_run(runs, run.name)
    writer.close()
    assert run.is_dir()
    assert not (runs / ".trash").exists()


BAD_IDS = ("..", ".", "", "a/b", "/etc", "../other", ".trash", "a\0b", "x" * 200)


@pytest.mark.parametrize("name", BAD_IDS)
def test_a_name_that_is_no_id_is_refused(runs: Path, ended: Path, name: str) -> None:
    trash_run(runs, ended.name)
    for act in (trash_run, restore_run, delete_run):
        with pytest.raises(RunError, match="cannot name a directory"):
            act(runs, name)
    assert [one.id for one in list_trash(runs)] == [ended.name]


def test_what_is_no_run_is_not_touched(runs: Path, tmp_path: Path) -> None:
    (runs / "notes").mkdir(parents=True)
    (runs / "notes" / "text.txt").write_text("mine")
    (runs / "file").write_text("mine")
    outside = write_run(tmp_path / "outside", 3)
    write_exit(outside, 0, outcome="finished", step=3, reason="done")
    (runs / "link").symlink_to(outside)
    before = contents(tmp_path)
    for name, what in (
        ("notes", "it has no run.json"),
        ("file", "a file, not a run"),
        ("link", "a link, not a run"),
        ("none", "no such run"),
    ):
        with pytest.raises(RunError, match=what):
            trash_run(runs, name)
    assert contents(tmp_path) == before


def test_a_run_cut_short_while_it_was_made_may_go(runs: Path) -> None:
    (runs / "half" / "attempts").mkdir(parents=True)
    assert trash_run(runs, "half").is_dir()


def test_a_trash_that_is_a_link_is_refused(runs: Path, ended: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(ended, elsewhere / "victim")
    (runs / ".trash").symlink_to(elsewhere)
    before = contents(tmp_path)
    for act in (
        lambda: trash_run(runs, ended.name),
        lambda: restore_run(runs, "victim"),
        lambda: delete_run(runs, "victim"),
        lambda: empty_trash(runs),
    ):
        with pytest.raises(RunError, match="not a real folder"):
            act()
    assert list_trash(runs) == []
    assert contents(tmp_path) == before


def test_links_inside_a_run_are_removed_and_not_followed(runs: Path, ended: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("keep")
    (ended / "checkpoints" / "link").symlink_to(precious)
    trash_run(runs, ended.name)
    (runs / ".trash" / "link").symlink_to(precious)
    with pytest.raises(RunError, match="a link, not a run"):
        delete_run(runs, "link")
    with pytest.raises(RunError, match="a link, not a run"):
        restore_run(runs, "link")
    empty_trash(runs)
    assert (precious / "data").read_text() == "keep"
    assert not (runs / ".trash" / ended.name).exists()


def test_nothing_is_overwritten(runs: Path, ended: Path) -> None:
    trash_run(runs, ended.name)
    shutil.copytree(runs / ".trash" / ended.name, ended)
    with pytest.raises(RunError, match="nothing is overwritten"):
        restore_run(runs, ended.name)
    with pytest.raises(RunError, match=f"has a run {ended.name} already"):
        trash_run(runs, ended.name)
    assert contents(ended) == contents(runs / ".trash" / ended.name)


def test_a_runs_folder_may_be_a_link_itself(runs: Path, ended: Path, tmp_path: Path) -> None:
    (tmp_path / "short").symlink_to(runs)
    assert trash_run(tmp_path / "short", ended.name) == runs / ".trash" / ended.name
