"""Live is post hoc: a run that grows row by row gives, at every look, what its past gives afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.live import LiveDiagnosis, Pace
from monitor.diagnosis.primitives import SpikeSettings, anchored_cusum, continued, robust_spikes
from monitor.diagnosis.primitives.continued import Continued
from monitor.diagnosis.report import Report
from monitor.diagnosis.rule import Finding
from monitor.diagnosis.view import Signals
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run
from monitor.signals import LAYER_CATALOGUE, MODULE_CATALOGUE, LayerMatrix
from tests.monitor.diagnosis.controls import CONTROLS
from tests.monitor.diagnosis.mishaps import MISHAPS, bloom

SAMPLES = Path(__file__).resolve().parents[3] / "sample_runs"
EAGER = Pace(soon_s=0, soon_share=1e9, seldom_s=0, seldom_share=1e9)


class Replay:
    """A run on disk that gets the rows of a view, step by step."""

    def __init__(self, folder: Path, signals: Signals, **writing: Any) -> None:
        self.path = create_run(folder, config=dict(signals.facts.config or {}))
        begin_attempt(self.path, planned_steps=signals.facts.planned_steps)
        self.writer = RankWriter(self.path, 0, **writing)
        self.rows: dict[int, dict[str, float]] = {}
        for name in signals.names:
            for step, value in zip(signals[name].step.tolist(), signals[name].value.tolist(), strict=True):
                self.rows.setdefault(step, {})[name] = value
        self.steps = sorted(self.rows)
        self.events = signals.events()
        self.matrices = {
            "layers": _there(LAYER_CATALOGUE, signals.layers), "modules": _there(MODULE_CATALOGUE, signals.modules)
        }  # fmt: skip
        for stream, matrices in self.matrices.items():
            names = next((list(matrix.names) for matrix in matrices.values()), [])
            if names and stream == "layers":
                self.writer.define_layers(names, [(1,)] * len(names))
            elif names:
                self.writer.define_modules(names)

    def write(self, after: int, upto: int) -> None:
        """The rows of steps in (after, upto]."""
        for event in self.events:
            if event.step is not None and after < event.step <= upto:
                self.writer.event(event.kind, event.step, **event.fields)
        for step in self.steps:
            if after < step <= upto:
                self.writer.scalars(step, float(step), self.rows[step])
                for stream, matrices in self.matrices.items():
                    stats = {stat: row for stat, matrix in matrices.items() if (row := _row(matrix, step))}
                    if stats:
                        getattr(self.writer, stream)(step, float(step), stats)
        assert self.writer.flush(60)


def _there(catalogue: Any, matrix: Callable[[str], LayerMatrix | None]) -> dict[str, LayerMatrix]:
    found = {stat: matrix(stat) for stat in catalogue}
    names = next((one.names for one in found.values() if one is not None), ())
    return {stat: one for stat, one in found.items() if one is not None and one.names == names}


def _row(matrix: LayerMatrix, step: int) -> tuple[np.ndarray, np.ndarray] | None:
    at = int(np.searchsorted(matrix.step, step))
    here = at < len(matrix.step) and matrix.step[at] == step
    return (matrix.value[at], matrix.present[at]) if here else None


def told(report: Report | None) -> dict[str, Any]:
    assert report is not None
    answer = report.to_dict()
    answer["run"] = {**answer["run"], "state": None}  # it goes on in one and has ended in the other
    return answer


def replayed(folder: Path, signals: Signals, marks: Sequence[int], **writing: Any) -> int:
    """Look at a growing run at each of ``marks``, then hold every look against the past of the whole; looks made."""
    replay = Replay(folder, signals, **writing)
    live = LiveDiagnosis(open_run(replay.path), pace=EAGER)
    looks: dict[int, dict[str, Any]] = {}
    at = 0
    for mark in marks:
        replay.write(at, mark)
        at = mark
        live.poll()
        looks[live.step] = told(live.report)
    replay.write(at, replay.steps[-1])
    replay.writer.close()
    whole = open_run(replay.path)
    for step, look in looks.items():
        assert look == told(diagnose(whole, until_step=step)), step
    return len(looks)


def marks_of(onset: int, steps: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    near = range(onset - 3, min(steps, onset + 12), 5)
    return sorted({*near, *rng.integers(1, steps + 1, 3).tolist(), 1, steps})


@pytest.mark.parametrize("make", MISHAPS)
def test_a_drawn_mishap_is_told_live_as_afterwards(tmp_path: Path, make: Any) -> None:
    truth = make(np.random.default_rng(1000), 320, 220)
    marks = marks_of(220, 320, 1)
    assert replayed(tmp_path, truth.signals, marks) >= len(marks) - 2


@pytest.mark.parametrize("make", CONTROLS[:4])
def test_a_healthy_run_is_told_live_as_afterwards(tmp_path: Path, make: Any) -> None:
    replayed(tmp_path, make(np.random.default_rng(1000), 240), marks_of(100, 240, 2))


def test_every_step_of_a_short_run(tmp_path: Path) -> None:
    truth = bloom(np.random.default_rng(3), 90, 50)
    assert replayed(tmp_path, truth.signals, list(range(1, 91))) == 90


@pytest.mark.parametrize("name", ["gpt-gradient-explosion", "gpt-one-batch-spike", "gpt-healthy"])
def test_a_real_run_replayed(tmp_path: Path, name: str) -> None:
    signals = Signals.from_run(open_run(SAMPLES / name))
    assert replayed(tmp_path, signals, marks_of(signals.last_step // 2, signals.last_step, 4)) > 5


def test_what_comes_first_later_is_not_known_yet() -> None:
    loss = 2 + np.random.default_rng(0).normal(0, 0.01, 60)
    late = Signals.from_arrays({"train_loss": loss, "reward": (np.arange(50, 60), np.ones(10))})
    assert late.until(40).names == ("train_loss",)
    assert late.names == ("train_loss", "reward")


# When the rules are asked, and what is news


def test_the_rules_are_asked_soon_when_something_stands_out_and_else_seldom(tmp_path: Path) -> None:
    truth = bloom(np.random.default_rng(5), 300, 200)
    replay = Replay(tmp_path, truth.signals)
    now = 0.0
    live = LiveDiagnosis(open_run(replay.path), clock=lambda: now, cost=lambda: 0.0)
    found: list[tuple[int, Finding]] = []
    for step in range(10, 300, 10):
        replay.write(step - 10, step)
        now += 2.0
        found += [(step, finding) for finding in live.poll()]
    replay.writer.close()
    calm = [step for step, finding in found if finding.onset_step < 195]
    assert not calm
    first = min(step for step, _ in found)
    alarm = min(finding.first_step for _, finding in found)
    assert alarm <= first <= alarm + 20, "one poll later at most, and the row that adds up the evidence"
    assert live.looks < 29 / 2, "most polls ask nothing"
    keys = [(finding.id, finding.onset_step, finding.severity) for _, finding in found]
    assert len(keys) == len(set(keys))


def test_a_costly_look_is_followed_by_a_long_pause() -> None:
    pace = Pace(soon_s=1, soon_share=0.1, seldom_s=15, seldom_share=0.02)
    assert pace.due(1.0, 0.05, stands_out=True)
    assert not pace.due(5.0, 2.0, stands_out=True)
    assert pace.due(20.0, 2.0, stands_out=True)
    assert not pace.due(20.0, 2.0, stands_out=False)
    assert pace.due(100.0, 2.0, stands_out=False)


def test_a_finding_is_told_once_and_again_when_it_is_worse(tmp_path: Path) -> None:
    """A spike is a warning while it may come back, and critical once the loss is lost."""
    truth = bloom(np.random.default_rng(5), 260, 200)
    replay = Replay(tmp_path, truth.signals)
    live = LiveDiagnosis(open_run(replay.path), pace=EAGER)
    news: list[Finding] = []
    for step in range(180, 261, 4):
        replay.write(0 if step == 180 else step - 4, step)
        news += live.poll()
    replay.writer.close()
    by_rule: dict[str, list[Finding]] = {}
    for finding in news:
        by_rule.setdefault(finding.id, []).append(finding)
    assert by_rule
    for findings in by_rule.values():
        ranks = [finding.severity.rank for finding in findings if finding.severity is not None]
        assert ranks == sorted(set(ranks)), "each time worse than before"


def test_what_was_found_before_a_resume_is_no_news(tmp_path: Path) -> None:
    truth = bloom(np.random.default_rng(5), 260, 200)
    replay = Replay(tmp_path, truth.signals)
    replay.write(0, 260)
    replay.writer.close()
    assert LiveDiagnosis(open_run(replay.path), pace=EAGER).poll()
    assert not LiveDiagnosis(open_run(replay.path), since=260, pace=EAGER).poll()


# Detectors that go on


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 200), min_size=1, max_size=5), st.booleans())
def test_a_detector_that_goes_on_says_what_a_new_one_says(seed: int, cuts: list[int], revised: bool) -> None:
    rng = np.random.default_rng(seed)
    value = np.exp(rng.standard_t(3, 200) * 0.05) * np.where(np.arange(200) > 150, 1.3, 1.0)
    value[rng.integers(0, 200, 3)] = [np.nan, np.inf, 0.0]
    spikes, drifts = Continued(), Continued()
    for cut in [*sorted(cuts), 200]:
        part = value[:cut].copy()
        if revised and cut < 200:
            part[rng.integers(cut)] *= 1.01  # a late value: what follows must not rest on the old one
        gates = [cut // 2] if revised else [40]
        mine = robust_spikes(part, SpikeSettings(), gates=gates, continued=spikes)
        fresh = robust_spikes(part, SpikeSettings(), gates=gates)
        np.testing.assert_array_equal(mine.z, fresh.z)
        np.testing.assert_array_equal(mine.expected, fresh.expected)
        assert mine.spikes == fresh.spikes
        goes_on = anchored_cusum(part, gates=gates, continued=drifts)
        anew = anchored_cusum(part, gates=gates)
        np.testing.assert_array_equal(goes_on.score, anew.score)
        assert goes_on.drifts == anew.drifts


def test_rows_that_stand_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continued, "CHUNK", 7)
    looked_at = 0

    def push(detector: list[float], row: list[float]) -> tuple[float, float]:
        nonlocal looked_at
        looked_at += 1
        return row[0], 0.0

    kept: Continued[list[float]] = Continued()
    value = np.arange(50.0)
    for stop in (20, 30, 50):
        said, _ = kept.over(list, push, value[:stop])
        np.testing.assert_array_equal(said[:, 0], value[:stop])
    assert looked_at == 50
