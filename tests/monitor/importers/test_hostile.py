"""Files that are cut off, damaged, huge or meant to harm: one message, and what can be read is kept."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.errors import RunError
from monitor.importers import import_path
from monitor.importers.find import find_sources
from monitor.importers.rows import Account
from monitor.runfile.reader import open_run
from tests.monitor.importers.helpers import FIXTURES, log, read, series, taken
from tests.monitor.importers.test_text import PRINTED

SWEEP = bool(os.environ.get("GRADIOMETER_SWEEP"))
"""Every length and every byte, not only some: minutes."""
ROOT = Path(__file__).resolve().parents[3]


def rows_of(path: Path) -> tuple[int, list[str]]:
    """How many rows are read, and what is said of the rest; a refusal is said too."""
    try:
        sources = find_sources(path)
    except RunError as error:
        return 0, [str(error)]
    count, said = 0, []
    for source in sources:
        account = Account()
        count += sum(1 for _ in source.read(account))
        said += account.messages
    return count, said


TEXTS = {
    "trainer_state.json": json.dumps(
        {"log_history": [{"loss": 1.5, "step": step} for step in range(9)], "max_steps": 9}
    ),
    "results.csv": "epoch,train/box_loss,train/cls_loss\n" + "\n".join(f"{n},0.5,{n}" for n in range(9)),
    "log.jsonl": "\n".join(json.dumps({"step": n, "loss": [n], "deep": {"a": {"b": n}}}) for n in range(9)),
    "history.json": json.dumps({"loss": [3.0, 2.0], "val_loss": [3.5, 2.5]}),
    "train.log": "\n".join(text for text, _, _ in PRINTED.values()),
}


@pytest.mark.parametrize("name", [*TEXTS, "events.out.tfevents.1700000000.host.1.0", "offline.wandb", "tiny.db"])
def test_a_file_cut_off_anywhere_is_read_to_there(name, tmp_path):
    data = TEXTS[name].encode() if name in TEXTS else (FIXTURES / name).read_bytes()
    path = tmp_path / name
    stride = 1 if SWEEP else 1 + len(data) // 400
    lengths = sorted({*range(60), *range(0, len(data), stride), *range(len(data) - 60, len(data) + 1)})
    most = 0
    for length in lengths:
        path.write_bytes(data[:length])
        count, _ = rows_of(path)
        assert count >= most - 1 or name.endswith((".db", ".json"))  # a last line may lose a digit, no more
        most = max(most, count)
    assert most > 0


@pytest.mark.parametrize("name", ["events.out.tfevents.1700000000.host.1.0", "offline.wandb", "tiny.db"])
def test_any_damaged_byte_is_survived(name, tmp_path):
    data = (FIXTURES / name).read_bytes()
    path = tmp_path / name
    for place in range(0, len(data), 1 if SWEEP else 1 + len(data) // 300):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        rows_of(path)


def test_a_line_that_never_ends_is_left_out_and_said(tmp_path):
    path = log(tmp_path, "step 1 loss 1\n" + "loss: 1 " * 400_000 + "\nstep 2 loss 2\n")
    one = taken(path, tmp_path / "runs")
    assert one.rows == 2
    assert sum("more than" in message for message in one.messages) == 1


def test_deep_nesting_is_left_out_and_said(tmp_path):
    deep = '{"step": 2, "loss": ' + "[" * 100_000 + "]" * 100_000 + "}"
    path = log(tmp_path, '{"step": 1, "loss": 1.0}\n' + deep + '\n{"step": 3, "loss": 3.0}\n', "log.jsonl")
    one = taken(path, tmp_path / "runs")
    assert one.rows == 2 and any("no JSON object" in message for message in one.messages)


def test_a_million_columns_are_bounded_and_said(tmp_path):
    header = ",".join(["step", *(f"c{n}" for n in range(1_000_000))])
    path = log(tmp_path, f"{header}\n1{',0' * 1_000_000}\n", "wide.csv")
    one = taken(path, tmp_path / "runs")
    assert one.rows == 1 and any("columns" in message for message in one.messages)
    assert len(open_run(one.runs[0]).names) <= 4096


def test_numbers_of_thousands_of_digits_are_survived(tmp_path):
    path = log(tmp_path, '{"step": 1, "loss": 1.0}\n{"step": ' + "9" * 5000 + ', "loss": 2.0}\n', "log.jsonl")
    assert taken(path, tmp_path / "runs").rows == 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.log", b"", "empty"),
        ("image.bin", b"\x89PNG\r\n\x1a\n" + bytes(1000), "binary"),
        ("notes.txt", b"Dear diary,\nnothing happened.\n", "no training metrics"),
        ("header.csv", b"step,loss,lr\n", "a header, and no row of numbers"),
        ("config.json", b'{"lr": 0.1, "model": {"d": 3}}', "settings, not the course of a training"),
        ("args.csv", b"batch_size,lr,dropout\n8,2e-05,0.0\n", "settings, not the course of a training"),
        ("photo.png", b"\x89PNG\r\n\x1a\n" + bytes(range(1, 256)) * 4, "Accepted: TensorBoard"),
        ("other.db", (b"SQLite format 3\0" + bytes(84)), "database"),
    ],
)
def test_what_is_no_log_is_refused_with_one_message(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=says):
        import_path(tmp_path / name, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_what_a_crash_leaves_in_a_log_is_passed_over(tmp_path):
    """A block that was never written is read as zero bytes."""
    path = tmp_path / "train.log"
    path.write_bytes(b"step 1 loss 2.0\n" * 8 + bytes(12) + b"\nstep 2 loss 1.5\nstep 3 loss 1.25\n")
    assert series(read(path, tmp_path / "runs"), "train_loss") == {1: 2.0, 2: 1.5, 3: 1.25}


def test_a_comma_is_the_decimal_point_where_semicolons_part_the_cells(tmp_path):
    run = read(log(tmp_path, "step;loss\n1;2,5\n2;2,25\n3;1e-1\n", "log.csv"), tmp_path / "runs")
    assert series(run, "train_loss") == {1: 2.5, 2: 2.25, 3: 0.1}


def test_a_link_is_not_followed(tmp_path):
    log(tmp_path, "step 1 loss 1\nstep 2 loss 2\n", "real.log")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.log").symlink_to(tmp_path / "real.log")
    for path in (tmp_path / "folder", tmp_path / "folder" / "train.log"):
        with pytest.raises(RunError):
            import_path(path, tmp_path / "runs")


MEASURE = """
import resource, sys
from monitor.importers import import_path
import_path(sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Sixteen times the text costs no more than the rows that wait for others of their step."""
    peaks = []
    for size, lines in (("small", 5_000), ("large", 80_000)):
        path = tmp_path / f"{size}.log"
        with path.open("w") as file:
            for step in range(lines):
                file.write(f"step {step} | loss {3 - step / 1e6:.6f} | {'x' * 60}\n")
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "runs")],
            cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 100, peaks


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 2529\n", "git lfs pull"),
        ("<!DOCTYPE html>\n<html><body>404: Not Found, loss: 3</body></html>\n", "raw file"),
    ],
)
@pytest.mark.parametrize("name", ["progress.csv", "metrics.jsonl", "train.log"])
def test_what_stands_for_a_log_is_named(text, words, name, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match=words):
        import_path(tmp_path / name, tmp_path / "runs")
    (tmp_path / "good.log").write_text("".join(f"step {n} loss {3 - n / 8}\n" for n in range(9)))
    assert [one.source.path.name for one in import_path(tmp_path, tmp_path / "all")] == ["good.log"]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_log_is_to_be_unpacked(pack, tmp_path):
    (tmp_path / "train.log").write_bytes(pack(b"step 1 loss 2.5\nstep 2 loss 2.25\n"))
    with pytest.raises(RunError, match="Unpack it"):
        import_path(tmp_path / "train.log", tmp_path / "runs")
