"""Any window of any series, from levels or from rows, holds what a reduction of all its values one by one holds."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.runfile import format as fmt
from monitor.runfile import levelfile
from monitor.runfile.cells import NAMES, Cells, join, merge, reduce_values
from monitor.runfile.compact import compact_run
from monitor.runfile.levelfile import level_file
from monitor.runfile.levels import Window, layer_window, window
from monitor.runfile.reader import Run, open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.conftest import LAYERS, SHAPES, START

NASTY = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e300, -1e300, 5e-324)


def one_by_one(values: list[float]) -> tuple[float, ...]:
    """min, max, last, count, nan, posinf, neginf of the values that are there, the slow way."""
    finite = [value for value in values if math.isfinite(value)]
    return (
        min(finite, default=math.nan),
        max(finite, default=math.nan),
        values[-1] if values else math.nan,
        len(values),
        sum(math.isnan(value) for value in values),
        sum(value == math.inf for value in values),
        sum(value == -math.inf for value in values),
    )


def same(one: object, other: object) -> bool:
    return np.array_equal(np.array(one, float), np.array(other, float), equal_nan=True)


# Cells -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.none(), st.floats(), st.sampled_from(NASTY)), min_size=1, max_size=60), st.data())
def test_cells_and_cells_of_cells_hold_what_the_values_hold(values: list[float | None], data: st.DataObject) -> None:
    value = np.array([math.pi if v is None else v for v in values])
    present = np.array([v is not None for v in values])
    sets = [data.draw(st.sets(st.integers(1, len(values))), label="starts") for _ in range(2)]
    starts = np.array(sorted({0} | {s for s in sets[0] if s < len(values)}))
    cells = reduce_values(value, None if present.all() else present, starts)
    again = np.array(sorted({0} | {s for s in sets[1] if s < len(starts)}))
    for found, first in ((cells, starts), (merge(cells, again), starts[again])):
        for index, (low, high) in enumerate(zip(first, [*first[1:], len(values)], strict=True)):
            there = [v for v in values[low:high] if v is not None]
            assert same([getattr(found, name)[index] for name in NAMES], one_by_one(there))


def test_layers_are_reduced_each_by_itself() -> None:
    random = np.random.default_rng(0)
    value = random.choice(np.array(NASTY[:5]), (50, 4)).astype(np.float32)
    present = random.random((50, 4)) < 0.7
    starts = np.array([0, 3, 10, 11])
    wide = reduce_values(value, present, starts)
    for layer in range(4):
        narrow = reduce_values(value[:, layer], present[:, layer], starts)
        for name in NAMES:
            np.testing.assert_array_equal(getattr(wide, name)[:, layer], getattr(narrow, name))
    np.testing.assert_array_equal(join([wide, wide]).last[4:], wide.last)


# Windows of a run --------------------------------------------------------------------------------------------------


def write_nasty(runs: Path) -> Path:
    """Two attempts with gaps, absent and non-finite values, layers in part; the first superseded from step 500 on."""
    run = create_run(runs)
    random = np.random.default_rng(7)
    for number, (first, last) in enumerate(((1, 700), (501, 900))):
        begin_attempt(run, parent=0 if number else None, resume_step=500 if number else 0)
        writer = RankWriter(run, number, segment_bytes=20_000, rows_per_batch=50)
        writer.define_layers(LAYERS, SHAPES)
        for step in range(first, last + 1):
            if step % 11 == 0 or 100 <= step < 130:
                continue
            value = random.choice(NASTY) if random.random() < 0.2 else random.normal()
            values = {"train_loss": float(value), "lr": 1.0 / step}
            if step % 37 == 0:
                values["val_loss"] = float(random.normal())
            writer.scalars(step, START + step, values)
            norm = np.where(random.random(3) < 0.1, np.nan, random.normal(size=3)).astype(np.float32)
            writer.layers(step, START, {"norm": (norm, random.random(3) < 0.8), "rare": None if step % 5 else norm})
        writer.event("eval", 300, values={"val_loss": math.inf})
        writer.close()
        write_exit(run, number, outcome="stopped", step=last, reason="asked")
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The same run as written, compacted with the real factor, with a small one, and the last attempt alone."""
    folder = tmp_path_factory.mktemp("levels")
    plain = write_nasty(folder)
    found = {"plain": open_run(plain)}
    for name, factor in (("64", 64), ("4", 4), ("half", 4)):
        copy = shutil.copytree(plain, folder / name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(levelfile, "FACTOR", factor)
            compact_run(copy, remove=name == "4")
        if name == "half":
            for path in (copy / "compact").glob("*-0000-*"):
                path.unlink()
        found[name] = open_run(copy)
    assert [run.problems for run in found.values()] == [()] * 4
    return found


def check(found: Window, step: np.ndarray, value: np.ndarray, present: np.ndarray, points: int) -> None:
    """Every cell against the values of its steps, one by one, and all of them against the whole."""
    assert len(found) <= points + 4
    assert (found.first_step <= found.last_step).all()
    assert (found.last_step[:-1] < found.first_step[1:]).all()
    held = 0
    for index in range(len(found)):
        low, high = np.searchsorted(step, [found.first_step[index], found.last_step[index] + 1])
        own = [v for v, there in zip(value[low:high].tolist(), present[low:high].tolist(), strict=True) if there]
        assert same([getattr(found, name)[index] for name in NAMES], one_by_one(own))
        held += len(own)
    assert held == present.sum()


WINDOWS = st.tuples(
    st.one_of(st.none(), st.integers(-5, 950)),
    st.one_of(st.none(), st.integers(-5, 950)),
    st.integers(1, 300),
    st.sampled_from([None, 0, 1]),
)


@pytest.mark.parametrize("kind", ["plain", "64", "4", "half"])
@given(st.sampled_from(["train_loss", "lr", "val_loss", "unknown"]), WINDOWS)
def test_a_window_of_a_scalar_equals_the_direct_reduction(
    runs: dict[str, Run], kind: str, name: str, asked: tuple[int | None, int | None, int, int | None]
) -> None:
    first, last, points, attempt = asked
    truth = runs["plain"].series(name, attempt=attempt).between(first, last)
    found = window(runs[kind], name, first, last, points, attempt=attempt)
    check(found, truth.step, truth.value, np.ones(len(truth), bool), points)


@pytest.mark.parametrize("kind", ["plain", "64", "4", "half"])
@given(st.sampled_from(["norm", "rare", "unknown"]), WINDOWS)
def test_a_window_of_a_layer_statistic_equals_the_direct_reduction(
    runs: dict[str, Run], kind: str, stat: str, asked: tuple[int | None, int | None, int, int | None]
) -> None:
    first, last, points, attempt = asked
    truth = runs["plain"].layers(stat, attempt=attempt)
    low = 0 if first is None else int(np.searchsorted(truth.step, first))
    high = max(low, len(truth.step) if last is None else int(np.searchsorted(truth.step, last + 1)))
    found = layer_window(runs[kind], stat, first, last, points, attempt=attempt)
    assert len(found) <= points + 4
    for layer, name in enumerate(truth.names):
        assert found.names[layer] == name
        arrays = {kind: getattr(found, kind)[:, layer] for kind in NAMES}
        one = Window(stat, (), found.first_step, found.last_step, rows=found.rows, read=found.read, **arrays)
        check(one, truth.step[low:high], truth.value[low:high, layer], truth.present[low:high, layer], points)


def test_no_points_is_a_mistake_of_the_caller(runs: dict[str, Run]) -> None:
    with pytest.raises(ValueError, match="points is 0"):
        window(runs["64"], "lr", points=0)


def test_cells_stay_the_same_while_somebody_pans(runs: dict[str, Run]) -> None:
    whole, moved = (window(runs["4"], "lr", first, first + 200, 50, attempt=1) for first in (600, 604))
    inner = set(whole.first_step[1:].tolist())
    assert inner & set(moved.first_step[1:-1].tolist())
    assert set(moved.first_step[1:-1].tolist()) - inner <= {step for step in moved.first_step if step > 800}


# Cost, files, damage -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = create_run(tmp_path_factory.mktemp("long"))
    begin_attempt(run)
    writer = RankWriter(run, 0, rows_per_batch=1000)
    for step in range(1, 20_001):
        writer.scalars(step, START, {"train_loss": 1.0 / step})
    writer.close()
    write_exit(run, 0, outcome="finished", step=20_000, reason="done")
    compact_run(run, remove=True)
    return run


@pytest.mark.parametrize("points", [1, 5, 100, 1000])
@pytest.mark.parametrize("span", [(None, None), (17, 19_999), (5000, 15_001), (1, 3)])
def test_what_is_read_does_not_grow_with_the_run(
    long_run: Path, points: int, span: tuple[int | None, int | None]
) -> None:
    run = open_run(long_run)
    found = window(run, "train_loss", *span, points)
    assert found.read <= 64 * points + 2 * 126
    rows = (span[1] or 20_000) - (span[0] or 1) + 1
    assert len(found) >= min(rows, points) / 2
    table = run.ranks(0)[0].scalars
    assert len(table._columns["train_loss"].value) == 0  # the column itself was never loaded


def test_anybody_can_open_a_level_file(long_run: Path) -> None:
    path = level_file(long_run, "scalars", 0, 0)
    with pa.ipc.open_file(path) as file:
        assert file.num_record_batches == 2
        first, second = (file.get_batch(index).to_pydict() for index in range(2))
    assert (len(first["step"]), len(second["step"])) == (313, 5)
    assert first["step"][1] == {"first": 65, "last": 128}
    assert second["step"][-1] == {"first": 4 * 4096 + 1, "last": 20_000}
    assert first["train_loss"][1] == {
        "min": 1 / 128,
        "max": 1 / 65,
        "last": 1 / 128,
        "count": 64,
        "nan": 0,
        "posinf": 0,
        "neginf": 0,
    }
    assert fmt.load_json(path.with_name(path.name + ".seal"))["factor"] == 64


def summary(found: Window) -> list[bytes]:
    return [np.asarray(getattr(found, name)).tobytes() for name in NAMES]


@pytest.mark.parametrize(
    "damage", ["missing", "no seal", "cut", "garbage", "other source", "link", "bad factor", "rows"]
)
def test_levels_that_do_not_fit_are_not_used(long_run: Path, tmp_path: Path, damage: str) -> None:
    run_dir = shutil.copytree(long_run, tmp_path / "run")
    path = level_file(run_dir, "scalars", 0, 0)
    seal = path.with_name(path.name + ".seal")
    record = fmt.load_json(seal)
    if damage == "missing":
        path.unlink()
    elif damage == "no seal":
        seal.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "garbage":
        path.write_bytes(b"ARROW1\0\0".ljust(record["bytes"], b"\xff"))
    elif damage == "other source":
        fmt.atomic_write_json(seal, record | {"source": {"file": "x", "bytes": 1, "crc32": "0"}})
    elif damage == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "bad factor":
        fmt.atomic_write_json(seal, record | {"factor": "64"})
    else:
        fmt.atomic_write_json(seal, record | {"rows": 19_999})
    found = window(open_run(run_dir), "train_loss", 17, 19_999, 100)
    assert found.read == 19_983
    assert found.count.sum() == 19_983
    compact_run(run_dir)
    if damage in ("missing", "no seal", "cut", "other source"):  # made anew
        assert window(open_run(run_dir), "train_loss", 17, 19_999, 100).read < 10_000


def test_flipped_bytes_never_crash(long_run: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(long_run, tmp_path / "run")
    path = level_file(run_dir, "scalars", 0, 0)
    whole = path.read_bytes()
    run = open_run(run_dir)
    random = np.random.default_rng(3)
    for _ in range(150):
        data = bytearray(whole)
        at = len(data) - 1 - int(random.integers(3000)) if random.random() < 0.5 else int(random.integers(3000))
        data[at] = int(random.integers(256))
        path.write_bytes(data)
        found = window(run, "train_loss", None, None, 100)
        assert len(found.first_step) == len(found.min)


def test_cells_have_names_in_one_order() -> None:
    assert NAMES == ("min", "max", "last", "count", "nan", "posinf", "neginf")
    assert len(Cells(*[np.zeros(3)] * 7)) == 3
