"""Rows of every stream whose values follow from their step, so that any reading can be judged without its writing."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from monitor.runfile.attempt import RankData
from monitor.runfile.reader import Run
from monitor.runfile.writer import RankWriter

START = 1_800_000_000.0
STREAMS = ("scalars", "layers", "modules", "system", "landscape", "events")
NAMES = ("embed.weight", "block.0.weight", "block.0.bias")


def write_known(writer: RankWriter, steps: Iterable[int]) -> None:
    """One row of every stream for each step."""
    writer.define_layers(NAMES, [(4, 4), (4, 4), (4,)])
    writer.define_modules(NAMES[:2])
    for step in steps:
        moment = START + step
        scalars = {"loss": loss_of(step), "ratio": step / 7}
        if step % 3 == 0:
            scalars["rare"] = float(-step)
        writer.scalars(step, moment, scalars)
        present = np.array([True, True, step % 2 == 0])
        writer.layers(step, moment, {"norm": (np.arange(3) + step, present), "rare": None if step % 3 else present * 1})
        writer.modules(step, moment, {"rms": np.array([step, -step])})
        writer.system(moment, {"rss_gib": step / 10, "cpu_pct": None if step % 2 else float(step)})  # type: ignore[dict-item]
        writer.landscape(
            step,
            moment,
            kind="line",
            direction="update",
            radius=float(step),
            coords=[-1, 0, 1],
            loss=[step, math.nan, step + 1],
            baseline=float(step),
        )
        writer.event("note", step, text=f"step {step}", third=step / 3)


def loss_of(step: int) -> float:
    """A NaN and an infinity are among the first ten."""
    return math.nan if step % 10 == 5 else math.inf if step % 10 == 8 else 1 / step


def known_steps(run: Run, attempt: int = 0, rank: int = 0) -> dict[str, list[int]]:
    """Stream -> the steps that were read of it; fails at the first value that is not what its step makes it."""
    data = run.ranks(attempt).get(rank)
    return {stream: [] for stream in STREAMS} if data is None else steps_of(data)


def steps_of(data: RankData) -> dict[str, list[int]]:
    """The same of what was read of one rank."""
    return {
        "scalars": _scalars(data),
        "layers": _layers(data),
        "modules": _modules(data),
        "system": _system(data),
        "landscape": _landscape(data),
        "events": _events(data),
    }


def _scalars(data: RankData) -> list[int]:
    steps = data.scalars.step.view()
    np.testing.assert_array_equal(data.scalars.time.view(), START + steps)
    for name, value_of in (("loss", loss_of), ("ratio", lambda s: s / 7), ("rare", lambda s: float(-s))):
        step, value = data.scalars.column(name)
        np.testing.assert_array_equal(value, [value_of(s) for s in step.tolist()], err_msg=name)
        assert name != "rare" or (step % 3 == 0).all()
    return steps.tolist()


def _layers(data: RankData) -> list[int]:
    steps: list[int] = []
    for block in data.layers.blocks:
        assert block.names == NAMES
        np.testing.assert_array_equal(block.time.view(), START + block.step.view())
        steps += block.step.view().tolist()
        column = block.column("norm")
        if column is not None:
            own, there = column.step.view()[:, None], column.present()
            np.testing.assert_array_equal(column.value.view()[there], (own + np.arange(3))[there])
            np.testing.assert_array_equal(there[:, 2], own[:, 0] % 2 == 0)
            assert there[:, :2].all()
        rare = block.column("rare")
        if rare is not None:
            assert (rare.step.view() % 3 == 0).all()
    return steps


def _modules(data: RankData) -> list[int]:
    steps: list[int] = []
    for block in data.modules.blocks:
        assert block.names == NAMES[:2]
        steps += block.step.view().tolist()
        column = block.column("rms")
        if column is not None:
            np.testing.assert_array_equal(column.value.view(), column.step.view()[:, None] * [1, -1])
            assert column.present().all()
    return steps


def _system(data: RankData) -> list[int]:
    steps = np.round(data.system.time.view() - START).astype(np.int64)
    row, value = data.system.column("rss_gib")
    np.testing.assert_array_equal(value, steps[row] / 10)
    row, value = data.system.column("cpu_pct")
    np.testing.assert_array_equal(value, steps[row])
    assert (steps[row] % 2 == 0).all()
    return steps.tolist()


def _landscape(data: RankData) -> list[int]:
    for sample in data.landscape:
        step = sample.step
        assert (sample.time, sample.kind, sample.direction) == (START + step, "line", "update")
        assert (sample.radius, sample.baseline, sample.coords.tolist()) == (step, step, [-1, 0, 1])
        np.testing.assert_array_equal(sample.loss, [step, math.nan, step + 1])
    return [sample.step for sample in data.landscape]


def _events(data: RankData) -> list[int]:
    notes = [event for event in data.events if event.kind == "note"]
    for event in notes:
        step = event.step
        assert step is not None
        assert (event.fields["text"], event.fields["third"]) == (f"step {step}", step / 3)
    return [event.step for event in notes if event.step is not None]
