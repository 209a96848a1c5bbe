"""A long run keeps less of its layers than all, and nobody who looks for an extreme or a NaN can tell."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.errors import MonitorWarning, RunError
from monitor.runfile import format as fmt
from monitor.runfile import thinning
from monitor.runfile import writer as writer_module
from monitor.runfile.compact import compact_run
from monitor.runfile.dense import Recorder
from monitor.runfile.export import export_run
from monitor.runfile.levels import layer_window
from monitor.runfile.queued import Row
from monitor.runfile.reader import Run, open_run
from monitor.runfile.thinned import Extents, extents
from monitor.runfile.thinning import FIRST_STRIDE, Thinning
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit
from tests.monitor.runfile.conftest import LAYERS, SHAPES, START, write_steps
from tests.monitor.runfile.test_writer import run_python
from tests.waiting import until

EXAMPLES = int(os.environ.get("GRADIOMETER_EXAMPLES", "40"))
"""More of them: GRADIOMETER_EXAMPLES=2000 pytest -k every_interval."""
WIDTH = len(LAYERS)
Cells = tuple[np.ndarray, np.ndarray]
"""Values and presence, each [L]."""


@dataclass
class Step:
    """What one step had to write: a statistic of every step, and one that comes and goes."""

    step: int
    stats: dict[str, Cells]


numbers = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e30]),
    st.floats(-100, 100, width=32),
)


@st.composite
def series(draw: st.DrawFn) -> list[Step]:
    """Steps with gaps; repeats, NaN, infinities and absent layers in the values."""
    steps = np.cumsum(draw(st.lists(st.integers(1, 5), min_size=1, max_size=80))).tolist()
    seed, calm = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 0.5, 0.95]))
    few = draw(st.lists(numbers, min_size=1, max_size=8))
    chance = np.random.default_rng(seed)
    found = []
    for step in steps:
        stats = {}
        for stat, share in (("norm", 1.0), ("rare", 0.2)):
            if chance.random() < share:
                wild = np.array(chance.choice(few, WIDTH), np.float32)
                value = np.where(chance.random(WIDTH) < calm, chance.normal(1, 0.1, WIDTH).astype(np.float32), wild)
                stats[stat] = (value, chance.random(WIDTH) < 0.9)
        found.append(Step(step, stats))
    return found


def write(
    runs: Path, steps: Sequence[Step], budget: int, flush_at: Collection[int] = (), dense_at: Mapping[int, int] = {}
) -> tuple[Run, RankWriter]:
    """The run as one sees it who has followed it from the start, looking after every flush."""
    run = create_run(runs)
    begin_attempt(run)
    writer = RankWriter(run, 0, rows_per_batch=4, seconds_per_batch=3600, layer_budget_bytes=budget)
    writer.define_layers(LAYERS, SHAPES)
    live = open_run(run)
    for index, step in enumerate(steps):
        writer.scalars(step.step, START + step.step, {"train_loss": 1.0})
        writer.layers(step.step, START + step.step, step.stats)
        if index in flush_at:
            assert writer.flush(60)
            live.refresh()
            live.peaks("norm"), live.peaks("rare")
        if index in dense_at:
            writer.keep_dense(dense_at[index])
    writer.close()
    assert writer.rows_dropped == 0
    live.refresh()
    return live, writer


def truth(steps: Sequence[Step], stat: str, first: int, last: int) -> list[np.ndarray]:
    """Per layer the values measured from ``first`` to ``last``."""
    cells = [step.stats[stat] for step in steps if first <= step.step <= last and stat in step.stats]
    return [
        np.array([value[layer] for value, present in cells if present[layer]], np.float32) for layer in range(WIDTH)
    ]


def check(steps: Sequence[Step], stat: str, found: Sequence[Extents]) -> None:
    """Every interval tells exactly what was measured in it, and the intervals hold all that was measured."""
    covered: list[int] = []
    for part in found:
        assert (part.step[1:] > part.step[:-1]).all()
        assert (part.since[1:] > part.step[:-1]).all()
        for row in range(len(part.step)):
            first, last = int(part.since[row]), int(part.step[row])
            covered += [step.step for step in steps if first <= step.step <= last]
            for layer, values in enumerate(truth(steps, stat, first, last)):
                finite = values[np.isfinite(values)]
                if len(finite):
                    assert (part.min[row, layer], part.max[row, layer]) == (finite.min(), finite.max())
                else:
                    assert np.isnan(part.min[row, layer])
                    assert np.isnan(part.max[row, layer])
                assert part.nan[row, layer] == np.isnan(values).sum()
                assert part.posinf[row, layer] == np.isposinf(values).sum()
                assert part.neginf[row, layer] == np.isneginf(values).sum()
            sample = next(step for step in steps if step.step == last).stats.get(stat)
            if sample is None:
                assert not part.present[row].any()
            else:
                assert part.present[row].tolist() == sample[1].tolist()
                np.testing.assert_array_equal(part.value[row][sample[1]], sample[0][sample[1]])
    measured = [step.step for step in steps if stat in step.stats]
    assert set(measured) <= set(covered)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=series(), budget=st.sampled_from([1, 300, 1500, 6000, 1 << 20]), data=st.data())
def test_every_interval_tells_exactly_what_was_measured_in_it(
    tmp_path: Path, steps: list[Step], budget: int, data: st.DataObject
) -> None:
    flushes = data.draw(st.sets(st.integers(0, len(steps) - 1), max_size=6))
    dense = data.draw(st.dictionaries(st.integers(0, len(steps) - 1), st.integers(0, 30), max_size=2))
    with TemporaryDirectory(dir=tmp_path) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "Recorder", lambda _: Recorder(1 << 20))  # windows of some length
        live, _ = write(Path(folder), steps, budget, flushes, dense)
        run = open_run(live.path)
    assert run.problems == live.problems == ()
    for stat in ("norm", "rare"):
        check(steps, stat, list(extents(run.ranks(0)[0].layers, stat)))
        peaks, samples = run.peaks(stat), run.layers(stat)
        exact = {step.step: step.stats[stat] for step in steps if stat in step.stats}
        for row, step in enumerate(samples.step.tolist()):
            value, present = exact[step]
            assert samples.present[row].tolist() == present.tolist()
            np.testing.assert_array_equal(samples.value[row][present], value[present])
        check_peaks(steps, stat, peaks)
        followed = live.peaks(stat)
        for name in ("step", "begins", "present", "value", "nonfinite"):
            np.testing.assert_array_equal(getattr(followed, name), getattr(peaks, name))
    assert set(run.layer_stats) == {stat for step in steps for stat in step.stats}


def check_peaks(steps: Sequence[Step], stat: str, peaks: Any) -> None:
    """Nothing measured is larger than what some row whose interval has it shows; every non-finite value is shown."""
    for step in steps:
        if stat not in step.stats:
            continue
        value, present = step.stats[stat]
        rows = np.flatnonzero((peaks.begins <= step.step) & (step.step <= peaks.step))
        assert len(rows)
        for layer in np.flatnonzero(present):
            shown = peaks.value[rows, layer][peaks.present[rows, layer]]
            if np.isfinite(value[layer]):
                assert not np.isfinite(shown).all() or shown.max() >= value[layer]
            else:
                assert not np.isfinite(shown).all()
    for row in range(len(peaks.step)):  # and nothing is made up
        for layer, values in enumerate(truth(steps, stat, int(peaks.begins[row]), int(peaks.step[row]))):
            if peaks.present[row, layer]:
                assert peaks.value[row, layer] in values or (
                    np.isnan(peaks.value[row, layer]) and np.isnan(values).any()
                )


# How much is written ------------------------------------------------------------------------------------------------


def folder_bytes(run_dir: Path, stream: str) -> int:
    return sum(path.stat().st_size for path in fmt.rank_dir(run_dir, 0).glob(f"{stream}-*.arrows"))


def stride_of(writer: RankWriter) -> int:
    thinned = writer._streams["layers"].thinning
    assert thinned is not None
    return thinned.stride


def calm(step: int) -> np.ndarray:
    return np.array([1, 2, 3], np.float32) + np.float32(step % 7) / 100


def wild(step: int) -> np.ndarray:
    """New extremes and new kinds of non-finite values at every step."""
    bad = (np.nan, np.inf, -np.inf, 0)[step % 4]
    return np.array([(-1.0) ** step * 1.01 ** min(step, 8000), bad, step % 2], np.float32)


@pytest.mark.parametrize("values", [calm, wild])
@pytest.mark.parametrize("dense_every", [None, 10])
def test_the_volume_grows_with_the_logarithm_of_the_steps(
    run_dir: Path, values: Callable[[int], np.ndarray], dense_every: int | None
) -> None:
    budget, count = 40_000, 6000
    writer = RankWriter(run_dir, 0, rows_per_batch=16, seconds_per_batch=3600, layer_budget_bytes=budget)
    writer.define_layers(LAYERS, SHAPES)
    for step in range(1, count + 1):
        writer.layers(step, START + step, {"norm": values(step)})
        if dense_every and step % dense_every == 0:
            writer.keep_dense(5)
    assert writer.flush(60)
    writer.close()
    stride = stride_of(writer)
    assert stride >= 4 * FIRST_STRIDE
    octaves = int(np.log2(stride / FIRST_STRIDE)) + 1
    batch = 16 * (16 + 6 * (12 + 8)) + 3000  # rows of six columns at the most, and what describes them
    dense = folder_bytes(run_dir, "dense")
    assert folder_bytes(run_dir, "layers") < budget + octaves * (budget // 8 + 2 * batch) + batch
    assert dense < budget // 2 + budget // 8 + 2 * batch
    assert (dense > 0) == (dense_every is not None)
    # Twice as many steps in each stride as in the one before; an extreme or a window may cost another half.
    rows = np.diff(open_run(run_dir).layers("norm.max").step)
    assert len(rows) < count // FIRST_STRIDE


def test_no_series_gets_more_rows_than_its_regular_ones_and_half_as_many() -> None:
    kept = {}
    for name, bad in (("calm", 0), ("first NaN of another layer at every step", 1)):
        chooser = Thinning(1)
        assert chooser.wrote(1)
        kept[name] = 0
        for step in range(1, 4001):
            value = np.ones(64, np.float32)
            value[step % 64] = np.nan if bad else 1
            kept[name] += len(chooser.take(Row(step, 0.0, {"norm": (value, None)})))
    regular, most = kept.values()
    assert regular == 4000 / FIRST_STRIDE
    assert regular + 16 < most < 1.5 * regular + 18


def test_the_stride_and_its_cost_are_stated(run_dir: Path) -> None:
    writer = RankWriter(run_dir, 0, rows_per_batch=16, layer_budget_bytes=10_000)
    writer.define_layers(LAYERS, SHAPES)
    for step in range(1, 1001):
        writer.scalars(step, START + step, {"train_loss": 1.0})
        writer.layers(step, START + step, {"norm": calm(step)})
    assert writer.flush(60)
    assert writer.flush(60)  # the events of the first are behind it
    run = open_run(run_dir)
    said = run.events("thinning")
    assert [event.fields["stride"] for event in said][:3] == [4, 8, 16]
    assert said[0].fields["text"].startswith("layers thinned to every 4th step, about 13 bytes per step")
    beat = fmt.load_json(fmt.rank_dir(run_dir, 0) / fmt.HEARTBEAT_FILE)
    assert beat["stride"] == {"layers": said[-1].fields["stride"], "modules": 1}
    assert run.bytes_per_step == beat["bytes_per_step"] == pytest.approx(writer.bytes_written / 1000, rel=0.05)
    writer.close()


def test_a_quota_makes_thinning_begin_before_it_ends_the_recording(run_dir: Path) -> None:
    writer = RankWriter(run_dir, 0, rows_per_batch=16, quota_bytes=200_000)
    writer.define_layers(LAYERS, SHAPES)
    for step in range(1, 3001):
        writer.layers(step, START + step, {"norm": calm(step)})
    assert writer.flush(60)
    writer.close()
    run = open_run(run_dir)
    assert run.layers("norm").step[-1] == 3000
    assert writer.rows_dropped == 0
    assert run.events("thinning")
    assert writer.bytes_written < 0.9 * 200_000


def test_a_budget_of_nothing_and_names_of_extremes_are_refused(run_dir: Path) -> None:
    with pytest.raises(RunError, match="layer_budget_bytes is 0; at least 1"):
        RankWriter(run_dir, 0, layer_budget_bytes=0)
    writer = RankWriter(run_dir, 0)
    writer.define_layers(LAYERS, SHAPES)
    with pytest.warns(MonitorWarning, match=r"'norm\.max' names the extremes of 'norm'"):
        writer.layers(1, START, {"norm.max": np.ones(3), "norm": np.ones(3)})
    writer.close()
    assert open_run(run_dir).layer_stats == ("norm",)


# What is kept in full -----------------------------------------------------------------------------------------------


def thinned_run(run_dir: Path, odd: Mapping[int, np.ndarray], dense_at: Mapping[int, int] = {}) -> Run:
    """2000 calm steps but for the ``odd`` ones, at a stride of 16 or more from step 1000 on."""
    writer = RankWriter(run_dir, 0, rows_per_batch=16, seconds_per_batch=3600, layer_budget_bytes=20_000)
    writer.define_layers(LAYERS, SHAPES)
    writer.define_modules(["block"])
    for step in range(1, 2001):
        value = odd.get(step, calm(step))
        writer.layers(step, START + step, {"norm": value})
        writer.modules(step, START + step, {"out": value[:1]})
        if step in dense_at:
            writer.keep_dense(dense_at[step])
    writer.close()
    assert stride_of(writer) >= 16
    return open_run(run_dir)


@pytest.mark.parametrize("value", [500.0, -500.0, np.nan, np.inf, -np.inf])
def test_what_is_telling_is_written_at_once_at_its_own_step(run_dir: Path, value: float) -> None:
    run = thinned_run(run_dir, {1333: np.array([1, value, 3], np.float32)})
    samples = run.layers("norm")
    row = int(np.searchsorted(samples.step, 1333))
    assert samples.step[row - 1 : row + 1].tolist() == [1332, 1333]
    np.testing.assert_array_equal(samples.value[row], [1, value, 3])
    (found,) = run.extents("norm")
    at = int(np.searchsorted(found.step, 1333))
    assert (found.since[at], found.step[at]) == (1333, 1333)
    odd = ~np.isfinite(run.peaks("norm").value) | (run.peaks("norm").value > 100)
    if value > 0 or not np.isfinite(value):
        assert run.peaks("norm").step[odd.any(axis=1)].tolist() == [1333]


def test_a_dense_window_holds_every_step_before_and_after(run_dir: Path) -> None:
    odd = {step: calm(step) + np.float32(step / 1e4) for step in range(1400, 1460)}
    run = thinned_run(run_dir, odd, {1430: 25})
    samples, outputs = run.layers("norm"), run.modules("out")
    for step in range(1430 - 15, 1430 + 26):
        row = int(np.searchsorted(samples.step, step))
        assert samples.step[row] == step
        assert samples.value[row].tolist() == odd[step].tolist()
        assert outputs.value[np.searchsorted(outputs.step, step)] == odd[step][0]
    assert (np.diff(samples.step) > 0).all()
    assert (np.diff(samples.step) == 1).sum() < 1000  # beside the window it is thinned
    (whole,) = run.extents("norm", windows=False)
    assert {1430, 1455} <= set(whole.step.tolist())  # an interval ends with what was before, one with the window
    peaks = run.peaks("norm")
    inside = (peaks.step > 1430) & (peaks.step <= 1455)
    assert (peaks.begins[inside] == peaks.step[inside]).all()
    assert np.array_equal(peaks.step[inside], np.arange(1431, 1456))


def test_a_window_that_comes_after_its_steps_were_read_takes_its_place_among_them(run_dir: Path) -> None:
    with contextlib.closing(RankWriter(run_dir, 0)) as first:
        write_steps(first, 1, 50)
        first.layers(51, START, {"norm": calm(51)})
    begin_attempt(run_dir, parent=0, resume_step=51)
    writer = RankWriter(run_dir, 1, rows_per_batch=16, layer_budget_bytes=20_000)
    writer.define_layers(LAYERS, SHAPES)
    live, between = open_run(run_dir), 0
    for last in range(200, 1001, 100):
        for step in range(last - 99, last + 1):
            writer.layers(step, START + step, {"norm": calm(step) + np.float32(step)})
        assert writer.flush(60)
        live.refresh()
        before = live.peaks("norm")
        live.layers("norm")
        kept = before.step.copy(), before.value.copy()
        writer.keep_dense(5)
        assert writer.flush(60)
        live.refresh()
        followed, fresh = live.peaks("norm"), open_run(run_dir).peaks("norm")
        assert followed.step.tolist() == fresh.step.tolist() == sorted(fresh.step.tolist())
        assert followed.begins.tolist() == fresh.begins.tolist()
        assert followed.value.tolist() == fresh.value.tolist()
        assert live.layers("norm").step.tolist() == open_run(run_dir).layers("norm").step.tolist()
        assert (before.step.tolist(), before.value.tolist()) == (kept[0].tolist(), kept[1].tolist())
        between += len(followed.step) - len(before.step)
    assert between > 0
    writer.close()


def test_a_window_goes_on_when_thinning_begins_in_it(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "Recorder", lambda _: Recorder(1 << 20))
    writer = RankWriter(run_dir, 0, rows_per_batch=16, layer_budget_bytes=3000)
    writer.define_layers(LAYERS, SHAPES)
    for step in range(1, 301):
        writer.layers(step, START + step, {"norm": calm(step)})
        if step == 10:
            writer.keep_dense(200)
    writer.close()
    steps = open_run(run_dir).layers("norm").step.tolist()
    assert steps[:210] == list(range(1, 211))
    assert len(steps) < 250
    assert list(fmt.rank_dir(run_dir, 0).glob("dense-*"))


def test_windows_asked_for_again_and_again_write_no_step_twice(run_dir: Path) -> None:
    run = thinned_run(run_dir, {}, dict.fromkeys(range(1400, 1440), 3))
    dense = run.ranks(0)[0].dense
    steps = np.concatenate([block.step.view() for block in dense.blocks])
    assert (np.diff(steps) > 0).all()
    assert set(range(1400, 1443)) <= set(run.layers("norm").step.tolist())


def test_a_run_that_is_not_thinned_has_no_dense_rows(run_dir: Path) -> None:
    writer = RankWriter(run_dir, 0)
    writer.keep_dense(10)
    write_steps(writer, 1, 50)
    writer.keep_dense(10)
    write_steps(writer, 51, 100)
    assert writer.flush(60)
    writer.close()
    run = open_run(run_dir)
    assert run.layers("grad_norm_preclip").step.tolist() == list(range(1, 101))
    assert run.peaks("grad_norm_preclip") is run.layers("grad_norm_preclip")
    assert not list(fmt.rank_dir(run_dir, 0).glob("dense*"))


# What is made of it -------------------------------------------------------------------------------------------------


def everything(run: Run) -> list[object]:
    found: list[object] = [run.layer_stats, run.module_stats]
    for stat, stream in (("norm", "layers"), ("out", "modules")):
        for matrix in (getattr(run, stream)(stat), run.peaks(stat, stream=stream)):
            value = np.where(matrix.present, matrix.value, np.float32(0))
            found += [matrix.step.tolist(), matrix.begins.tolist(), value.tobytes(), matrix.present.tolist()]
        for windows in (True, False):
            for part in run.extents(stat, stream=stream, windows=windows):
                found += [part.since.tolist(), part.min.tobytes(), part.max.tobytes(), part.nonfinite.tolist()]
    return found


def test_a_compacted_thinned_run_is_the_same_run(run_dir: Path) -> None:
    bad = {step: np.array([np.nan, np.inf, step], np.float32) for step in range(1500, 1600)}
    before = everything(thinned_run(run_dir, bad, {1430: 25}))
    write_exit(run_dir, 0, outcome="finished", step=2000, reason="done")
    done = compact_run(run_dir, remove=True)
    assert {"layers", "dense", "modules", "dense_modules"} <= {one.stream for one in done}
    assert not list(fmt.rank_dir(run_dir, 0).glob("*.arrows"))
    assert everything(open_run(run_dir)) == before


def test_a_chart_of_any_stretch_has_the_extremes_of_the_steps_left_out(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thinning, "TELLING_AT_ONCE", 0.0)  # nothing is written out of turn
    odd = {1333: np.array([1, 500, 3], np.float32), 1777: np.array([np.nan, 2, -np.inf], np.float32)}
    run = thinned_run(run_dir, odd)
    assert not {1333, 1777} & set(run.layers("norm").step.tolist())
    for points in (1, 7, 300):
        whole = layer_window(run, "norm", points=points)
        assert np.nanmax(whole.max) == 500
        assert (whole.nan.sum(axis=0).tolist(), whole.neginf.sum(axis=0).tolist()) == ([1, 0, 0], [0, 0, 1])
        assert (whole.first_step[1:] > whole.last_step[:-1]).all()
        cell = int(np.searchsorted(whole.last_step, 1333))
        assert whole.first_step[cell] <= 1333
        assert whole.max[cell, 1] == 500
    near = layer_window(run, "norm", 1330, 1336, points=100)
    assert (near.max[:, 1] == 500).sum() == 1
    assert len(layer_window(run, "norm", 1340, 1400).max) > 0
    assert np.nanmax(layer_window(run, "norm", 1400, 1700).max) < 100


def test_an_export_has_the_extremes_and_the_steps_that_they_are_about(run_dir: Path, tmp_path: Path) -> None:
    run = thinned_run(run_dir, {1333: np.array([np.nan, 500, 3], np.float32)}, {1430: 25})
    written = {
        path.name: parquet.read_table(path) for path in export_run(run_dir, tmp_path / "out") if path.suffix != ".jsonl"
    }
    assert written["layers-norm.parquet"]["step"].to_pylist() == run.layers("norm").step.tolist()
    (found,) = run.extents("norm", windows=False)
    for extreme in ("min", "max", "nan"):
        table = written[f"layers-norm.{extreme}.parquet"]
        assert table["since"].to_pylist() == found.since.tolist()
        assert table["step"].to_pylist() == found.step.tolist()
        column = [np.nan if value is None else value for value in table[LAYERS[1]].to_pylist()]
        np.testing.assert_array_equal(column, getattr(found, extreme)[:, 1])
    assert "modules-out.max.parquet" in written


def test_an_interval_ends_at_a_checkpoint_so_that_a_resume_has_all_before_it(run_dir: Path) -> None:
    writer = RankWriter(run_dir, 0, rows_per_batch=16, seconds_per_batch=3600, layer_budget_bytes=5000)
    writer.define_layers(LAYERS, SHAPES)
    for step in range(1, 801):
        writer.layers(step, START + step, {"norm": calm(step) + np.float32(step >= 755) * 5})
        writer.scalars(step, START + step, {"train_loss": 1.0})
        if step == 754:
            writer.sync()
    writer.close()
    begin_attempt(run_dir, parent=0, resume_step=754)
    again = RankWriter(run_dir, 1, layer_budget_bytes=5000)
    again.define_layers((*LAYERS, "new"), (*SHAPES, (1,)))
    for step in range(755, 901):
        again.scalars(step, START + step, {"train_loss": 1.0})
        again.layers(step, START + step, {"norm": np.append(calm(step), np.float32(9))})
    again.close()
    peaks = open_run(run_dir).peaks("norm")
    assert (peaks.begins[1:] == peaks.step[:-1] + 1).all()
    assert 754 in peaks.step
    assert peaks.names == (*LAYERS, "new")
    assert peaks.value[:, :3].max() < 4  # what was done over is not in it
    assert not peaks.present[peaks.step <= 754, 3].any()
    assert peaks.present[peaks.step > 754].all()


def test_what_was_left_out_is_seen_after_half_a_minute_as_far_as_the_allowance_goes(run_dir: Path) -> None:
    now = [0.0]
    writer = RankWriter(
        run_dir, 0, rows_per_batch=16, seconds_per_batch=0.02, layer_budget_bytes=1, monotonic=lambda: now[0]
    )
    writer.define_layers(LAYERS, SHAPES)
    for step in range(1, 1001):
        writer.layers(step, START + step, {"norm": calm(step)})
    assert writer.flush(60)
    assert stride_of(writer) >= 64
    run, seen = open_run(run_dir), 0

    def pass_through(step: int) -> None:
        """Wait until the writer has been through its streams, scalars first."""
        writer.scalars(step, START, {"train_loss": 1.0})
        until(lambda: run.refresh() and run.series("train_loss").step[-1:].tolist() == [step], f"step {step}")

    for step in range(1001, 1013):
        now[0] += thinning.LATE_SECONDS + 1
        writer.layers(step, START + step, {"norm": calm(step)})
        pass_through(2 * step)
        now[0] += 1
        pass_through(2 * step + 1)
        run.refresh()
        seen += int(run.layers("norm").step[-1] == step)
    assert seen == thinning.TELLING_AT_ONCE / 2  # the other half is kept for telling rows
    writer.close()


# Endings ------------------------------------------------------------------------------------------------------------

NURSERY = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from monitor.runfile.writer import RankWriter, begin_attempt, create_run

runs, kills = Path(sys.argv[1]), int(sys.argv[2])
for kill in range(kills):
    chance = random.Random(kill)
    run = create_run(runs, run_id=f"run-{kill:03d}")
    begin_attempt(run)
    acknowledged = os.open(runs / f"run-{kill:03d}.txt", os.O_WRONLY | os.O_CREAT)
    pid = os.fork()
    if pid == 0:
        writer = RankWriter(run, 0, rows_per_batch=chance.choice([1, 16]), layer_budget_bytes=chance.choice([1, 3000]))
        writer.define_layers(["a", "b"], [(1,), (1,)])
        step = 0
        while True:
            for _ in range(chance.randint(1, 60)):
                step += 1
                writer.layers(step, float(step), {"norm": np.array([step, -step if step % 11 else np.nan], np.float32)})
                if chance.random() < 0.02:
                    writer.keep_dense(10)
            if writer.flush():
                os.pwrite(acknowledged, b"%09d" % step, 0)
    time.sleep(chance.uniform(0.02, 0.15))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(acknowledged)
"""


def test_kill_9_loses_no_acknowledged_step_of_a_thinned_run(tmp_path: Path) -> None:
    done = run_python(NURSERY, tmp_path, 8)
    assert done.returncode == 0, done.stderr
    written = 0
    for kill in range(8):
        acknowledged = int((tmp_path / f"run-{kill:03d}.txt").read_text() or 0)
        written += acknowledged
        run = open_run(tmp_path / f"run-{kill:03d}")
        assert run.problems == ()
        if not acknowledged:
            continue
        (found,) = list(extents(run.ranks(0)[0].layers, "norm"))
        assert found.step[-1] >= acknowledged
        assert found.since[0] == 1
        assert (found.since[1:] == found.step[:-1] + 1).all()
        assert (found.min[:, 0] == found.since).all()
        assert (found.max[:, 0] == found.step).all()
        assert (found.nan[:, 1] == found.step // 11 - (found.since - 1) // 11).all()
        samples = run.layers("norm")
        assert (samples.value[:, 0] == samples.step).all()
    assert written > 0


def test_a_full_disk_costs_no_step_of_a_thinned_run(small_disk: Path) -> None:
    run = create_run(small_disk, run_id="one")
    begin_attempt(run)
    writer = RankWriter(run, 0, rows_per_batch=16, layer_budget_bytes=3000)
    writer.define_layers(LAYERS, SHAPES)

    def write_some(first: int, last: int) -> None:
        for step in range(first, last + 1):
            writer.layers(step, START + step, {"norm": np.full(3, step, np.float32)})

    write_some(1, 500)
    assert writer.flush(60)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 1024)
    for first in range(501, 20_000, 500):  # more than one open block has room for
        writer.keep_dense(20)
        write_some(first, first + 499)
        if not writer.flush(timeout=0.2):
            break
    last = first + 499
    assert not writer.flush(timeout=0.2)
    ballast.unlink()
    assert writer.flush(60)
    writer.close()
    assert writer.rows_dropped == 0
    (found,) = list(extents(open_run(run).ranks(0)[0].layers, "norm"))
    assert (found.since[1:] == found.step[:-1] + 1).all()
    assert (found.min[:, 0] == found.since).all()
    assert (found.max[:, 0] == found.step).all()
    assert (found.since[0], found.step[-1]) == (1, last)
