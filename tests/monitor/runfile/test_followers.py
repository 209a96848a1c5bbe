"""Any values, in any batching, read at any moment, whole or followed through half-written tails: the same series."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.runfile import format as fmt
from monitor.runfile.compact import compact_run
from monitor.runfile.downsample import heat, min_max
from monitor.runfile.levels import Window, layer_window, window
from monitor.runfile.reader import Run, open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit

NASTY = (math.nan, math.inf, -math.inf, 0.0, -0.0, float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny))
NUMBER = st.one_of(st.none(), st.sampled_from(NASTY), st.floats(width=32), st.just(1.0))
"""Absent, non-finite, repeated or any; exactly a float32, so that a layer can hold it."""
STEP = st.fixed_dictionaries(
    {
        "gap": st.sampled_from([1, 1, 1, 2, 100, 10**9]),
        "a": NUMBER,
        "layer": st.tuples(NUMBER, NUMBER),
    },
    optional={"b": NUMBER, "module": NUMBER, "system": NUMBER, "event": NUMBER, "late": NUMBER},
)
CALLS = st.lists(st.tuples(STEP, st.sampled_from(["go on", "go on", "flush", "read"])), min_size=1, max_size=25)
EXAMPLES = int(os.environ.get("GRADIOMETER_EXAMPLES", "20"))
"""More of them: GRADIOMETER_EXAMPLES=1000 pytest tests/monitor/runfile/test_followers.py"""

Truth = dict[str, list[Any]]


def write(run_dir: Path, live: Run, calls: list[tuple[dict[str, Any], str]], rows: int, segment_bytes: int) -> Truth:
    """Write the calls, reading on with ``live`` in between, and return what a reader must find.

    Stream, or name of a scalar -> (step, value as text) pairs.
    """
    writer = RankWriter(run_dir, 0, rows_per_batch=rows, segment_bytes=segment_bytes, clock=lambda: 5.0)
    writer.define_layers(["x", "y"], [(1,), (1,)])
    writer.define_modules(["m"])
    truth: Truth = {"a": [], "b": [], "layers": [], "modules": [], "system": [], "events": []}
    step = 0
    try:
        for values, then in calls:
            step += values["gap"]
            writer.scalars(step, float(step), {name: values[name] for name in ("a", "b") if name in values})
            for name in ("a", "b"):
                if values.get(name) is not None:
                    truth[name].append((step, repr(values[name])))
            cells = values["layer"]
            present = np.array([cell is not None for cell in cells])
            full = np.array([0.0 if cell is None else cell for cell in cells])
            writer.layers(step, float(step), {"n": (full, present)})
            truth["layers"].append((step, [None if cell is None else repr(float(cell)) for cell in cells]))
            if values.get("module") is not None:
                writer.modules(step, float(step), {"n": np.array([values["module"]])})
                truth["modules"].append((step, [repr(float(values["module"]))]))
            if "system" in values:
                writer.system(float(step), {"s": values["system"]})
                truth["system"].append((float(step), None if values["system"] is None else repr(values["system"])))
            if values.get("event") is not None:
                writer.event("note", step, value=values["event"])
                truth["events"].append((step, repr(float(values["event"]))))
            if values.get("late") is not None:  # a value after the row of its step: the last word counts
                writer.event("log", step, values={"a": values["late"]})
                truth["a"] = [pair for pair in truth["a"] if pair[0] != step] + [(step, repr(float(values["late"])))]
            if then != "go on":
                assert writer.flush(30)
            if then == "read":
                live.refresh()
                assert {key: value for key, value in read(live).items() if value} == {
                    key: value for key, value in truth.items() if value
                }
    finally:
        writer.close()
    assert writer.rows_dropped == 0
    return truth


def read(run: Run) -> Truth:
    """The same from a reader."""
    found: Truth = {}
    for name in ("a", "b"):
        series = run.series(name)
        found[name] = [(int(s), repr(float(v))) for s, v in zip(series.step, series.value, strict=True)]
    for stream, matrix in (("layers", run.layers("n")), ("modules", run.modules("n"))):
        found[stream] = [
            (int(s), [repr(float(v)) if there else None for v, there in zip(row, present, strict=True)])
            for s, row, present in zip(matrix.step, matrix.value, matrix.present, strict=True)
        ]
    found["system"] = []
    if run.ranks(0):
        table = run.ranks(0)[0].system
        row, value = table.column("s")
        given = {int(r): repr(float(v)) for r, v in zip(row, value, strict=True)}
        found["system"] = [(float(moment), given.get(index)) for index, moment in enumerate(table.time.view())]
    found["events"] = [
        (event.step, repr(fmt.as_number(event.fields["value"]))) for event in run.events("note") if event.fields
    ]
    return found


def is_beginning(part: Truth, whole: Truth) -> bool:
    """Whether ``part`` is what an earlier reader of the same run may have seen."""
    own = {key: value for key, value in part.items() if key != "a"}
    return all(value == whole[key][: len(value)] for key, value in own.items()) and {s for s, _ in part["a"]} <= {
        s for s, _ in whole["a"]
    }


def grow(source: Path, target: Path, sizes: Iterator[int]) -> Iterator[None]:
    """Copy a rank's folder as a reader may see it appear: file by file in the order of writing, in ragged pieces."""
    target.mkdir(parents=True)
    names = sorted(
        (path.name for path in source.iterdir() if path.suffix in (".arrows", ".jsonl")),
        key=lambda name: (name.split("-")[1], name),
    )
    for name in names:
        data = (source / name).read_bytes()
        with (target / name).open("wb", buffering=0) as file:
            at = 0
            while at < len(data):
                size = next(sizes)
                file.write(data[at : at + size])
                at += size
                yield


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    calls=CALLS,
    rows=st.sampled_from([1, 3, 64]),
    segment_bytes=st.sampled_from([600, 3000, 1 << 24]),
    pieces=st.lists(st.integers(1, 3000), min_size=1, max_size=30),
    polls=st.lists(st.booleans(), min_size=1, max_size=12),
)
def test_whole_followed_or_compacted_every_reader_finds_what_was_written(
    tmp_path: Path,
    calls: list[tuple[dict[str, Any], str]],
    rows: int,
    segment_bytes: int,
    pieces: list[int],
    polls: list[bool],
) -> None:
    run_dir = create_run(tmp_path, run_id="written")
    copy = create_run(tmp_path, run_id="copy")
    for folder in (run_dir, copy):
        begin_attempt(folder)
    try:
        live = open_run(run_dir)
        truth = write(run_dir, live, calls, rows, segment_bytes)
        live.refresh()
        assert live.problems == ()
        assert read(live) == truth
        whole = open_run(run_dir)
        assert whole.problems == ()
        assert read(whole) == truth

        followed = open_run(copy)
        sizes = (pieces[index % len(pieces)] for index in iter(range(10**9)))
        for moment, _ in enumerate(grow(fmt.rank_dir(run_dir, 0), fmt.rank_dir(copy, 0), sizes)):
            if polls[moment % len(polls)]:
                followed.refresh()
                assert is_beginning(read(followed), truth)
        followed.refresh()
        assert followed.problems == ()
        assert read(followed) == truth
        *_, last = followed_to_the_end(copy, followed)
        assert read(last) == truth

        write_exit(run_dir, 0, outcome="finished", step=1, reason="done")
        compact_run(run_dir, remove=True)
        compacted = open_run(run_dir)
        assert read(compacted) == truth
        assert compacted.problems == ()
        check_reductions(whole, compacted)
    finally:
        shutil.rmtree(run_dir)
        shutil.rmtree(copy)


def followed_to_the_end(run_dir: Path, run: Run) -> Iterator[Run]:
    write_exit(run_dir, 0, outcome="finished", step=1, reason="done")
    return run.follow(poll_seconds=0)


def check_reductions(whole: Run, compacted: Run) -> None:
    """Of any few buckets, each holds the extremes and all non-finite values of what lies in it."""
    series = whole.series("a")
    for buckets in (1, 2, 7):
        reduced = min_max(series.step, series.value, buckets)
        bad = ~np.isfinite(series.value)
        np.testing.assert_array_equal(reduced.nonfinite_step, series.step[bad])
        np.testing.assert_array_equal(reduced.nonfinite_value, series.value[bad])
        if not bad.all():
            assert reduced.value.min() == series.value[~bad].min()
            assert reduced.value.max() == series.value[~bad].max()
        for run in (whole, compacted):
            cells = window(run, "a", points=buckets)
            for index in range(len(cells)):
                check_cell(cells, index, (), series.step, series.value, np.ones(len(series), bool))
            assert cells.count.sum() == len(series)
            matrix = whole.layers("n")
            wide = layer_window(run, "n", points=buckets)
            for index in range(len(wide)):
                for layer in range(len(matrix.names)):
                    check_cell(wide, index, (layer,), matrix.step, matrix.value[:, layer], matrix.present[:, layer])
            assert wide.count.sum() == matrix.present.sum()
    picture = heat(whole.layers("n"), 5)
    matrix = whole.layers("n")
    assert picture.nonfinite.any() == bool((~np.isfinite(matrix.value) & matrix.present).any())


def check_cell(
    cells: Window, index: int, layer: tuple[int, ...], step: np.ndarray, value: np.ndarray, present: np.ndarray
) -> None:
    inside = (step >= cells.first_step[index]) & (step <= cells.last_step[index]) & present
    own = value[inside]
    finite = own[np.isfinite(own)]
    at = (index, *layer)
    assert cells.count[at] == len(own)
    assert (cells.nan[at], cells.posinf[at], cells.neginf[at]) == (
        np.isnan(own).sum(),
        np.isposinf(own).sum(),
        np.isneginf(own).sum(),
    )
    if len(finite):
        assert (cells.min[at], cells.max[at]) == (finite.min(), finite.max())
    else:
        assert math.isnan(cells.min[at]) and math.isnan(cells.max[at])
