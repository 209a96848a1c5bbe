"""A compacted run is the same run: same numbers, fewer files, nothing merged away that was not read back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from monitor.errors import RunError
from monitor.runfile import compact
from monitor.runfile import format as fmt
from monitor.runfile.compact import compact_run
from monitor.runfile.reader import Run, open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.conftest import LAYERS, SHAPES, START, write_run, write_steps


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """An ended run: gaps, NaN, late values, absent layers, a rewind, two ranks, several segments."""
    run = create_run(tmp_path / "runs")
    begin_attempt(run)
    for rank in (0, 1):
        writer = RankWriter(run, 0, rank, rows_per_batch=7, segment_bytes=4000)
        writer.define_layers(LAYERS, SHAPES)
        writer.define_modules(["embed", "block"])
        for step in range(1, 301):
            values = {"train_loss": math.nan if step == 9 else math.inf if step == 10 else step + rank / 2}
            if step > 100 and step % 10 == 0:
                values["val_loss"] = 2.0 / step
            writer.scalars(step, START + step, values)
            norms = np.array([step, np.nan, -np.inf], np.float32)
            present = np.array([True, True, step % 2 == 0])
            stats = {"norm": (norms, present), "rare": None if step % 3 else norms, "whole": np.ones(3)}
            writer.layers(step, START + step, stats)
            writer.modules(step, START + step, {"act_rms": (norms[:2], present[1:])})
            if step % 5 == 0:
                writer.system(START + step, {"rss_gib": step / 10, "cpu_pct": None if step % 2 else math.nan})
        writer.event("log", 12, values={"accuracy": 0.5, "train_loss": 7.0})
        writer.close()
    write_exit(run, 0, outcome="crashed", step=300, reason="boom")
    begin_attempt(run, parent=0, resume_step=200)
    writer = RankWriter(run, 1)
    write_steps(writer, 201, 250)
    writer.close()
    write_exit(run, 1, outcome="finished", step=250, reason="done")
    return run


def everything(run: Run) -> list[object]:
    """All numbers of a run, comparable by bytes."""
    found: list[object] = [run.names, run.layer_stats, run.last_step]
    for rank in (0, 1):
        for attempt in (None, 0, 1):
            signals = [run.series(name, attempt=attempt, rank=rank) for name in run.names]
            found += [(signal.name, signal.step.tobytes(), signal.value.tobytes()) for signal in signals]
            for stat in run.layer_stats:
                matrix = run.layers(stat, attempt=attempt, rank=rank)
                value = np.where(matrix.present, matrix.value, np.float32(0))
                found.append((matrix.names, matrix.step.tobytes(), value.tobytes(), matrix.present.tolist()))
            outputs = run.modules("act_rms", attempt=attempt, rank=rank)
            found.append((outputs.names, outputs.step.tobytes(), outputs.value.tobytes(), outputs.present.tolist()))
    found += [run.times().value.tobytes(), run.system().to_csv(), run.system(rank=1).to_csv()]
    found += [signal.value.tobytes() for signal in run.superseded("train_loss")]
    return found


@pytest.mark.parametrize("remove", [False, True])
def test_a_compacted_run_gives_the_same_numbers(run_dir: Path, remove: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "_rows_per_batch", lambda _: 40)  # several batches
    before = everything(open_run(run_dir))
    done = compact_run(run_dir, remove=remove)
    assert {(one.stream, one.attempt, one.rank) for one in done} == {
        *((stream, 0, rank) for stream in ("scalars", "layers", "modules", "system") for rank in (0, 1)),
        ("scalars", 1, 0),
        ("layers", 1, 0),
    }
    assert all(one.segments > 1 for one in done if one.attempt == 0 and one.stream != "system")
    after = open_run(run_dir)
    assert everything(after) == before
    assert after.problems == ()
    assert not after.refresh()
    left = [path.name for path in run_dir.rglob("*.arrows")]
    assert (left == []) == remove
    assert compact_run(run_dir) == []


def test_segments_that_were_kept_can_be_removed_later(run_dir: Path) -> None:
    before = everything(open_run(run_dir))
    assert compact_run(run_dir)
    assert compact_run(run_dir, remove=True) == []
    assert list(run_dir.rglob("*.arrows")) == []
    assert everything(open_run(run_dir)) == before


def test_segments_stay_when_the_compact_file_has_changed_since(run_dir: Path) -> None:
    compact_run(run_dir)
    file = run_dir / "compact" / "scalars-0000-00000.arrow"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    count = len(list(run_dir.rglob("scalars-*.arrows")))
    with pytest.raises(RunError, match=r"not compacted, because .*'step' are damaged"):
        compact_run(run_dir, remove=True)
    assert len(list(run_dir.rglob("scalars-*.arrows"))) == count


def test_anybody_can_open_a_compact_file(run_dir: Path) -> None:
    compact_run(run_dir)
    with pa.ipc.open_file(run_dir / "compact" / "scalars-0000-00000.arrow") as file:
        table = file.read_all()
    assert table.column("step").to_pylist() == list(range(1, 301))
    assert table.column("val_loss").null_count == 280
    with pa.memory_map(str(run_dir / "compact" / "layers-0000-00001.arrow")) as source:
        layers = pa.ipc.open_file(source).read_all()
        assert layers.column("norm")[0].as_py()[2] is None
        assert layers.column("rare")[0].as_py() is None


def test_a_run_that_goes_on_is_not_compacted(tmp_path: Path) -> None:
    run = create_run(tmp_path)
    begin_attempt(run)
    writer = RankWriter(run, 0)
    write_steps(writer, 1, 10)
    assert writer.flush()
    with pytest.raises(RunError, match="the run is running"):
        compact_run(run)
    writer.close()


def test_a_damaged_run_keeps_its_segments(run_dir: Path) -> None:
    path = fmt.rank_dir(run_dir, 0) / "scalars-000000.arrows"
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"not compacted, because .*scalars-000000\.arrows"):
        compact_run(run_dir, remove=True)
    assert path.exists()
    assert not (run_dir / "compact").exists()


def test_a_compact_file_without_its_seal_or_of_another_size_is_not_used(run_dir: Path) -> None:
    before = everything(open_run(run_dir))
    compact_run(run_dir)
    file = run_dir / "compact" / "scalars-0000-00000.arrow"
    file.write_bytes(file.read_bytes()[:1000])
    (run_dir / "compact" / "layers-0000-00000.arrow.seal").unlink()
    assert everything(open_run(run_dir)) == before


@pytest.mark.parametrize("damage", [b"", b"ARROW1\0\0", b"x" * 100])
def test_a_damaged_compact_file_is_one_message(run_dir: Path, damage: bytes) -> None:
    compact_run(run_dir, remove=True)
    file = run_dir / "compact" / "scalars-0000-00000.arrow"
    size = file.stat().st_size
    file.write_bytes(damage.ljust(size, b"\0"))
    run = open_run(run_dir)
    assert len(run.problems) == 1
    assert str(file) in run.problems[0]
    assert len(run.series("train_loss", attempt=0)) == 1  # the one that came as an event
    assert len(run.layers("norm", attempt=0).step) == 300


def test_columns_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, 50)
    write_exit(run_dir, 0, outcome="finished", step=50, reason="done")
    compact_run(run_dir, remove=True)
    run = open_run(run_dir)
    table = run.ranks(0)[0].scalars
    assert table.names == ("train_loss", "lr")
    assert [len(column.value) for column in table._columns.values()] == [0, 0]
    assert len(run.series("lr")) == 50
    assert [len(column.value) for column in table._columns.values()] == [0, 50]


def test_a_removal_cut_short_leaves_segments_that_begin_with_number_0(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the compact file what is left would still be a stream, and with it everything is there."""
    before = everything(open_run(run_dir))
    removed: list[Path] = []
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".arrows":
            if len(removed) == 3:
                raise OSError(5, "Input/output error")
            removed.append(path)
        real(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(RunError, match="cannot be compacted: Input/output error"):
            compact_run(run_dir, remove=True)
    stream = removed[0].name.split("-")[0]
    left = sorted(int(path.stem[-6:]) for path in removed[0].parent.glob(f"{stream}-*.arrows"))
    assert left == list(range(len(left))) != []
    assert everything(open_run(run_dir)) == before
