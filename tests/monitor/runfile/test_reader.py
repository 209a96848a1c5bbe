"""A run read while it grows, after it is damaged, over attempts and ranks: always the same numbers."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.reader import Run, open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from monitor.signals import Signal
from tests.monitor.runfile.conftest import LAYERS, START, write_run, write_steps


def segment(run_dir: Path, stream: str = "scalars", index: int = 0, attempt: int = 0) -> Path:
    name = fmt.segment_name(stream, index)
    return fmt.rank_dir(run_dir, attempt) / name


def pairs(signal: Signal) -> list[tuple[int, str]]:
    """Comparable even with NaN in it."""
    return [(int(step), repr(float(value))) for step, value in zip(signal.step, signal.value, strict=True)]


# Opening -----------------------------------------------------------------------------------------------------------


def test_a_missing_folder_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no such folder.*gradiometer runs"):
        open_run(tmp_path / "none")


def test_a_folder_of_runs_is_told_from_a_run(tmp_path: Path) -> None:
    write_run(tmp_path, 1)
    with pytest.raises(RunError, match=r"no run\.json.*holds several runs"):
        open_run(tmp_path)


def test_a_newer_major_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1)
    record = json.loads((run / "run.json").read_text())
    record["format"] = {"major": 2, "minor": 0}
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"format 2; this version reads up to 1.*Upgrade"):
        open_run(run)


def test_a_newer_minor_version_is_read(tmp_path: Path) -> None:
    run = write_run(tmp_path, 5)
    record = json.loads((run / "run.json").read_text())
    record.update(format={"major": 1, "minor": 99}, something_new=[1])
    (run / "run.json").write_text(json.dumps(record))
    (fmt.rank_dir(run, 0) / "novelty-000000.arrows").write_bytes(b"?")
    assert len(open_run(run).series("train_loss")) == 5


def test_an_empty_run_is_empty(tmp_path: Path) -> None:
    run = open_run(
        create_run(tmp_path, name="new", task="gpt", config={"lr": 1}, parent={"run": "x", "attempt": 0, "step": 3})
    )
    assert (run.name, run.task, run.config, run.parent["step"]) == ("new", "gpt", {"lr": 1}, 3)  # type: ignore[index]
    assert (run.names, run.last_step, run.attempts, run.problems) == ((), None, (), ())
    assert len(run.series("anything")) == 0
    assert run.layers("anything").value.shape == (0, 0)
    assert (run.events(), run.landscape(), run.checkpoints(), run.log_tail()) == ([], [], [], [])
    assert len(run.system()) == len(run.frame()) == 0
    assert run.state.word == "starting"
    assert not run.refresh()


# Values ------------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path, 100))
    assert run.names == ("train_loss", "lr")
    assert (run.last_step, run.planned_steps) == (100, 100)
    loss = run.series("train_loss")
    assert (loss.step.dtype, loss.value.dtype, loss.unit) == (np.int64, np.float64, "nats")
    np.testing.assert_array_equal(loss.value, 1 / np.arange(1, 101))
    np.testing.assert_array_equal(run.times().value, START + np.arange(1, 101))
    matrix = run.layers("grad_norm_preclip")
    assert (matrix.names, matrix.value.shape, matrix.value.dtype) == (LAYERS, (100, 3), np.float32)
    assert matrix.present.all()
    np.testing.assert_array_equal(matrix.value, np.arange(1, 101)[:, None] + np.arange(3))


def test_what_is_returned_cannot_be_written_to(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path, 10))
    matrix = run.layers("grad_norm_preclip")
    for array in (run.series("lr").step, run.series("lr").value, run.times().value, matrix.value, matrix.present):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_arrays_stay_as_they_were_when_the_run_grows(run_dir: Path, writer: RankWriter) -> None:
    write_steps(writer, 1, 50)
    assert writer.flush()
    run = open_run(run_dir)
    before, version = run.series("train_loss"), run.version
    write_steps(writer, 51, 5000)
    assert writer.flush()
    assert run.refresh()
    assert run.version > version
    np.testing.assert_array_equal(before.value, 1 / np.arange(1, 51))
    assert len(run.series("train_loss")) == 5000


def test_a_heartbeat_alone_is_news_but_no_other_version(run_dir: Path, writer: RankWriter) -> None:
    write_steps(writer, 1, 50)
    writer.close()  # so that it writes none of its own
    run = open_run(run_dir)
    version, signal = run.version, run.series("train_loss")
    beat = run_dir / "attempts/0000/rank-00000/heartbeat.json"
    beat.write_text(beat.read_text().replace('"closing"', '"training"'))
    assert run.refresh()
    assert (run.state.heartbeat or {})["state"] == "training"
    assert run.version == version
    assert run.series("train_loss") is signal


def test_a_frame_tells_absent_from_nan(run_dir: Path, writer: RankWriter) -> None:
    writer.scalars(1, START, {"a": 1.0})
    writer.scalars(2, START, {"a": math.nan, "b": 2.0})
    writer.scalars(4, START, {"b": 4.0})
    assert writer.flush()
    frame = open_run(run_dir).frame()
    assert frame.index.tolist() == [1, 2, 4]
    assert frame["a"].isna().tolist()[2] is True
    assert frame["a"].array[2] is pd.NA
    assert math.isnan(frame["a"].array[1])
    assert frame["b"].array[0] is pd.NA
    narrow = open_run(run_dir).frame(["b"], start=3)
    assert narrow.index.tolist() == [4]


def test_system_samples_tell_absent_from_nan(run_dir: Path, writer: RankWriter) -> None:
    writer.system(START, {"rss_gib": 1.0})
    writer.system(START + 2, {"rss_gib": math.nan, "cpu_pct": 50.0})
    assert writer.flush()
    frame = open_run(run_dir).system()
    assert frame["time"].tolist() == [START, START + 2]
    assert frame["cpu_pct"].array[0] is pd.NA
    assert math.isnan(frame["rss_gib"].array[1])


def test_late_values_are_merged_and_the_last_word_counts(run_dir: Path, writer: RankWriter) -> None:
    writer.event("eval", 0, values={"val_loss": 9.0})  # before training
    write_steps(writer, 1, 10)
    writer.event("log", 3, values={"accuracy": 0.1, "train_loss": math.inf, "text": "no number"})
    writer.event("log", 3, values={"accuracy": 0.2})
    writer.event("eval", 10, values={"val_loss": math.nan})
    assert writer.flush()
    run = open_run(run_dir)
    assert pairs(run.series("accuracy")) == [(3, "0.2")]
    assert pairs(run.series("val_loss")) == [(0, "9.0"), (10, "nan")]
    assert run.series("train_loss").value[2] == math.inf
    assert len(run.series("train_loss")) == 10
    assert "text" not in run.names


# Following ---------------------------------------------------------------------------------------------------------


def test_follow_gives_every_change_and_ends_with_the_run(run_dir: Path, writer: RankWriter) -> None:
    seen: list[int] = []
    turn = threading.Event()

    def train() -> None:
        for last in (10, 20, 30):
            write_steps(writer, last - 9, last)
            assert writer.flush()
            assert turn.wait(10)
            turn.clear()
        writer.close()
        write_exit(run_dir, 0, outcome="finished", step=30, reason="all steps done")

    thread = threading.Thread(target=train)
    thread.start()
    for run in open_run(run_dir).follow(poll_seconds=0.01):
        if (run.last_step or 0) > (seen[-1] if seen else 0):
            seen.append(run.last_step or 0)
            turn.set()
    thread.join()
    assert seen == [10, 20, 30]
    assert run.state.word == "finished"


def test_a_poll_without_news_reads_nothing(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path, 1000, segment_bytes=3000))
    opened: list[str] = []
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" and watching else None)
    watching = True
    changed = run.refresh()
    watching = False
    assert not changed
    # One open per stream that exists, however many segments came before; no JSON, which has not changed.
    assert sum("scalars" in path for path in opened) == 1
    assert not any(path.endswith(".json") for path in opened)


# Damage ------------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_is_named_with_its_file_and_place_and_the_rest_is_shown(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 12, rows_per_batch=4)
    path = segment(run_dir)
    data = bytearray(path.read_bytes())
    batch = (len(data) - 8 - data.index(b"\xff\xff\xff\xff", 8)) // 3  # three batches of one size, then the end mark
    start = len(data) - 8 - 2 * batch
    assert data[start : start + 4] == b"\xff\xff\xff\xff"
    data[start + batch - 5] ^= 1
    path.write_bytes(data)
    run = open_run(run_dir)
    assert run.series("train_loss").step.tolist() == [1, 2, 3, 4, 9, 10, 11, 12]
    (problem,) = run.problems
    assert str(path) in problem
    assert f"byte {start}:" in problem
    assert "crc32" in problem
    assert len(run.layers("grad_norm_preclip").step) == 12


def test_a_finished_segment_that_lost_its_end_is_told_from_a_torn_one(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 12, rows_per_batch=4)
    whole = segment(run_dir).read_bytes()
    last = whole.rindex(b"\xff\xff\xff\xff", 0, len(whole) - 8)
    segment(run_dir).write_bytes(whole[:last])
    write_exit(run_dir, 0, outcome="finished", step=12, reason="done")
    run = open_run(run_dir)
    assert run.last_step == 8
    (problem,) = run.problems
    assert f"has {last} bytes; it had {len(whole)} when it was finished" in problem


def test_a_missing_segment_is_said_and_the_ones_behind_it_are_read(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 200, rows_per_batch=10, segment_bytes=2000)
    whole = len(list(fmt.rank_dir(run_dir, 0).glob("scalars-*.arrows")))
    assert whole > 5
    for index in (0, 2, 3):
        segment(run_dir, index=index).unlink()
    run = open_run(run_dir)
    steps = run.series("train_loss").step
    assert 200 - 3 * 40 < len(steps) < 200
    assert (steps[0], steps[-1]) != (1, 199)
    assert steps[-1] == 200
    assert any("scalars-000002.arrows" in problem and "missing, up to number 3" in problem for problem in run.problems)
    assert not run.refresh()


def test_rows_that_fall_back_in_step_are_left_out_and_said(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 10)
    shutil.copy(segment(run_dir), segment(run_dir, index=1))
    run = open_run(run_dir)
    assert run.series("train_loss").step.tolist() == list(range(1, 11))
    assert "10 rows before here repeat or fall back in step" in run.problems[0]


def test_a_torn_line_of_events_is_waited_for(run_dir: Path, writer: RankWriter) -> None:
    writer.event("note", 1, text="whole")
    assert writer.flush()
    path = fmt.rank_dir(run_dir, 0) / "events-000000.jsonl"
    line = b'{"step": 2, "time": 1.0, "kind": "note", "text": "torn"}\n'
    with path.open("ab") as file:
        file.write(line[:20])
    run = open_run(run_dir)
    assert len(run.events()) == 1
    with path.open("ab") as file:
        file.write(line[20:])
    assert run.refresh()
    assert [event.fields["text"] for event in run.events("note")] == ["whole", "torn"]
    assert run.problems == ()


def test_a_bad_line_of_events_is_named_and_the_rest_is_shown(run_dir: Path, writer: RankWriter) -> None:
    writer.event("note", 1, text="first")
    assert writer.flush()
    path = fmt.rank_dir(run_dir, 0) / "events-000000.jsonl"
    with path.open("ab") as file:
        file.write(b'{"half\n[1, 2]\n{"step": "x", "time": 1, "kind": "note", "text": "last"}\n')
    run = open_run(run_dir)
    assert [event.fields["text"] for event in run.events()] == ["first", "last"]
    assert run.events()[-1].step is None
    assert len(run.problems) == 2
    assert all(str(path) in problem for problem in run.problems)


# Attempts and ranks ------------------------------------------------------------------------------------------------


def add_attempt(run_dir: Path, parent: int, resume_step: int, last: int, value: float) -> None:
    number = begin_attempt(run_dir, parent=parent, resume_step=resume_step)
    writer = RankWriter(run_dir, number)
    write_steps(writer, resume_step + 1, last, attempt_value=value)
    writer.close()


def test_a_rewind_takes_over_and_what_it_superseded_stays(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 100)
    run = open_run(run_dir)
    add_attempt(run_dir, parent=0, resume_step=60, last=90, value=1.0)
    assert run.refresh()
    for reading in (run, open_run(run_dir)):
        assert reading.last_step == 90
        loss = reading.series("train_loss")
        assert loss.step.tolist() == list(range(1, 91))
        assert reading.series("attempt_value").step.tolist() == list(range(61, 91))
        (old,) = reading.superseded("train_loss")
        assert old.step.tolist() == list(range(61, 101))
        assert len(reading.series("train_loss", attempt=0)) == 100
        assert reading.layers("grad_norm_preclip").step.tolist() == list(range(1, 91))
        assert len(reading.layers("grad_norm_preclip", attempt=0).step) == 100
        assert len(reading.times()) == 90
        first, second = reading.attempts
        assert (first.last_step, second.parent, second.resume_step, second.last_step) == (100, 0, 60, 90)


def test_a_resumed_run_that_grows_is_not_copied_anew(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 5000)
    number = begin_attempt(run_dir, parent=0, resume_step=4000)
    writer = RankWriter(run_dir, number)
    write_steps(writer, 4001, 4100)
    assert writer.flush()
    run = open_run(run_dir)
    before = run.series("train_loss"), run.layers("grad_norm_preclip"), run.times()
    write_steps(writer, 4101, 4200)
    assert writer.flush()
    assert run.refresh()
    after = run.series("train_loss"), run.layers("grad_norm_preclip"), run.times()
    for old, new in zip(before, after, strict=True):
        assert (len(old.step), len(new.step)) == (4100, 4200)
        assert np.shares_memory(old.value, new.value)
    np.testing.assert_array_equal(after[0].value, 1 / np.arange(1, 4201))
    np.testing.assert_array_equal(after[1].value[:, 0], np.arange(1, 4201))
    assert after[1].present.all()
    writer.close()


def test_a_late_value_is_put_in_its_place_in_a_resumed_run(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 20)
    number = begin_attempt(run_dir, parent=0, resume_step=10)
    writer = RankWriter(run_dir, number)
    write_steps(writer, 11, 15)
    assert writer.flush()
    run = open_run(run_dir)
    assert len(run.series("train_loss")) == 15
    writer.event("log", 12, values={"train_loss": 99.0})
    assert writer.flush()
    run.refresh()
    assert run.series("train_loss").value[11] == 99.0
    assert len(run.series("train_loss")) == 15
    writer.close()


def test_an_attempt_that_has_recorded_nothing_yet_hides_nothing(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 100)
    begin_attempt(run_dir, parent=0, resume_step=60)
    run = open_run(run_dir)
    assert len(run.series("train_loss")) == 100
    assert run.state.word in ("starting", "running")


def test_ranks_are_kept_apart(run_dir: Path) -> None:
    for rank in (0, 1):
        writer = RankWriter(run_dir, 0, rank)
        for step in range(1, 6):
            writer.scalars(step, START, {"local": float(rank * 100 + step)})
        writer.event("note", 1, text=f"rank {rank}")
        writer.close()
    run = open_run(run_dir)
    assert run.series("local").value.tolist() == [1, 2, 3, 4, 5]
    assert run.series("local", rank=1).value.tolist() == [101, 102, 103, 104, 105]
    assert sorted(event.rank for event in run.events()) == [0, 1]
    assert len(run.series("local", rank=7)) == 0


def test_an_attempt_that_begins_later_is_followed(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 10)
    run = open_run(run_dir)
    for number in range(1, 5):
        add_attempt(run_dir, parent=number - 1, resume_step=10 * number, last=10 * number + 10, value=float(number))
        assert run.refresh()
        assert run.series("train_loss").step.tolist() == list(range(1, 10 * number + 11))


# Other files -------------------------------------------------------------------------------------------------------


def test_checkpoints_tell_complete_from_cut_short(run_dir: Path) -> None:
    for step, complete in ((20, False), (10, True)):
        folder = run_dir / "checkpoints" / f"{step:08d}"
        folder.mkdir()
        if complete:
            (folder / "COMMIT.json").write_text("{}")
    (run_dir / "checkpoints" / "tmp-30").mkdir()
    found = open_run(run_dir).checkpoints()
    assert [(checkpoint.step, checkpoint.complete) for checkpoint in found] == [(10, True), (20, False)]


def test_the_log_tail_is_the_end_of_the_latest_log(run_dir: Path, writer: RankWriter) -> None:
    (fmt.rank_dir(run_dir, 0) / "log.txt").write_bytes(b"".join(b"line %d\n" % i for i in range(1000)) + b"\xff end")
    run = open_run(run_dir)
    assert run.log_tail(3) == ["line 998", "line 999", "\\xff end"]
    assert run.log_tail(0) == []


def test_a_name_given_later_is_shown(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 1)
    run = open_run(run_dir)
    assert run.name == "written"
    fmt.atomic_write_json(run_dir / "meta.json", {"name": "better", "tags": ["baseline"], "notes": ""})
    assert run.refresh()
    assert (run.name, run.meta["tags"]) == ("better", ["baseline"])


def test_reading_needs_neither_pandas_nor_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from monitor.runfile import open_run; run = open_run(sys.argv[1]);"
        "run.series('lr'), run.layers('grad_norm_preclip'), run.events();"
        "assert not {'torch', 'pandas', 'streamlit'} & set(sys.modules)"
    )
    run_dir = write_run(tmp_path, 3)
    subprocess.run([sys.executable, "-c", code, str(run_dir)], check=True, cwd=Path(__file__).parents[3])


def test_a_run_given_by_a_link_or_a_relative_path_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = write_run(tmp_path, 3)
    (tmp_path / "link").symlink_to(run_dir)
    monkeypatch.chdir(tmp_path)
    assert open_run("link").id == run_dir.name
    assert isinstance(open_run(os.path.relpath(run_dir)), Run)


def count_files(path: Path) -> Any:
    return {str(file): file.stat().st_mtime_ns for file in path.rglob("*")}


def test_reading_changes_nothing_in_the_directory(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 10)
    before = count_files(run_dir)
    run = open_run(run_dir)
    run.refresh(), run.frame(), run.system(), run.checkpoints(), run.log_tail()
    assert count_files(run_dir) == before
