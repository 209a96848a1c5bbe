"""Directories made to do harm: one message each, bounded time and memory, nothing followed, nothing executed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import resource
import shutil
import socket
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from monitor.errors import RunError
from monitor.runfile import attempt, framing, reader, store
from monitor.runfile import format as fmt
from monitor.runfile.compact import compact_run
from monitor.runfile.compacted import file_blocks
from monitor.runfile.export import export_run
from monitor.runfile.levels import layer_window, window
from monitor.runfile.reader import MAX_PROBLEMS, open_run
from monitor.runfile.store import list_runs, run_state
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.conftest import write_run
from tests.monitor.runfile.fuzz import touch_everything
from tests.monitor.runfile.known import known_steps, write_known


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "runs", 30, rows_per_batch=10)
    write_exit(run, 0, outcome="finished", step=30, reason="done")
    return run


def rank(run_dir: Path) -> Path:
    return fmt.rank_dir(run_dir, 0)


def test_links_out_of_the_directory_are_not_followed(run_dir: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "elsewhere", 500)
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"name": "secret", "outcome": "finished", "reason": "secret", "tags": ["secret"]}))
    (rank(run_dir) / "scalars-000000.arrows").unlink()
    (rank(run_dir) / "scalars-000000.arrows").symlink_to(rank(other) / "scalars-000000.arrows")
    (rank(run_dir) / "log.txt").symlink_to(secret)
    (run_dir / "meta.json").symlink_to(secret)
    (run_dir / "attempts" / "0000" / "exit.json").unlink()
    (run_dir / "attempts" / "0000" / "exit.json").symlink_to(secret)
    (run_dir / "attempts" / "0001").symlink_to(other / "attempts" / "0000")
    (run_dir / "attempts" / "0000" / "rank-00001").symlink_to(rank(other))
    (run_dir / "checkpoints" / "00000001").symlink_to(other)
    run = open_run(run_dir)
    touch_everything(run)
    assert len(run.series("train_loss")) == 0
    assert (run.name, run.meta, run.log_tail(), run.checkpoints()) == ("written", {}, [], [])
    assert len(run.attempts) == 1
    assert len(run.series("train_loss", rank=1)) == 0
    assert "secret" not in run.state.reason
    assert sum("symbolic link" in problem for problem in run.problems) == 3
    assert "secret" not in repr(list_runs(run_dir.parent))


@pytest.mark.parametrize("place", ["attempts", "attempts/0000", "attempts/0000/rank-00000", "checkpoints"])
def test_a_folder_that_is_a_link_is_not_entered(run_dir: Path, tmp_path: Path, place: str) -> None:
    elsewhere = tmp_path / "moved"
    (rank(run_dir) / "log.txt").write_text("secret")
    (run_dir / "checkpoints" / "00000001").mkdir()
    (run_dir / place).rename(elsewhere)
    (run_dir / place).symlink_to(elsewhere)
    run = open_run(run_dir)
    touch_everything(run)
    if place == "checkpoints":
        assert run.checkpoints() == []
    else:
        assert (run.names, run.log_tail()) == ((), [])
        assert list_runs(run_dir.parent)[0].last_loss is None


def test_names_that_lead_out_or_are_no_numbers_are_left_alone(run_dir: Path) -> None:
    for name in ("..0", "0000 ", "٣", "-1", "1e3", "99999999999999999999", "0x1"):
        (run_dir / "attempts" / name).mkdir()
    (run_dir / "attempts" / "0000" / "rank-..").mkdir()
    (run_dir / "attempts" / "0000" / "rank-99999999999").mkdir()
    run = open_run(run_dir)
    assert [attempt.number for attempt in run.attempts] == [0]
    touch_everything(run)


def test_empty_files_are_nothing_to_worry_about(run_dir: Path) -> None:
    for path in run_dir.rglob("*"):
        if path.is_file() and path.name != "run.json":
            path.write_bytes(b"")
    run = open_run(run_dir)
    touch_everything(run)
    assert run.names == ()
    assert list_runs(run_dir.parent)[0].problem is None


WRONG: list[Any] = [None, True, -1, 10**30, "NaN", "../..", [[]], {"a": {}}]


def test_wrong_types_in_json_are_taken_for_absent(run_dir: Path) -> None:
    originals = {path: json.loads(path.read_text()) for path in run_dir.rglob("*.json")}
    for path, record in originals.items():
        for key in record:
            for wrong in WRONG:
                path.write_text(json.dumps({**record, key: wrong}))
                try:
                    run = open_run(run_dir)
                except RunError as error:
                    assert path.name == "run.json" and "format" in str(error)
                    continue
                touch_everything(run)
                run_state(run_dir)
                list_runs(run_dir.parent)
        path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "content",
    [b"[" * 200_000, b"\xff\xfe", b"[]", b"1" * 10_000, b'{"format": NaN}', b"\0" * 100, b'"' + b"x" * 1000 + b'"'],
    ids=["deep", "not utf-8", "list", "long integer", "bare NaN", "zeros", "text"],
)
def test_json_that_is_no_object_is_one_message(run_dir: Path, content: bytes) -> None:
    (run_dir / "attempts" / "0000" / "attempt.json").write_bytes(content)
    with (rank(run_dir) / "events-000000.jsonl").open("ab") as file:
        file.write(content + b"\n")
    run = open_run(run_dir)
    touch_everything(run)
    assert len(run.problems) == 2 or content.startswith(b'{"format"')
    (run_dir / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=r"run\.json"):
        open_run(run_dir)


def test_a_huge_json_file_is_not_read(run_dir: Path) -> None:
    with (run_dir / "meta.json").open("wb") as file:
        file.truncate(10 << 30)
    run = open_run(run_dir)
    assert f"at most {fmt.MAX_JSON_BYTES}" in run.problems[0]


def test_a_pipe_in_place_of_a_file_is_not_waited_for(run_dir: Path) -> None:
    for path in (run_dir / "meta.json", rank(run_dir) / "system-000000.arrows", rank(run_dir) / "log.txt"):
        os.mkfifo(path)
    run = open_run(run_dir)
    touch_everything(run)
    assert all("not a regular file" in problem for problem in run.problems)
    assert len(run.problems) == 2


def test_a_pickle_in_place_of_a_segment_is_not_loaded(run_dir: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    for name in ("system-000000.arrows", "log.txt"):
        (rank(run_dir) / name).write_bytes(pickle.dumps(Bomb()))
    (run_dir / "meta.json").write_bytes(pickle.dumps(Bomb()))
    run = open_run(run_dir)
    touch_everything(run)
    assert not (tmp_path / "exploded").exists()
    assert len(run.series("train_loss")) == 30


def test_a_segment_of_another_schema_is_refused_with_what_is_expected(run_dir: Path) -> None:
    schemas = {
        "scalars": pa.schema([("step", pa.int64()), ("time", pa.float64()), ("a", pa.string())]),
        "layers": pa.schema([("step", pa.int64()), ("time", pa.float64()), ("a", pa.list_(pa.float64()))]),
        "system": pa.schema([("step", pa.int64())]),
        "landscape": pa.schema([("step", pa.null())]),
    }
    for stream, schema in schemas.items():
        (rank(run_dir) / fmt.segment_name(stream, 0)).write_bytes(schema.serialize().to_pybytes())
    run = open_run(run_dir)
    touch_everything(run)
    assert len(run.problems) == 4
    assert any("column 'a' is string; float64 is expected" in problem for problem in run.problems)
    assert any("list<float32> is expected" in problem for problem in run.problems)
    assert any("column 'time' is missing" in problem for problem in run.problems)


def limited(run_dir: Path) -> subprocess.CompletedProcess[str]:
    """Open the run in a process that may have 1.5 GB of addresses and 20 s of processor time."""
    code = (
        "import sys; from monitor.runfile import open_run; run = open_run(sys.argv[1]);"
        "from monitor.runfile.levels import window, layer_window;"
        "[window(run, n) for n in run.names]; [layer_window(run, s) for s in run.layer_stats];"
        "[run.series(n) for n in run.names]; [run.layers(s) for s in run.layer_stats]; run.landscape(); run.events();"
        "print(run.last_step, len(run.problems))"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))

    return subprocess.run(
        [sys.executable, "-c", code, str(run_dir)],
        preexec_fn=limit,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_huge_declared_sizes_cost_no_memory(run_dir: Path) -> None:
    path = rank(run_dir) / "scalars-000000.arrows"
    data = path.read_bytes()
    huge = struct.pack("<q", 1 << 29)
    at = data.index(b"\xff\xff\xff\xff", 8)
    for position in range(at, at + 400, 4):  # every number of the first batch's metadata, one file each
        changed = data[:position] + huge + data[position + 8 :]
        (rank(run_dir) / fmt.segment_name("scalars", position // 4)).write_bytes(changed)
    layers = pa.schema([fmt._STEP, fmt._TIME, pa.field("s", pa.list_(pa.float32(), 2**31 - 1))])
    (rank(run_dir) / "layers-000000.arrows").write_bytes(layers.serialize().to_pybytes())
    for index in range(1, at // 4):  # no gap in the numbers
        (rank(run_dir) / fmt.segment_name("scalars", index)).write_bytes(data)
    done = limited(run_dir)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("30 ")


def test_sparse_terabytes_are_read_in_pieces_or_not_at_all(run_dir: Path) -> None:
    for name in ("scalars-000001.arrows", "events-000001.jsonl"):
        with (rank(run_dir) / name).open("wb") as file:
            file.truncate(1 << 40)
    done = limited(run_dir)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("30 ")


def test_many_problems_are_counted_and_not_all_kept(run_dir: Path) -> None:
    with (rank(run_dir) / "events-000000.jsonl").open("ab") as file:
        file.write(b"{\n" * 5000)
    run = open_run(run_dir)
    assert len(run.problems) == MAX_PROBLEMS + 1
    assert run.problems[-1] == f"{5000 - MAX_PROBLEMS} further problems"


def test_folders_with_thousands_of_strange_files_still_open(run_dir: Path) -> None:
    for folder in (run_dir, run_dir / "attempts", run_dir / "attempts" / "0000", rank(run_dir)):
        for index in range(1_000):
            os.close(os.open(folder / f"rank-x{index}", os.O_CREAT | os.O_WRONLY))
    run = open_run(run_dir)
    touch_everything(run)
    assert run.last_step == 30


def test_two_columns_of_one_name_are_refused(run_dir: Path) -> None:
    schema = pa.schema([fmt._STEP, fmt._TIME, ("a", pa.float64()), ("a", pa.float64())])
    (rank(run_dir) / "scalars-000001.arrows").write_bytes(schema.serialize().to_pybytes())
    run = open_run(run_dir)
    touch_everything(run)
    (problem,) = run.problems
    assert "two columns have the same name" in problem
    assert len(run.series("train_loss")) == 30


def test_steps_that_overflow_are_left_out_and_said(run_dir: Path) -> None:
    schema = fmt.scalars_schema(["train_loss"])
    head = framing.encode_schema(schema)
    steps = pa.array([40, 2**53 - 1, 2**53, 2**63 - 1])
    batch = pa.record_batch([steps, pa.array(np.zeros(4)), pa.array(np.ones(4))], schema=schema)
    data = framing.encode_batch(batch, len(head), zlib.crc32(head))
    (rank(run_dir) / "scalars-000001.arrows").write_bytes(head + data + framing.END_OF_STREAM)
    run = open_run(run_dir)
    touch_everything(run)
    assert run.series("train_loss").step.tolist()[-3:] == [30, 40, 2**53 - 1]
    assert "2 rows before here repeat or fall back in step, or are beyond 2**53" in run.problems[0]


def test_a_missing_segment_of_modules_is_said_like_any_other(tmp_path: Path) -> None:
    run_dir = create_run(tmp_path)
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 0, rows_per_batch=5, segment_bytes=1_000)
    for first in range(1, 61, 20):
        write_known(writer, range(first, first + 20))
        assert writer.flush(60)
    writer.close()
    for stream in ("modules", "landscape", "events"):
        (rank(run_dir) / fmt.segment_name(stream, 1)).unlink()
    run = open_run(run_dir)
    assert sum("missing, up to number 1" in problem for problem in run.problems) == 3
    assert max(known_steps(run)["modules"]) == 60


def test_a_segment_numbered_far_ahead_is_not_counted_up_to(run_dir: Path) -> None:
    for stream in ("scalars", "layers", "modules", "system", "landscape", "events"):
        (rank(run_dir) / fmt.segment_name(stream, 999_999)).write_bytes(b"")
    done = limited(run_dir)  # a million questions for every stream take a minute
    assert done.returncode == 0, done.stderr[-2000:]
    run = open_run(run_dir)
    assert sum("missing, up to number 999998" in problem for problem in run.problems) == 6
    assert not run.refresh()


@pytest.mark.parametrize("make", ["folder", "socket", "device", "link to a device"])
def test_what_is_no_file_is_not_opened_for_long(run_dir: Path, make: str) -> None:
    names = ("system-000000.arrows", "events-000001.jsonl", "heartbeat.json", "log.txt")
    for name in names:
        path = rank(run_dir) / name
        path.unlink(missing_ok=True)
        if make == "folder":
            path.mkdir()
        elif make == "socket":
            with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
                server.bind(name)
        elif make == "device":
            try:
                os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: without an end
            except PermissionError:
                pytest.skip("only root can make a device")
        else:
            path.symlink_to("/dev/zero")
    done = limited(run_dir)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["30", "3"]  # the log has no message of its own
    assert open_run(run_dir).log_tail() == []


def test_folders_whose_names_are_no_utf_8_are_named_and_left_alone(run_dir: Path) -> None:
    (run_dir.parent / os.fsdecode(b"caf\xe9")).mkdir()
    for folder in (run_dir, run_dir / "attempts", rank(run_dir)):
        (folder / os.fsdecode(b"rank-\xff")).mkdir()
    rows = {row.id: row.problem for row in list_runs(run_dir.parent)}
    assert rows == {run_dir.name: None, "caf\\xe9": "its name is not UTF-8; rename the folder."}
    run = open_run(run_dir)
    touch_everything(run)
    assert run.problems == ()


def test_text_that_no_utf_8_can_hold_is_replaced(run_dir: Path, tmp_path: Path) -> None:
    """JSON can escape half a surrogate pair; pages and files cannot hold it."""
    with (rank(run_dir) / "events-000000.jsonl").open("ab") as file:
        file.write(
            b'{"step": 1, "time": 1.0, "kind": "log", "values": {"a\\ud800": 1.0}, "text": "\\udfff \\ud83d\\ude00"}\n'
        )
    (run_dir / "meta.json").write_text('{"name": "\\ud800"}')
    run = open_run(run_dir)
    assert (run.name, run.names[-1], run.events("log")[0].fields["text"]) == ("?", "a?", "? \N{GRINNING FACE}")
    assert export_run(run_dir, tmp_path / "export")


def shared_columns(names: int, rows: int) -> bytes:
    """A segment whose ``names`` columns all lie over the same ``8 * rows`` bytes, with checksums that are right."""
    schema = fmt.scalars_schema([f"c{index}" for index in range(names)])
    head = framing.encode_schema(schema)
    step = pa.array(np.arange(100, 101))
    value = pa.array(np.zeros(1))
    batch = pa.record_batch([step, value, *[value] * names], schema=schema)
    message_bytes = framing.encode_batch(batch, len(head), zlib.crc32(head))
    message = framing.parse_message(message_bytes, 0)
    assert message is not None
    data = message_bytes[: message.metadata_end] + bytearray(np.arange(100, 100 + rows).tobytes())
    table = framing._follow(data, 8)
    struct.pack_into("<q", data, framing._field(data, table, 3), 8 * rows)
    struct.pack_into("<q", data, framing._field(data, framing._follow(data, framing._field(data, table, 2)), 0), rows)
    for index in range(message.nodes):
        struct.pack_into("<qq", data, message.nodes_at + 16 * index, rows, 0)
    old = struct.pack(f"<{2 * len(message.buffers)}q", *itertools.chain(*message.buffers))
    new = struct.pack(f"<{2 * len(message.buffers)}q", *[0, 0, 0, 8 * rows] * message.nodes)
    at = data.index(old)
    data[at : at + len(old)] = new
    crc = framing._crc32(data, message.metadata_end, len(data))
    data[message.crc32_at : message.crc32_at + 8] = crc
    data[message.head32_at : message.head32_at + 8] = framing._head32(data, message, zlib.crc32(head)).encode()
    return head + data + framing.END_OF_STREAM


def test_columns_over_the_same_bytes_do_not_multiply_them(run_dir: Path) -> None:
    """Four megabytes that four thousand columns share would be sixteen gigabytes in memory."""
    (rank(run_dir) / "scalars-000001.arrows").write_bytes(shared_columns(4000, 500_000))
    done = limited(run_dir)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["30", "1"]
    assert "buffers overlap" in open_run(run_dir).problems[0]


def test_a_list_of_layers_that_would_be_gigabytes_is_not_parsed(run_dir: Path) -> None:
    record = b'{"kind": "layers", "layers": [' + b'{"name":"a"},' * 4_500_000 + b"{}]}"
    schema = pa.schema([fmt._STEP, fmt._TIME, ("n", pa.list_(pa.float32(), 3))], metadata={fmt.METADATA_KEY: record})
    (rank(run_dir) / "layers-000001.arrows").write_bytes(schema.serialize().to_pybytes())
    done = limited(run_dir)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["30", "1"]


def test_events_with_endless_names_do_not_become_endless_columns(run_dir: Path) -> None:
    with (rank(run_dir) / "events-000000.jsonl").open("a") as file:
        for line in range(20):
            values = {f"n{line}-{index}": 1 for index in range(40_000)}
            file.write(json.dumps({"step": 1, "time": 1.0, "kind": "log", "values": values}) + "\n")
    done = limited(run_dir)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["30", "20"]
    assert "4096 names come as events at most" in open_run(run_dir).problems[0]


def test_events_and_samples_without_end_are_counted_and_not_kept(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "MAX_EVENTS", 50)
    monkeypatch.setattr(attempt, "MAX_SAMPLES", 7)
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 1)
    write_known(writer, range(1, 101))
    writer.close()
    run = open_run(run_dir)
    found = known_steps(run, attempt=1)
    assert (found["events"], found["landscape"]) == (list(range(1, 51)), list(range(1, 8)))
    assert run.problems[-1].endswith("more than 50 events; left out")
    assert "more than 7 landscape samples; left out" in run.problems[0]


def test_a_hundred_attempts_too_many_are_not_read(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_ATTEMPTS", 10)
    monkeypatch.setattr(reader, "MAX_ATTEMPTS", 10)
    for number in range(1, 111):
        (run_dir / "attempts" / f"{number:04d}").mkdir()
    run = open_run(run_dir)
    touch_everything(run)
    assert [one.number for one in run.attempts] == list(range(101, 111))
    assert run.problems == (f"{run_dir / 'attempts'}: of very many attempts the last 10 are read.",)
    assert begin_attempt(run_dir) == 111


# Compact files, levels and seals -------------------------------------------------------------------------------------


@pytest.fixture
def compacted(run_dir: Path) -> Path:
    """The same run with 230 more steps, compacted, its segments gone; it has levels."""
    begin_attempt(run_dir)
    writer = RankWriter(run_dir, 1)
    write_known(writer, range(1, 231))
    writer.close()
    write_exit(run_dir, 1, outcome="finished", step=230, reason="done")
    compact_run(run_dir, remove=True)
    return run_dir


def reseal(path: Path, data: bytes, **more: Any) -> None:
    """Put ``data`` in place of a compact or level file, with a seal that is right about it."""
    path.write_bytes(data)
    seal = path.with_name(path.name + fmt.SEAL_SUFFIX)
    sums = {"bytes": len(data), "crc32": f"{zlib.crc32(data):08x}", "blocks": file_blocks(path)}
    fmt.atomic_write_json(seal, json.loads(seal.read_text()) | sums | more)


def test_a_seal_may_say_anything(compacted: Path) -> None:
    for seal in sorted((compacted / "compact").glob("*-0001-*.seal")):
        record = json.loads(seal.read_text())
        for key in record:
            for wrong in (None, 2**70, "0" * 8):
                fmt.atomic_write_json(seal, record | {key: wrong})
                run = open_run(compacted)
                window(run, "ratio", points=5, attempt=1)
                layer_window(run, "norm", points=5, attempt=1)
        fmt.atomic_write_json(seal, record)
    touch_everything(open_run(compacted))


@pytest.mark.parametrize("name", ["scalars-0001-00000.arrow", "scalars-0001-00000.levels.arrow"])
def test_a_small_compact_file_that_unpacks_to_gigabytes_is_refused(compacted: Path, name: str) -> None:
    path = compacted / "compact" / name
    with pa.ipc.open_file(path) as file:
        schema = file.schema
    zeros = pa.array(np.zeros(40_000_000))
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, pa.schema([("step", pa.float64())], metadata=schema.metadata), options=options) as out:
        for _ in range(20):
            out.write_batch(pa.record_batch([zeros], names=["step"]))
    reseal(path, sink.getvalue().to_pybytes())
    done = limited(compacted)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_compact_file_whose_table_of_contents_leads_elsewhere_is_read_in_its_own_order(compacted: Path) -> None:
    """pyarrow believes the footer; what lies in the file is what counts."""
    path = compacted / "compact" / "scalars-0001-00000.arrow"
    data = path.read_bytes()
    size = struct.unpack("<i", data[-10:-6])[0]
    reseal(path, data[: -10 - size] + bytes(size) + data[-10:])
    run = open_run(compacted)
    assert run.problems == ()
    assert known_steps(run, attempt=1)["scalars"] == list(range(1, 231))


def test_links_and_pipes_for_compact_files_are_not_followed(compacted: Path, tmp_path: Path) -> None:
    folder = compacted / "compact"
    for index, path in enumerate(sorted(folder.glob("*.arrow"))):
        path.unlink()
        if index % 3 == 0:
            os.mkfifo(path)
        elif index % 3 == 1:
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
    done = limited(compacted)
    assert done.returncode == 0, done.stderr[-2000:]
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path)
    touch_everything(open_run(compacted))
