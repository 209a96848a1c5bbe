"""A long scalar drawn from levels shows what it would show if every row were looked at."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.runfile import format as fmt
from monitor.runfile import levelfile, zoom
from monitor.runfile.compact import compact_run
from monitor.runfile.reader import Run, open_run
from monitor.runfile.stability import DERIVED
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from monitor.runfile.zoom import KINDS, LongMatrix, LongSignal, Zoomed, drawn, long_matrix, superseded, zoom_rows
from tests.monitor.runfile.conftest import LAYERS, SHAPES, START

NAMES = ("nasty", "smooth", "bad")


def write(runs: Path, between: Callable[[Path], object] = lambda run: None) -> Path:
    """Two attempts with uneven steps: a nasty scalar, a smooth one with a spike, one that is nearly all non-finite."""
    run = create_run(runs)
    random = np.random.default_rng(11)
    special = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e300, -1e300)
    for number, (first, last) in enumerate(((1, 1500), (1001, 2600))):
        if number:
            between(run)
        begin_attempt(run, parent=0 if number else None, resume_step=1000 if number else 0)
        writer = RankWriter(run, number, segment_bytes=30_000, rows_per_batch=100)
        writer.define_layers(LAYERS, SHAPES)
        for step in range(first, last + 1):
            if 300 <= step < 800 and step % 9:
                continue
            nasty = random.choice(special) if random.random() < 0.05 else random.normal()
            bad = random.normal() if step % 97 == 0 else random.choice(special[:3])
            smooth = 1e6 if step == 1777 else 1.0 / step
            values = {"nasty": float(nasty), "smooth": smooth, "bad": float(bad)}
            writer.scalars(step, START + step, values | ({"sparse": 1.0} if step % 5 == 0 else {}))
            norms = random.lognormal(size=3).astype(np.float32)
            norms[1] = np.inf if step == 1234 else norms[1]
            writer.layers(step, START, {"norm": (norms, random.random(3) < 0.9), "whole": norms})
        writer.close()
        write_exit(run, number, outcome="stopped", step=last, reason="asked")
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("zoom")
    plain = write(folder)
    found = {"plain": open_run(plain)}
    for name, factor in (("3", 3), ("8", 8)):
        copy = shutil.copytree(plain, folder / name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(levelfile, "FACTOR", factor)
            compact_run(copy, remove=True)
        found[name] = open_run(copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levelfile, "FACTOR", 8)
        found["resumed"] = open_run(write(folder, lambda run: compact_run(run, remove=True)))
    return found


@pytest.fixture(autouse=True, scope="module")
def short_is_long() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoom, "LONG_ROWS", 100)
        yield


def check(seen: Zoomed, step: np.ndarray, value: np.ndarray, reach: float) -> None:
    """Against all rows of the stretch; ``reach``: steps that a bucket and a cell may span together."""
    finite = np.isfinite(value)
    shown = np.searchsorted(step, seen.step)
    assert np.array_equal(step[shown], seen.step) and (np.diff(seen.step) > 0).all()
    assert np.array_equal(value[shown], seen.value)  # real samples, none invented
    for extreme in (np.min, np.max):
        if finite.any():
            assert extreme(seen.value) == extreme(value[finite])
    for at, own in zip(step[finite], value[finite], strict=True):  # nothing sticks out of what is drawn near it
        near = seen.value[np.abs(seen.step - at) <= reach]
        assert near.min() <= own <= near.max()
    truth = [int(np.isnan(value).sum()), int((value == np.inf).sum()), int((value == -np.inf).sum())]
    assert list(seen.nonfinite) == truth and seen.count == len(value)
    below = int((value[finite] <= 0).sum())
    assert seen.nonpositive == below if seen.nonpositive_exact else 0 < seen.nonpositive <= below
    tests = (np.isnan, np.isposinf, np.isneginf)
    for kind in range(len(KINDS)):
        own = seen.mark_step[seen.mark_kind == kind]
        there = step[tests[kind](value)]
        assert np.isin(own, there).all()
        assert seen.mark_count[seen.mark_kind == kind].sum() == len(there)
        assert all(np.abs(own - at).min() <= reach for at in there)
    assert np.isin(seen.gap_step, step[~finite]).all()
    bad = step[~finite]
    for left, right in zip(seen.step[:-1], seen.step[1:], strict=True):
        if right - left > reach:  # wider than a pixel column: the line must break if anything is missing between
            wanted = ((bad > left) & (bad < right)).any()
            assert ((seen.gap_step > left) & (seen.gap_step < right)).any() == wanted


@pytest.mark.parametrize("kind", ["3", "8", "resumed"])
@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(NAMES),
    st.one_of(st.none(), st.integers(-5, 2700)),
    st.one_of(st.none(), st.integers(-5, 2700)),
    st.one_of(st.integers(1, 60), st.integers(1, 400)),
)
def test_a_zoom_shows_what_all_rows_would_show(
    runs: dict[str, Run], kind: str, name: str, first: int | None, last: int | None, buckets: int
) -> None:
    signal = drawn(runs[kind], name)
    assert isinstance(signal, LongSignal)
    truth = runs["plain"].series(name).between(first, last)
    seen = signal.zoom(first, last, buckets)
    if not len(truth):
        assert len(seen.step) == seen.count == len(seen.mark_step) == 0
        return
    width = (truth.step[-1] - truth.step[0] + 1) / buckets
    rows = max(1, len(truth) // buckets)
    gap = int(np.diff(truth.step).max(initial=1))
    check(seen, truth.step, truth.value, width + 2 * rows * gap + 1)
    assert len(seen.step) <= 2 * (buckets + 2) + 4


def test_a_stretch_of_few_rows_is_the_same_as_if_it_had_been_read(runs: dict[str, Run]) -> None:
    for first, buckets in ((900, 300), (1700, 40), (2550, 10)):
        truth = runs["plain"].series("nasty").between(first, first + 100)
        wanted = zoom_rows(truth.step, truth.value, buckets)
        found = drawn(runs["8"], "nasty").zoom(first, first + 100, buckets)
        for part in ("step", "value", "nonfinite", "nonpositive", "mark_step", "mark_kind", "mark_count", "gap_step"):
            assert np.array_equal(getattr(found, part), getattr(wanted, part)), part


def test_single_values_and_the_whole_are_to_be_had(runs: dict[str, Run]) -> None:
    signal, truth = drawn(runs["8"], "smooth"), runs["plain"].series("smooth")
    assert np.array_equal(signal.step, truth.step) and len(signal) == len(truth)
    assert [signal.at(row) for row in (0, 700, len(truth) - 1)] == truth.value[[0, 700, -1]].tolist()
    assert np.array_equal(signal.whole().value, truth.value)
    with pytest.raises(IndexError):
        signal.at(len(truth))


def test_a_stretch_is_read_alone_and_as_it_is(runs: dict[str, Run]) -> None:
    run, truth = open_run(runs["8"].path), runs["plain"].series("nasty")
    signal = drawn(run, "nasty")
    assert isinstance(signal, LongSignal)
    for first, last in ((None, None), (900, 1100), (990, 2000), (2600, None), (3000, 4000), (20, 10)):
        found, wanted = signal.between(first, last), truth.between(first, last)
        assert np.array_equal(found.step, wanted.step) and np.array_equal(found.value, wanted.value, equal_nan=True)
    assert np.array_equal(signal.tail(50).value, truth.tail(50).value, equal_nan=True)
    assert len(signal.tail(10_000)) == len(truth)
    assert len(run.ranks(1)[0].scalars._columns["nasty"].value) == 0


def test_of_a_run_that_goes_on_from_a_compacted_one_the_earlier_attempt_is_not_read(runs: dict[str, Run]) -> None:
    run, truth = open_run(runs["resumed"].path), runs["plain"].series("smooth")
    signal = drawn(run, "smooth")
    assert isinstance(signal, LongSignal)
    assert signal.zoom(None, None, 20).value.max() == 1e6 and signal.at(900) == truth.value[900]
    assert np.array_equal(signal.tail(50).value, truth.value[-50:])
    sampled = signal.sampled(40)
    assert len(sampled) <= 2 * 41 and sampled.step[-1] == truth.step[-1]
    assert np.array_equal(truth.value[np.searchsorted(truth.step, sampled.step)], sampled.value)
    assert [len(run.ranks(number)[0].scalars._columns["smooth"].value) for number in (0, 1)] == [0, 1600]
    assert np.array_equal(signal.whole().value, truth.value)
    assert not isinstance(drawn(run, "sparse"), LongSignal)


@pytest.mark.parametrize("kind", ["3", "8", "resumed"])
def test_what_was_superseded_is_not_read_either(runs: dict[str, Run], kind: str) -> None:
    run = open_run(runs[kind].path)
    for name in NAMES:
        [(attempt, found)], [(_, truth)] = superseded(run, name), runs["plain"].superseded_by_attempt(name)
        assert attempt == 0 and isinstance(found, LongSignal) and np.array_equal(found.step, truth.step)
        seen = found.zoom(1100, None, 20)
        assert (len(seen.step), seen.count) == (len(np.unique(seen.step)), int((truth.step >= 1100).sum()))
        assert len(run.ranks(0)[0].scalars._columns[name].value) == 0
        assert np.array_equal(found.whole().value, truth.value, equal_nan=True)
    [(_, sparse)] = superseded(run, "sparse")
    assert np.array_equal(sparse.step, runs["plain"].superseded("sparse")[0].step)
    assert superseded(run, "unknown") == []


def test_a_derived_signal_of_a_long_run_is_made_when_it_is_looked_at(tmp_path: Path) -> None:
    folder = create_run(tmp_path)
    begin_attempt(folder)
    writer = RankWriter(folder, 0)
    for step in range(1, 401):
        writer.scalars(step, START + step, {"train_loss": 90.0 if step == 300 else 2.0 + step % 7 / 10})
    writer.close()
    write_exit(folder, 0, outcome="finished", step=400, reason="all steps done")
    truth = {name: open_run(folder).series(name) for name in DERIVED}
    compact_run(folder, remove=True)
    run = open_run(folder)
    for name, wanted in truth.items():
        signal = drawn(run, name)
        assert isinstance(signal, LongSignal)
        assert ("series", name, None, 0) not in run._cache, "nothing was read or made to have it drawn"
        assert np.array_equal(signal.step, wanted.step) and len(signal) == len(wanted) > 0
        seen, expected = signal.zoom(None, None, 500), zoom_rows(wanted.step, wanted.value, 500)
        assert np.array_equal(seen.value, expected.value) and seen.count == len(wanted)
        assert signal.at(3) == wanted.value[3] and len(signal.until(200)) == len(wanted.between(None, 200))
        assert np.array_equal(signal.sampled(10).value, wanted.value)


def test_the_column_is_not_read(runs: dict[str, Run]) -> None:
    run = open_run(runs["8"].path)
    drawn(run, "smooth").zoom(None, None, 100)
    assert [len(data.scalars._columns["smooth"].value) for n in (0, 1) for data in [run.ranks(n)[0]]] == [0, 0]


def test_scalars_with_gaps_and_runs_without_levels_are_read(runs: dict[str, Run]) -> None:
    assert not isinstance(drawn(runs["8"], "sparse"), LongSignal)
    assert not isinstance(drawn(runs["8"], "unknown"), LongSignal)
    assert not isinstance(drawn(runs["plain"], "smooth"), LongSignal)


def test_no_buckets_is_a_mistake_of_the_caller(runs: dict[str, Run]) -> None:
    with pytest.raises(ValueError, match="buckets is 0"):
        drawn(runs["8"], "smooth").zoom(None, None, 0)


def test_counting_values_at_or_below_zero_is_bounded(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoom, "EXACT_ROWS", 10)
    truth = runs["plain"].series("nasty")
    seen = drawn(runs["8"], "nasty").zoom(None, None, 20)
    assert not seen.nonpositive_exact
    check(seen, truth.step, truth.value, 500)


def test_a_long_matrix_has_the_values_of_the_matrix(runs: dict[str, Run]) -> None:
    matrix, truth = long_matrix(runs["3"], "norm"), runs["plain"].layers("norm")
    assert isinstance(matrix, LongMatrix)
    assert (matrix.names, matrix.stat, matrix.unit) == (truth.names, truth.stat, truth.unit)
    assert (matrix.step[0], matrix.step[-1]) == (truth.step[0], truth.step[-1])
    value, present = matrix.sample()
    assert np.isin(value[present], truth.value[truth.present]).all() and present.sum() > 100
    seen = matrix.window(None, None, 50)
    assert seen.posinf.sum() == 1 and seen.rows == len(truth.step)
    assert long_matrix(runs["plain"], "norm") is None and long_matrix(runs["3"], "unknown") is None


def test_the_curve_of_one_layer_is_its_column(runs: dict[str, Run]) -> None:
    truth = runs["plain"].layers("norm")
    for kind in ("3", "8"):
        matrix = long_matrix(runs[kind], "norm")
        assert matrix is not None and matrix.curve("no such layer") is None
        for index, name in enumerate(truth.names):
            curve, there = matrix.curve(name), truth.present[:, index]
            assert curve is not None and np.array_equal(curve.step, truth.step[there])
            assert np.array_equal(curve.value, truth.value[there, index].astype(float))


@pytest.mark.parametrize("damage", ["no levels", "wild numbers"])
def test_levels_that_lie_are_not_believed(runs: dict[str, Run], tmp_path: Path, damage: str) -> None:
    run_dir = shutil.copytree(runs["8"].path, tmp_path / "run")
    path = levelfile.level_file(run_dir, "scalars", 1, 0)
    seal = fmt.load_json(path.with_name(path.name + ".seal"))
    if damage == "no levels":
        with pa.ipc.open_file(path.read_bytes()) as file:
            schema = file.schema
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema):
            pass
        fmt.atomic_write_json(path.with_name(path.name + ".seal"), seal | {"bytes": path.stat().st_size})
        assert not isinstance(drawn(open_run(run_dir), "smooth"), LongSignal)
        return
    random = np.random.default_rng(5)
    with pa.ipc.open_file(path.read_bytes()) as file:
        batches = [file.get_batch(index) for index in range(file.num_record_batches)]
    data = bytearray(path.read_bytes())
    for batch in batches:  # the extremes of every cell, in place
        for name in NAMES:
            for kind in ("min", "max"):
                own = batch.column(batch.schema.get_field_index(name)).field(kind).buffers()[1].to_pybytes()
                at = data.find(own[: 8 * batch.num_rows])
                assert at > 0
                data[at : at + 8 * batch.num_rows] = random.bytes(8 * batch.num_rows)
    path.write_bytes(data)
    run = open_run(run_dir)
    for name in NAMES:
        truth = runs["plain"].series(name)
        signal = drawn(run, name)
        if isinstance(signal, LongSignal):
            check(signal.zoom(None, None, 30), truth.step, truth.value, 500)
    assert any(str(path) in problem for problem in run.problems)


@pytest.mark.parametrize("kind", ["3", "8"])
@pytest.mark.parametrize("window", [(None, None), (5, 2500), (900, 1300), (1200, 1240)])
def test_a_layer_that_was_always_measured_is_zoomed_like_a_scalar(
    runs: dict[str, Run], kind: str, window: tuple[int | None, int | None]
) -> None:
    truth, matrix = runs["plain"].layers("whole"), long_matrix(runs[kind], "whole")
    for index, name in enumerate(truth.names):
        curve = matrix.curve(name) if matrix else None
        assert isinstance(curve, LongSignal)
        value = truth.value[:, index].astype(float)
        assert np.array_equal(curve.whole().value, value) and curve.at(700) == value[700]
        low = 0 if window[0] is None else int(np.searchsorted(truth.step, window[0]))
        high = len(value) if window[1] is None else int(np.searchsorted(truth.step, window[1], side="right"))
        check(curve.zoom(*window, 40), truth.step[low:high], value[low:high], 250)
