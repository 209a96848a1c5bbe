"""A long run keeps less of its layers than all, and nobody who looks for an extreme or a NaN can tell."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.runfile.reader import Run, open_run
from monitor.runfile.thinned import Extents, extents
from monitor.runfile.writer import RankWriter, begin_attempt, create_run
from tests.monitor.runfile.conftest import LAYERS, SHAPES, START

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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=series(), budget=st.sampled_from([1, 300, 1500, 6000, 1 << 20]), data=st.data())
def test_every_interval_tells_exactly_what_was_measured_in_it(
    tmp_path: Path, steps: list[Step], budget: int, data: st.DataObject
) -> None:
    flushes = data.draw(st.sets(st.integers(0, len(steps) - 1), max_size=6))
    dense = data.draw(st.dictionaries(st.integers(0, len(steps) - 1), st.integers(0, 30), max_size=2))
    live, _ = write(tmp_path, steps, budget, flushes, dense)
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
