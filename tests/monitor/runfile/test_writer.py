"""What the writer promises: nothing acknowledged is lost, nothing is torn, nothing reaches the training loop."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from monitor.errors import MonitorWarning, RunError
from monitor.guard import forget_reports
from monitor.runfile import format as fmt
from monitor.runfile.framing import END_OF_STREAM, parse_message
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.conftest import LAYERS, SHAPES, START, write_steps
from tests.waiting import until


def segments(run_dir: Path, stream: str, attempt: int = 0) -> list[str]:
    return sorted(path.name for path in fmt.rank_dir(run_dir, attempt).glob(f"{stream}-*.arrows"))


def heartbeat(run_dir: Path) -> dict[str, object]:
    return fmt.load_json(fmt.rank_dir(run_dir, 0) / fmt.HEARTBEAT_FILE)


# Making runs and attempts ------------------------------------------------------------------------------------------


def test_a_run_has_its_record_and_folders(tmp_path: Path) -> None:
    run = create_run(tmp_path, name="first try!", task="gpt", config={"lr": math.inf}, now=lambda: START)
    record = json.loads((run / "run.json").read_text())
    assert record["format"] == {"major": 1, "minor": 0}
    assert (record["id"], record["name"], record["task"]) == (run.name, "first try!", "gpt")
    assert record["config"] == {"lr": "Infinity"}
    assert (run / "attempts").is_dir()
    assert (run / "checkpoints").is_dir()


def test_a_taken_run_id_is_refused(tmp_path: Path) -> None:
    create_run(tmp_path, run_id="one")
    with pytest.raises(RunError, match="exists already"):
        create_run(tmp_path, run_id="one")


@pytest.mark.parametrize("run_id", ["", "..", ".hidden", "a/b", "a b", "é", "x" * 129, "a\n"])
def test_a_run_id_that_is_no_plain_name_is_refused(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(RunError, match="cannot name a directory"):
        create_run(tmp_path, run_id=run_id)
    assert list(tmp_path.iterdir()) == []


def test_attempts_are_numbered_and_begun_once(run_dir: Path) -> None:
    assert begin_attempt(run_dir, parent=0, resume_step=7) == 1
    with pytest.raises(RunError, match="begun already"):
        begin_attempt(run_dir, number=1)
    (run_dir / "attempts" / "0002").mkdir()  # a launcher made it
    assert begin_attempt(run_dir, number=2) == 2
    assert begin_attempt(run_dir) == 3


def test_many_processes_get_different_attempt_numbers(run_dir: Path) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(begin_attempt(run_dir))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 17))


def test_the_first_exit_record_stands(run_dir: Path) -> None:
    assert write_exit(run_dir, 0, outcome="crashed", step=3, reason="killed", signal=9)
    assert not write_exit(run_dir, 0, outcome="finished", step=5, reason="done")
    assert json.loads((fmt.attempt_dir(run_dir, 0) / "exit.json").read_text())["outcome"] == "crashed"


def test_an_unknown_outcome_is_refused_with_the_known_ones(run_dir: Path) -> None:
    with pytest.raises(RunError, match=r"'ok' is not known\. Accepted: finished, stopped, crashed"):
        write_exit(run_dir, 0, outcome="ok", step=1, reason="")


def test_a_second_writer_of_the_same_rank_is_refused(run_dir: Path, writer: RankWriter) -> None:
    with pytest.raises(RunError, match="begin a new attempt"):
        RankWriter(run_dir, 0)


def test_a_writer_needs_an_attempt(run_dir: Path) -> None:
    with pytest.raises(RunError, match="begin_attempt"):
        RankWriter(run_dir, 5)


# Rows --------------------------------------------------------------------------------------------------------------


def test_nan_infinity_and_absence_are_three_things(run_dir: Path, writer: RankWriter) -> None:
    writer.scalars(1, START, {"a": math.nan, "b": 1})
    writer.scalars(2, START, {"a": math.inf, "b": None})  # type: ignore[dict-item]
    writer.scalars(3, START, {"b": np.float32(0.5)})
    writer.scalars(4, START, {"a": -math.inf})
    assert writer.flush()
    run = open_run(run_dir)
    assert run.series("a").step.tolist() == [1, 2, 4]
    np.testing.assert_array_equal(run.series("a").value, [math.nan, math.inf, -math.inf])
    assert run.series("b").step.tolist() == [1, 3]
    assert run.series("b").value.tolist() == [1.0, 0.5]


def test_a_new_scalar_begins_a_new_segment(run_dir: Path, writer: RankWriter) -> None:
    write_steps(writer, 1, 10)
    assert writer.flush()
    write_steps(writer, 11, 20, val_loss=2.0)
    assert writer.flush()
    write_steps(writer, 21, 30)  # a name that stays away needs no new one
    assert writer.flush()
    assert segments(run_dir, "scalars") == ["scalars-000000.arrows", "scalars-000001.arrows"]
    run = open_run(run_dir)
    assert run.series("val_loss").step.tolist() == list(range(11, 21))
    assert len(run.series("train_loss")) == 30


def test_another_set_of_layers_begins_a_new_segment(run_dir: Path, writer: RankWriter) -> None:
    write_steps(writer, 1, 3)
    writer.define_layers(["block.0.bias", "new.weight"], [(4,), (2, 2)])
    writer.layers(4, START, {"grad_norm_preclip": np.array([40, 41])})
    assert writer.flush()
    assert len(segments(run_dir, "layers")) == 2
    matrix = open_run(run_dir).layers("grad_norm_preclip")
    assert matrix.names == (*LAYERS, "new.weight")
    assert matrix.step.tolist() == [1, 2, 3, 4]
    assert matrix.present.tolist() == [[True, True, True, False]] * 3 + [[False, False, True, True]]
    assert matrix.value[3, 2:].tolist() == [40, 41]


def test_a_segment_that_is_full_is_sealed_and_followed(run_dir: Path) -> None:
    writer = RankWriter(run_dir, 0, rows_per_batch=10, segment_bytes=2000)
    write_steps(writer, 1, 200)
    writer.close()
    names = segments(run_dir, "scalars")
    assert len(names) > 2
    seals = [json.loads((fmt.rank_dir(run_dir, 0) / f"{name}.seal").read_text()) for name in names]
    assert sum(seal["rows"] for seal in seals) == 200
    assert seals[0]["first_step"] == 1
    assert seals[-1]["last_step"] == 200
    assert all(after["first_step"] == before["last_step"] + 1 for before, after in itertools.pairwise(seals))
    assert open_run(run_dir).series("train_loss").step.tolist() == list(range(1, 201))


@pytest.mark.parametrize("step", [5, 4, 0])
def test_a_step_that_does_not_increase_is_said_and_not_written(run_dir: Path, writer: RankWriter, step: int) -> None:
    writer.scalars(5, START, {"a": 1.0})
    with pytest.warns(MonitorWarning, match=f"step {step} after 5; steps must increase"):
        writer.scalars(step, START, {"a": 2.0})
    writer.scalars(step, START, {"a": 3.0})  # said once
    writer.scalars(6, START, {"a": 4.0})
    assert writer.flush()
    run = open_run(run_dir)
    assert run.series("a").value.tolist() == [1.0, 4.0]
    assert writer.rows_dropped == 2
    assert any("steps must increase" in text for text in heartbeat(run_dir)["warnings"])  # type: ignore[attr-defined]


def test_a_value_that_is_no_number_is_left_out_and_said(run_dir: Path, writer: RankWriter) -> None:
    writer.scalars(1, START, {"a": "blue", "b": 1.0, "c": "NaN"})  # type: ignore[dict-item]
    assert writer.flush()
    run = open_run(run_dir)
    assert run.names == ("b", "c")
    assert math.isnan(run.series("c").value[0])
    assert any("not numbers" in text for text in heartbeat(run_dir)["warnings"])  # type: ignore[attr-defined]


def test_the_names_of_fixed_columns_cannot_be_taken(run_dir: Path, writer: RankWriter) -> None:
    writer.scalars(1, START, {"step": 9.0, "time": 8.0, "a": 1.0})
    assert writer.flush()
    assert open_run(run_dir).names == ("a",)


@pytest.mark.parametrize("name", ["", "x" * 600, "\udc80", "a\0b", 7])
def test_a_name_that_cannot_be_one_is_left_out_and_said(run_dir: Path, writer: RankWriter, name: object) -> None:
    writer.scalars(1, START, {name: 9.0, "ä/b c": 1.0})  # type: ignore[dict-item]
    assert writer.flush()
    assert open_run(run_dir).names == ("ä/b c",)
    assert any("cannot name a value" in text for text in heartbeat(run_dir)["warnings"])  # type: ignore[attr-defined]


def test_a_row_that_cannot_be_written_is_lost_alone(run_dir: Path, writer: RankWriter) -> None:
    for step, kind in ((1, "line"), (2, object()), (3, "line")):
        writer.landscape(step, START, kind=kind, direction="x", radius=1.0, coords=[0], loss=[step], baseline=1)  # type: ignore[arg-type]
        assert writer.flush()
    assert [sample.step for sample in open_run(run_dir).landscape()] == [1, 3]
    assert writer.rows_dropped == 1
    assert writer.error is None
    assert any("rows up to step 2 were left out" in text for text in heartbeat(run_dir)["warnings"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", [-1, 2**53, 2**70])
def test_a_step_that_a_float_cannot_tell_from_others_is_said_and_not_written(
    run_dir: Path, writer: RankWriter, step: int
) -> None:
    with pytest.warns(MonitorWarning, match=rf"step {step}; 0 to 2\*\*53 - 1 are accepted"):
        writer.scalars(step, START, {"a": 2.0})
    writer.scalars(2**53 - 2, START, {"a": 3.0})
    assert writer.flush()
    assert open_run(run_dir).series("a").step.tolist() == [2**53 - 2]
    assert writer.rows_dropped == 1


def test_a_signal_handler_may_write(run_dir: Path, writer: RankWriter) -> None:
    numbers = itertools.count()

    def note(*_: object) -> None:
        writer.event("note", next(numbers))

    before = signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for step in range(1, 20_001):
            writer.scalars(step, START, {"a": 1.0})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert writer.flush()
    run = open_run(run_dir)
    noted = sorted(event.step or 0 for event in run.events("note"))  # handlers may interrupt one another
    assert noted == list(range(next(numbers)))
    assert len(noted) > 0
    assert len(run.series("a")) == 20_000


def test_layers_of_the_wrong_length_are_said_and_left_out(run_dir: Path, writer: RankWriter) -> None:
    writer.define_layers(LAYERS, SHAPES)
    with pytest.warns(MonitorWarning, match=r"shape \(2,\); expected \(3,\)"):
        writer.layers(1, START, {"grad_norm_preclip": np.ones(2)})


def test_layers_before_their_names_are_said(writer: RankWriter) -> None:
    with pytest.warns(MonitorWarning, match="before define_layers"):
        writer.layers(1, START, {"grad_norm_preclip": np.ones(2)})


def test_the_buffer_given_may_be_used_again(run_dir: Path, writer: RankWriter) -> None:
    writer.define_layers(LAYERS, SHAPES)
    buffer = np.ones(3, np.float32)
    writer.layers(1, START, {"grad_norm_preclip": buffer})
    buffer[:] = 99
    values = {"a": 1.0}
    writer.scalars(1, START, values)
    values["a"] = 99.0
    assert writer.flush()
    run = open_run(run_dir)
    assert run.layers("grad_norm_preclip").value.tolist() == [[1, 1, 1]]
    assert run.series("a").value.tolist() == [1.0]


def test_a_landscape_sample_comes_back(run_dir: Path, writer: RankWriter) -> None:
    for direction in ("update", "random"):
        writer.landscape(
            8, START, kind="line", direction=direction, radius=0.1, coords=[-1, 0, 1], loss=[2, math.nan, 3], baseline=2
        )
    assert writer.flush()
    first, second = open_run(run_dir).landscape()
    assert (first.step, first.kind, first.direction, second.direction) == (8, "line", "update", "random")
    np.testing.assert_array_equal(first.loss, [2, math.nan, 3])


def test_rows_become_visible_by_time_alone(run_dir: Path, writer: RankWriter) -> None:
    writer.scalars(1, START, {"a": 1.0})
    run = open_run(run_dir)
    until(lambda: run.refresh() and len(run.series("a")) == 1, "the row")


def test_events_keep_their_order_and_their_own_fields(run_dir: Path, writer: RankWriter) -> None:
    for index in range(50):
        writer.event("note", index, text=f"line\n{index}", kind_of="x", loss=math.inf)
    assert writer.flush()
    events = open_run(run_dir).events("note")
    assert [event.step for event in events] == list(range(50))
    assert events[7].fields == {"text": "line\n7", "kind_of": "x", "loss": "Infinity"}


def test_the_heartbeat_tells_what_was_given_and_what_the_writer_knows(run_dir: Path, writer: RankWriter) -> None:
    writer.heartbeat(state="training", step_time_s=0.25, planned_steps=100)
    write_steps(writer, 1, 20)
    assert writer.flush()
    beat = heartbeat(run_dir)
    assert (beat["step"], beat["state"], beat["step_time_s"], beat["pid"]) == (20, "training", 0.25, os.getpid())
    assert beat["summary"]["train_loss"]["best"] == pytest.approx(1 / 20)  # type: ignore[index]
    assert beat["bytes_per_step"] > 0  # type: ignore[operator]


# Limits ------------------------------------------------------------------------------------------------------------


def test_a_quota_stops_the_bulk_first_and_says_so(run_dir: Path) -> None:
    writer = RankWriter(run_dir, 0, rows_per_batch=10, quota_bytes=40_000)
    for step in range(1, 601, 20):
        write_steps(writer, step, step + 19)
        assert writer.flush()
    writer.close()
    run = open_run(run_dir)
    assert writer.bytes_written < 45_000
    assert writer.rows_dropped > 0
    assert len(run.layers("grad_norm_preclip").step) < len(run.series("train_loss")) < 600
    texts = [event.fields["text"] for event in run.events("warning")]
    assert any("quota of 40000 bytes: layers" in text for text in texts)
    assert any("quota of 40000 bytes: scalars" in text for text in texts)


def test_more_rows_than_the_queue_holds_are_counted_not_waited_for(run_dir: Path) -> None:
    writer = RankWriter(run_dir, 0, queue_rows=100, rows_per_batch=10**6, seconds_per_batch=1000.0)
    for step in range(1, 501):
        writer.scalars(step, START, {"a": 1.0})
    writer.close()
    assert writer.rows_dropped == 400
    assert len(open_run(run_dir).series("a")) == 100


def test_an_error_of_the_thread_is_one_warning_in_the_caller(run_dir: Path) -> None:
    forget_reports()
    writer = RankWriter(run_dir, 0)
    writer.scalars(1, START, {"a": 1.0})
    assert writer.flush()
    segment = writer._streams["scalars"].segment
    assert segment is not None
    os.close(segment.fd)
    segment.fd = 1 << 20  # no descriptor has such a number
    writer.scalars(2, START, {"a": 1.0})
    until(lambda: writer.error is not None, "the error")
    with pytest.warns(MonitorWarning, match="no longer recorded"):
        writer.scalars(3, START, {"a": 1.0})
    writer.scalars(4, START, {"a": 1.0})
    assert not writer.flush()
    assert isinstance(writer.error, OSError)
    assert writer.error.errno == errno.EBADF
    writer.close()
    assert open_run(run_dir).series("a").step.tolist() == [1]


def test_a_file_that_lies_where_a_segment_would_begin_is_never_written_to(run_dir: Path) -> None:
    """O_EXCL: whoever made it, it is not ours. The recording ends with one warning, the training goes on."""
    forget_reports()
    folder = fmt.rank_dir(run_dir, 0)
    folder.mkdir()
    for name in ("scalars-000000.arrows", "events-000000.jsonl"):
        (folder / name).write_bytes(b"somebody else's")
    writer = RankWriter(run_dir, 0)
    writer.scalars(1, START, {"a": 1.0})
    until(lambda: writer.error is not None, "the error")
    with pytest.warns(MonitorWarning, match="no longer recorded: FileExistsError") as said:
        for step in range(2, 50):
            writer.scalars(step, START, {"a": 1.0})
            writer.event("note", step)
            writer.heartbeat(step=step)
    assert len(said) == 1
    assert not writer.flush()
    writer.close()
    assert (folder / "scalars-000000.arrows").read_bytes() == b"somebody else's"
    assert (folder / "events-000000.jsonl").read_bytes() == b"somebody else's"
    assert writer.rows_dropped >= 2 * 48


def test_what_is_written_bears_the_time_of_the_clock_that_was_given(run_dir: Path) -> None:
    writer = RankWriter(run_dir, 0, clock=lambda: 123.5)
    writer.event("note", 1)
    writer.scalars(1, START, {"a": 1.0})
    assert writer.flush()
    beat = heartbeat(run_dir)
    assert (beat["time"], beat["step_at"]) == (123.5, 123.5)
    assert open_run(run_dir).events()[0].time == 123.5
    writer.close()


def test_batches_and_heartbeats_are_due_by_the_monotonic_clock_that_was_given(run_dir: Path) -> None:
    asked = itertools.count()
    moment = [0.0]

    def clock() -> float:
        next(asked)
        return moment[0]

    writer = RankWriter(run_dir, 0, seconds_per_batch=0.01, monotonic=clock)
    before = heartbeat(run_dir)
    writer.scalars(1, START, {"a": 1.0})
    seen = next(asked)
    until(lambda: next(asked) > 2 * seen + 20, "more rows")
    assert segments(run_dir, "scalars") == []
    assert heartbeat(run_dir) == before
    moment[0] = 10.0
    run = open_run(run_dir)
    until(lambda: run.refresh() and len(run.series("a")) == 1, "the row")
    until(lambda: heartbeat(run_dir) != before, "a heartbeat")
    writer.close()


@pytest.mark.parametrize("value", [[], {}], ids=["list", "dict"])
def test_a_value_that_holds_itself_or_is_very_deep_is_cut_off(run_dir: Path, writer: RankWriter, value: object) -> None:
    deep = inner = type(value)()
    for _ in range(5000):
        below = type(value)()
        inner.append(below) if isinstance(inner, list) else inner.update(a=below)
        inner = below
    circle = type(value)()
    circle.append(circle) if isinstance(circle, list) else circle.update(a=circle)
    writer.event("note", 1, deep=deep, circle=circle)
    assert writer.flush()
    (event,) = open_run(run_dir).events("note")
    assert "nested more than 100 deep" in json.dumps(event.fields["deep"])
    assert "nested more than 100 deep" in json.dumps(event.fields["circle"])
    create_run(run_dir.parent, config={"circle": circle})


# Ends --------------------------------------------------------------------------------------------------------------


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[3]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_closing_twice_and_writing_after_is_harmless(run_dir: Path, writer: RankWriter) -> None:
    writer.scalars(1, START, {"a": 1.0})
    writer.close()
    writer.close()
    writer.scalars(2, START, {"a": 1.0})
    writer.event("note")
    assert open_run(run_dir).series("a").step.tolist() == [1]
    assert writer.rows_dropped == 2


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(3)", "raise ValueError('boom')"])
def test_leaving_the_interpreter_writes_and_seals(run_dir: Path, ending: str) -> None:
    done = run_python(
        f"""
        import sys
        from monitor.runfile.writer import RankWriter
        writer = RankWriter(sys.argv[1], 0)
        for step in range(1, 11):
            writer.scalars(step, float(step), {{"a": step}})
        writer.landscape(10, 1.0, kind="line", direction="x", radius=1, coords=[0], loss=[1], baseline=1)
        writer.event("note", 10, text="last words")
        assert writer.flush() and "pandas" not in sys.modules  # half a second, in somebody's training process
        writer.scalars(11, 11.0, {{"a": 11, "new": 1.0}})
        {ending}
        """,
        run_dir,
    )
    assert "Warning" not in done.stderr
    assert "AssertionError" not in done.stderr
    run = open_run(run_dir)
    assert run.series("a").step.tolist() == list(range(1, 12)), done.stderr
    assert run.events("note")[0].fields["text"] == "last words"
    assert (fmt.rank_dir(run_dir, 0) / "scalars-000000.arrows.seal").exists()


def test_a_fork_does_not_write_twice(run_dir: Path) -> None:
    done = run_python(
        """
        import os, sys
        from monitor.runfile.writer import RankWriter
        writer = RankWriter(sys.argv[1], 0)
        for step in range(1, 11):
            writer.scalars(step, float(step), {"a": step})  # still queued when the process forks
        pid = os.fork()
        if pid == 0:
            writer.scalars(11, 11.0, {"a": -1})
            writer.event("note", text="child")
            assert not writer.flush(timeout=0.2)
            writer.close()
            sys.exit(0)  # with atexit, unlike os._exit
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for step in range(11, 21):
            writer.scalars(step, float(step), {"a": step})
        writer.event("note", text="parent")
        """,
        run_dir,
    )
    assert done.returncode == 0, done.stderr
    run = open_run(run_dir)
    assert run.series("a").value.tolist() == list(range(1, 21))
    assert [event.fields["text"] for event in run.events("note")] == ["parent"]
    assert run.problems == ()


def test_a_fork_while_another_thread_holds_the_lock_does_not_hang_the_child(run_dir: Path) -> None:
    done = run_python(
        """
        import os, signal, sys, threading
        from pathlib import Path
        from monitor.runfile.writer import RankWriter
        writer = RankWriter(sys.argv[1], 0)
        writer.scalars(1, 1.0, {"a": 1})
        assert writer.flush()
        held, let_go = threading.Event(), threading.Event()

        def hold():
            with writer._lock:
                held.set()
                let_go.wait()

        threading.Thread(target=hold).start()
        held.wait()
        before = len(os.listdir("/proc/self/fd"))
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            assert len(os.listdir("/proc/self/fd")) < before  # the parent's segments are not kept open here
            writer.scalars(2, 2.0, {"a": -1})
            writer.event("note", text="child")
            writer.heartbeat(step=5)
            writer.close()
            sys.exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        let_go.set()
        assert status == 0, status
        writer.scalars(2, 2.0, {"a": 2})
        """,
        run_dir,
    )
    assert done.returncode == 0, done.stderr
    run = open_run(run_dir)
    assert run.series("a").value.tolist() == [1, 2]
    assert run.events("note") == []


def test_every_batch_goes_to_the_file_in_one_write(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader in mid-write then meets half a batch only on a full disk or a network file system."""
    blocks: list[bytes] = []
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        blocks.append(bytes(data))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    writer = RankWriter(run_dir, 0, rows_per_batch=10, segment_bytes=3000)
    write_steps(writer, 1, 100)
    writer.close()
    written = [fmt.rank_dir(run_dir, 0) / name for name in segments(run_dir, "scalars") + segments(run_dir, "layers")]
    assert sum(path.stat().st_size for path in written) == sum(map(len, blocks))
    for block in blocks:
        if block != END_OF_STREAM:
            message = parse_message(block, 0, fmt.MAX_MESSAGE_METADATA)
            assert message is not None
            assert message.end == len(block)
    rows = [parse_message(block, 0, fmt.MAX_MESSAGE_METADATA) for block in blocks]
    assert sum(message.rows for message in rows if message) == 200


def test_threads_may_write_at_once(run_dir: Path, writer: RankWriter) -> None:
    def note(name: str) -> None:
        chance = random.Random(name)
        for index in range(200):
            writer.event("note", index, text=name)
            writer.system(START + index, {name: chance.random()})

    threads = [threading.Thread(target=note, args=(f"t{index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    write_steps(writer, 1, 200)
    for thread in threads:
        thread.join()
    assert writer.flush()
    run = open_run(run_dir)
    assert len(run.series("train_loss")) == 200
    assert len(run.events("note")) == 800
    assert run.system()[["t0", "t1", "t2", "t3"]].count().tolist() == [200] * 4


def test_a_statistic_beyond_float32_is_an_infinity_and_no_warning(run_dir: Path, writer: RankWriter) -> None:
    writer.define_layers(LAYERS, SHAPES)
    writer.layers(1, START, {"grad_norm_preclip": np.array([1e308, -1e308, 1.0])})
    assert writer.flush()
    assert open_run(run_dir).layers("grad_norm_preclip").value.tolist() == [[math.inf, -math.inf, 1.0]]
