"""Directories made to do harm: one message each, bounded time and memory, nothing followed, nothing executed."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.reader import MAX_PROBLEMS, Run, open_run
from monitor.runfile.store import list_runs, run_state
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.conftest import write_run, write_steps

FUZZ_ROUNDS = int(os.environ.get("GRADIOMETER_FUZZ", "60"))
"""More of them: GRADIOMETER_FUZZ=5000 pytest -k mutated."""


def touch_everything(run: Run) -> None:
    """Ask for all there is; it must not raise."""
    for name in (*run.names, "train_loss"):
        run.series(name)
        run.superseded(name)
    for stat in run.layer_stats:
        run.layers(stat)
    run.frame(), run.system(), run.events(), run.landscape(), run.times(), run.checkpoints(), run.log_tail()
    assert isinstance(run.state.word, str)
    assert (run.name, run.task, run.config, run.parent, run.meta, run.planned_steps) is not None
    assert all(isinstance(problem, str) for problem in run.problems)


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
    assert any("FixedSizeList<float32> is expected" in problem for problem in run.problems)
    assert any("column 'time' is missing" in problem for problem in run.problems)


def limited(run_dir: Path) -> subprocess.CompletedProcess[str]:
    """Open the run in a process that may have 1.5 GB of addresses and 20 s of processor time."""
    code = (
        "import sys; from monitor.runfile import open_run; run = open_run(sys.argv[1]);"
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


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One to four random changes: flipped, cut, doubled, zeroed or replaced bytes, or an extreme number somewhere."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if not changed:
            break
        start = chance.randrange(len(changed))
        stop = min(len(changed), start + chance.choice([1, 4, 8, 100]))
        match chance.randrange(6):
            case 0:
                changed[start] ^= 1 << chance.randrange(8)
            case 1:
                del changed[start:stop]
            case 2:
                changed[start:start] = changed[start:stop]
            case 3:
                changed[start:stop] = bytes(stop - start)
            case 4:
                changed[start:stop] = chance.randbytes(stop - start)
            case 5:
                extreme = chance.choice([0, 1, -1, 2**31 - 1, -(2**31)])
                changed[start : start + 4] = struct.pack("<i", extreme)
    return bytes(changed)


def test_mutated_runs_open_and_give_no_wrong_number(tmp_path: Path) -> None:
    source = create_run(tmp_path / "runs", run_id="source")
    begin_attempt(source)
    writer = RankWriter(source, 0, rows_per_batch=10)
    write_steps(writer, 1, 40)
    writer.system(1.0, {"rss_gib": 1.0})
    writer.landscape(3, 1.0, kind="line", direction="x", radius=1.0, coords=[0, 1], loss=[1, 2], baseline=1)
    writer.event("log", 7, values={"accuracy": 0.5})
    writer.close()
    write_exit(source, 0, outcome="finished", step=40, reason="done")
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    for seed in range(FUZZ_ROUNDS):
        chance = random.Random(seed)
        copy = tmp_path / "runs" / "copy"
        shutil.copytree(source, copy)
        for file in chance.sample(files, chance.randint(1, 3)):
            (copy / file).write_bytes(mutate((copy / file).read_bytes(), chance))
        list_runs(tmp_path / "runs")
        try:
            run = open_run(copy)
        except RunError:
            pass  # run.json itself was hit
        else:
            touch_everything(run)
            loss = run.series("train_loss", attempt=0)
            np.testing.assert_array_equal(loss.value, 1.0 / loss.step, err_msg=f"seed {seed}")
            matrix = run.layers("grad_norm_preclip", attempt=0)
            if matrix.names:
                np.testing.assert_array_equal(matrix.value, matrix.step[:, None] + np.arange(3), err_msg=f"seed {seed}")
        shutil.rmtree(copy)
