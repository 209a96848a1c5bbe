"""The index never changes the list: whatever happens to the runs or to the index, the rows are as without one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile import index as indexing
from monitor.runfile.index import INDEX_FILE, TURNS, RunIndex
from monitor.runfile.store import list_runs, optional_json
from monitor.runfile.trash import delete_run, restore_run, trash_run
from monitor.runfile.writer import begin_attempt, create_run, process_identity, write_exit
from tests.monitor.runfile.conftest import START, write_run

ROOT = Path(__file__).parents[3]
NOW = START + 1000


def later() -> float:
    """A clock so far ahead that every run rests; files' change times cannot be set back."""
    return time.time() + 3600


def opened(folder: Path, write_at: int = 1) -> RunIndex:
    """An index that keeps and writes everything at once."""
    return RunIndex(folder, write_at=write_at, clock=later)


def quick_run(folder: Path, name: str = "quick", outcome: str = "finished", **more: Any) -> Path:
    """The small files of a run, without a writer's threads."""
    run_dir = create_run(folder, name=name, task="gpt", now=lambda: START, **more)
    number = begin_attempt(run_dir, planned_steps=100, now=lambda: START)
    beat(run_dir, number, 7)
    if outcome:
        write_exit(run_dir, number, outcome=outcome, step=7, reason="all steps done", now=lambda: START + 10)
    return run_dir


def beat(run_dir: Path, number: int, step: int, **more: Any) -> None:
    rank = fmt.rank_dir(run_dir, number)
    rank.mkdir(exist_ok=True)
    record = {
        "step": step, "time": NOW - 5, "step_at": NOW - 5, "state": "closing", "step_time_s": 0.1, "planned_steps": 100,
        "summary": {"train_loss": {"last": 2.0 / step, "best": 1.0 / step}}, **process_identity(), **more,
    }  # fmt: skip
    fmt.atomic_write_json(rank / "heartbeat.json", record)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def same(index: RunIndex, folder: Path) -> None:
    """repr, because NaN is not equal to itself."""
    assert list(map(repr, index.read(NOW).rows)) == list(map(repr, list_runs(folder, NOW)))


def forge(folder: Path, change: Callable[[Any], None]) -> None:
    """Change the first run's line in the index, with a checksum that holds."""
    header, line, *rest = (folder / INDEX_FILE).read_bytes().split(b"\n")
    content, _, config = line[9:].partition(b"\t")
    value = json.loads(content)
    change(value)
    body = json.dumps(value).encode() + b"\t" + config
    (folder / INDEX_FILE).write_bytes(b"\n".join([header, b"%08x " % zlib.crc32(body) + body, *rest]))


def test_runs_at_rest_are_taken_from_the_index_of_an_earlier_process(tmp_path: Path) -> None:
    quick_run(tmp_path)
    opened(tmp_path).read(NOW)
    forge(tmp_path, lambda value: value[2][0].update(name="from the index"))
    assert [row.name for row in opened(tmp_path).read(NOW).rows] == ["from the index"]
    assert [row.name for row in list_runs(tmp_path, NOW)] == ["quick"]


def test_no_row_differs_for_runs_in_every_state(tmp_path: Path) -> None:
    write_run(tmp_path, 30)
    for outcome in ("finished", "stopped", "crashed", ""):
        quick_run(tmp_path, outcome or "open", outcome)
    dead = quick_run(tmp_path, "dead", "")
    beat(dead, 0, 9, pid=4_000_000, state="training")
    remote = quick_run(tmp_path, "remote", "")
    beat(remote, 0, 9, host="elsewhere", state="training", summary={"train_loss": {"last": "NaN", "best": 1e-300}})
    fmt.exclusive_write_json(dead / "attempts" / "0000" / "supervisor.json", {"started": START})
    create_run(tmp_path, name="only begun", now=lambda: START)
    fmt.atomic_write_json(remote / "meta.json", {"name": ["odd"], "tags": ["a", 1], "notes": "n"})
    for _ in range(TURNS + 1):
        same(opened(tmp_path), tmp_path)
    words = {row.state.word for row in list_runs(tmp_path, NOW)}
    assert {"finished", "stopped", "crashed"} <= words


def test_the_state_of_an_indexed_run_is_computed_when_asked(tmp_path: Path) -> None:
    run_dir = quick_run(tmp_path, outcome="")
    beat(run_dir, 0, 9, host="elsewhere", state="training")
    index = opened(tmp_path)
    assert index.read(NOW + 90_000).rows[0].state.word == "lost"
    assert INDEX_FILE in names(tmp_path)
    for one in (index, opened(tmp_path)):
        assert one.read(NOW).rows[0].state.word == "running"
        assert one.read(NOW + 60).rows[0].state.word == "stale"


@pytest.mark.parametrize("seed", range(int(os.environ.get("GRADIOMETER_INDEX_SEEDS", "4"))))
def test_no_row_differs_whatever_happens(tmp_path: Path, seed: int) -> None:
    """Runs begin, go on, end, are renamed, thrown away and tampered with; the index is damaged in between."""
    chance, folder = random.Random(seed), tmp_path / "runs"
    folder.mkdir()
    lasting, done = opened(folder), {"tampered": 0, "damaged": 0}
    for turn in range(60):
        with contextlib.suppress(RunError, OSError):  # what was tampered with may refuse to go on
            happens(chance, folder, turn, done)
        for _ in range(TURNS):  # what is changed by hand is seen by the last of these
            rows = lasting.read(NOW).rows
        assert list(map(repr, rows)) == list(map(repr, list_runs(folder, NOW))), turn
        same(opened(folder), folder)
    assert min(done.values()) > 0 and len(list_runs(folder)) > 3


def happens(chance: random.Random, folder: Path, turn: int, done: dict[str, int]) -> None:
    """One thing, taken at random."""
    ids = [row.id for row in list_runs(folder, NOW) if row.problem is None]
    what = chance.choice(
        ["new", "new", "beat", "end", "resume", "rename", "trash", "restore", "delete", "tamper", "tamper", "damage"]
    )
    run_dir = folder / chance.choice(ids) if ids else None
    if what == "new" or run_dir is None:
        quick_run(folder, f"run {turn}", chance.choice(["finished", "crashed", ""]))
    elif what == "beat":
        if (run_dir / "attempts" / "0000").is_dir():
            beat(run_dir, 0, turn + 1, state=chance.choice(["training", "closing"]))
    elif what == "end":
        if not (run_dir / "attempts" / "0000" / "exit.json").exists():
            write_exit(run_dir, 0, outcome="stopped", step=turn, reason=f"turn {turn}")
    elif what == "resume":
        begin_attempt(run_dir, parent=0, resume_step=3)
    elif what == "rename":
        fmt.atomic_write_json(run_dir / "meta.json", {"name": f"renamed {turn}", "tags": [f"t{turn}"]})
    elif what == "trash":
        if {row.id: row.state.ended for row in list_runs(folder)}[run_dir.name]:
            trash_run(folder, run_dir.name)
    elif what in ("restore", "delete"):
        thrown = names(folder / ".trash")
        if thrown:
            (restore_run if what == "restore" else delete_run)(folder, chance.choice(thrown))
    elif what == "tamper":
        done["tampered"] += 1
        tamper(chance, run_dir, turn)
    else:
        done["damaged"] += 1
        damage(chance, folder / INDEX_FILE)


def tamper(chance: random.Random, run_dir: Path, turn: int) -> None:
    files = sorted(path for path in run_dir.rglob("*.json") if path.is_file())
    path = chance.choice(files)
    how = chance.choice(["edit", "edit", "cut", "remove", "link", "folder", "move"])
    if how == "edit":  # in place: the inode stays
        value = optional_json(path) or {}
        value.update(name=f"by hand {turn}" + "x" * turn, reason="y" * turn, step=turn)
        path.write_text(json.dumps(value))
    elif how == "cut":
        os.truncate(path, chance.randrange(20))
    elif how == "move":  # the same inode and the same time, but behind a link
        rank = run_dir / "attempts" / "0000" / "rank-00000"
        if rank.is_dir() and not rank.is_symlink():
            aside = run_dir.parent / f".aside-{turn}"
            rank.rename(aside)
            rank.symlink_to(aside)
    else:
        path.unlink()
        if how == "link":
            path.symlink_to("/etc/hostname")
        elif how == "folder":
            path.mkdir()


def damage(chance: random.Random, path: Path) -> None:
    data = path.read_bytes() if path.is_file() else b""
    how = chance.choice(["cut", "flip", "flip", "garbage", "version", "remove", "double", "folder"])
    if path.is_dir():
        path.rmdir()
    if how == "remove":
        path.unlink(missing_ok=True)
    elif how == "folder":
        path.unlink(missing_ok=True)
        path.mkdir()
    elif how == "garbage":
        path.write_bytes(chance.randbytes(3000))
    elif how == "version":
        path.write_bytes(data.replace(b'"gradiometer_index": 1', b'"gradiometer_index": 99'))
    elif how == "double":
        path.write_bytes(data + data)
    elif how == "cut":
        path.write_bytes(data[: chance.randrange(len(data) + 1)])
    elif data:
        place = chance.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :])


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.clear(),
        lambda value: value.append(1),
        lambda value: value.__setitem__(0, 7),
        lambda value: value.__setitem__(0, None),
        lambda value: value.__setitem__(1, []),
        lambda value: value.__setitem__(1, "stamps"),
        lambda value: value[1].__setitem__(2, ["/../../etc", 1, 2, 3]),
        lambda value: value[1].__setitem__(2, [{}, 1, 2, 3]),
        lambda value: value[1].__setitem__(2, ["/\x00", None, [], {}]),
        lambda value: value[1].__setitem__(2, ["/\ud800", "1", 2.5, 3]),
        lambda value: value[1].__setitem__(0, ["", "1", 2.5]),
        lambda value: value.__setitem__(2, {"run": 1}),
        lambda value: value.__setitem__(2, [[], {}, []]),
        lambda value: value[2].__setitem__(2, [[1, 2, 3, 4, 5]]),
        lambda value: value[2].__setitem__(2, 10**400),
    ],
    ids=range(15),
)
def test_a_line_of_the_wrong_types_is_as_none(tmp_path: Path, change: Callable[[Any], None]) -> None:
    quick_run(tmp_path)
    quick_run(tmp_path, "another")
    opened(tmp_path).read(NOW)
    forge(tmp_path, change)
    same(opened(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n" * 100_000, b"[" * 100_000, b"x" * 5_000_000, b'{"gradiometer_index": 1, "format_major": 1}\n' * 50_000],
    ids=["empty", "newlines", "brackets", "large", "headers"],
)
def test_a_hostile_index_is_written_anew(tmp_path: Path, content: bytes) -> None:
    quick_run(tmp_path)
    (tmp_path / INDEX_FILE).write_bytes(content)
    same(opened(tmp_path), tmp_path)
    assert b"quick" in (tmp_path / INDEX_FILE).read_bytes()


def test_a_link_or_a_pipe_in_the_index_place_is_neither_read_nor_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "runs", tmp_path / "outside"
    quick_run(folder)
    opened(folder).read(NOW)
    outside.write_bytes(b"precious")
    (folder / INDEX_FILE).unlink()
    (folder / INDEX_FILE).symlink_to(outside)
    same(opened(folder), folder)
    assert outside.read_bytes() == b"precious" and not (folder / INDEX_FILE).is_symlink()
    (folder / INDEX_FILE).unlink()
    os.mkfifo(folder / INDEX_FILE)
    same(opened(folder), folder)


def test_a_folder_that_cannot_be_written_gets_one_note_and_every_row(tmp_path: Path) -> None:
    quick_run(tmp_path)
    (tmp_path / INDEX_FILE).mkdir()  # works for root too, unlike a mode
    index = opened(tmp_path)
    for _ in range(3):
        (note,) = index.read(NOW).notes
        assert "cannot be written" in note and INDEX_FILE in note
        same(index, tmp_path)
    assert names(tmp_path)[0] == INDEX_FILE and len(names(tmp_path)) == 2


def test_a_file_in_the_place_of_the_runs_folder_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    listed = RunIndex(tmp_path / "runs").read()
    assert listed.rows == list_runs(tmp_path / "runs") == []
    assert "cannot be listed (Not a directory)" in listed.notes[0]


def test_a_small_folder_has_no_index_and_an_absent_one_none_either(tmp_path: Path) -> None:
    quick_run(tmp_path / "runs")
    assert len(RunIndex(tmp_path / "runs", clock=later).read().rows) == 1
    assert len(names(tmp_path / "runs")) == 1
    assert RunIndex(tmp_path / "none", write_at=0).read().rows == []
    assert not (tmp_path / "none").exists()


def test_a_run_that_was_changed_just_now_is_not_kept(tmp_path: Path) -> None:
    """A further change might come within the same tick of the file system's clock."""
    run_dir = quick_run(tmp_path)
    changed = max(path.lstat().st_ctime for path in (run_dir, *run_dir.rglob("*")))
    RunIndex(tmp_path, write_at=1, clock=lambda: changed + indexing.REST_S / 2).read()
    assert INDEX_FILE not in names(tmp_path)
    RunIndex(tmp_path, write_at=1, clock=lambda: changed + indexing.REST_S * 2).read()
    assert INDEX_FILE in names(tmp_path)


def test_a_run_with_too_much_to_say_is_read_each_time(tmp_path: Path) -> None:
    run_dir = quick_run(tmp_path, config={"text": "x" * indexing.MAX_LINE_BYTES})
    index = opened(tmp_path)
    same(index, tmp_path)
    assert INDEX_FILE not in names(tmp_path)
    assert index.config_of(index.read().rows[0])["text"][:3] == "xxx"
    assert run_dir.is_dir()


def test_the_configuration_comes_flat_from_the_index_or_the_directory(tmp_path: Path) -> None:
    config = {"optimizer": {"lr": 1e-3, "betas": [0.9, 0.95], "none": {}}, "x\ty": "a\nb"}
    quick_run(tmp_path, config=config)
    expected = {"optimizer.lr": 1e-3, "optimizer.betas": [0.9, 0.95], "optimizer.none": {}, "x\ty": "a\nb"}
    for index in (opened(tmp_path), opened(tmp_path), RunIndex(tmp_path)):
        (row,) = index.read(NOW).rows
        assert index.config_of(row) == indexing.config_of(row) == expected


def test_a_hostile_folder_costs_one_message_each(tmp_path: Path) -> None:
    good = quick_run(tmp_path)
    for number in range(2000):
        (tmp_path / f"stray-{number}").touch()
    (tmp_path / "not-\udcff-text").mkdir()  # the byte FF
    (tmp_path / "link").symlink_to(good)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    odd = quick_run(tmp_path, "odd")
    shutil.rmtree(odd / "attempts")
    (odd / "attempts").write_text("a file")
    index = opened(tmp_path)
    listed = index.read(NOW)
    same(index, tmp_path)
    (note,) = listed.notes
    assert "2001 files" in note
    problems = {row.id: row.problem for row in listed.rows}
    assert problems.pop(good.name) is None
    assert set(problems) == {"not-\\xff-text", "link", "empty", odd.name}
    assert all(problems.values()) and "no folder" in (problems[odd.name] or "")


WRITE = """
import sys, time
from pathlib import Path
from monitor.runfile.index import INDEX_FILE, RunIndex
for _ in range(20):
    (Path(sys.argv[1]) / INDEX_FILE).unlink(missing_ok=True)
    listed = RunIndex(sys.argv[1], write_at=1, clock=lambda: time.time() + 3600).read()
    assert len(listed.rows) == 30 and not listed.notes, listed
"""


def test_two_processes_may_write_the_index_at_once(tmp_path: Path) -> None:
    for number in range(30):
        quick_run(tmp_path, f"run {number}")
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path)], cwd=ROOT) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        same(opened(tmp_path), tmp_path)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert [name for name in names(tmp_path) if name.endswith(".tmp")] == []
    same(opened(tmp_path), tmp_path)


def test_what_a_killed_writer_left_is_taken_away(tmp_path: Path) -> None:
    quick_run(tmp_path)
    old, fresh = tmp_path / f"{INDEX_FILE}.1-aa.tmp", tmp_path / f"{INDEX_FILE}.2-bb.tmp"
    old.touch()
    fresh.touch()
    os.utime(old, (time.time() - 10_000, time.time() - 10_000))
    opened(tmp_path).read(NOW)
    assert fresh.exists() and not old.exists()
