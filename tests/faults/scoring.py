"""What was said of one training, against the truth about it: the definitions of the benchmark's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.incidents import Incident
from monitor.diagnosis.report import Report
from monitor.diagnosis.rule import Finding
from monitor.diagnosis.view import Signals
from monitor.runfile.reader import open_run
from tests.faults.cases import Case
from tests.faults.harness import layers_of, onset_of

EARLY = 2
"""Steps before the onset at which an alarm still is one for this fault: rules look at a window."""
MERGED = 20
"""Alarms within so many steps are one event."""
EVERY = 25
"""Steps between two looks of the doctor at a run that goes on."""
WAITS = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200)
"""Steps after the onset at which it is looked whether the alarm is there already."""
LONGEST_INTERVAL = 100
"""Steps between two measurements of what is measured the least often: an onset may be that much early."""
SILENT_AFTER = 200
SPREADS = 3.0


@dataclass(frozen=True, slots=True)
class Truth:
    """What is to be scored against."""

    case: str
    seed: int
    onset: int | None
    """None for a control."""
    window: int
    lasts: bool
    last_step: int


@dataclass(frozen=True, slots=True)
class Events:
    """Alarms, those within twenty steps merged, as true and false ones."""

    true: int
    false: int
    late: int
    """Of the false ones, those after the window of a fault that goes on, about nothing before it."""
    first_true: int | None
    """Step of the first true alarm."""


def events(alarms: Sequence[tuple[int, int]], truth: Truth) -> Events:
    """Merge ``alarms``, pairs of the step of the alarm and of the onset that it tells of, and hold them against the
    truth.

    An event is true when one of its alarms lies from two steps before the onset to the end of the fault's window, as
    the design notes define it; what the same fault brings about later is a false one.
    """
    merged: list[list[tuple[int, int]]] = []
    for alarm in sorted(alarms):
        if merged and alarm[0] - merged[-1][-1][0] <= MERGED:
            merged[-1].append(alarm)
        else:
            merged.append([alarm])
    right = [[alarm[0] for alarm in event if _is_true(alarm, truth)] for event in merged]
    late = [
        not steps and any(_is_late(alarm, truth) for alarm in event) for event, steps in zip(merged, right, strict=True)
    ]
    true = sum(map(bool, right))
    return Events(true, len(merged) - true, sum(late), min((step for event in right for step in event), default=None))


def _is_about(alarm: tuple[int, int], truth: Truth) -> bool:
    step, onset = alarm
    return truth.onset is not None and step >= truth.onset - EARLY and onset >= truth.onset - LONGEST_INTERVAL


def _is_true(alarm: tuple[int, int], truth: Truth) -> bool:
    return truth.onset is not None and _is_about(alarm, truth) and alarm[0] <= truth.onset + truth.window


def _is_late(alarm: tuple[int, int], truth: Truth) -> bool:
    return truth.lasts and _is_about(alarm, truth)


@dataclass(frozen=True, slots=True)
class Score:
    """One training. None where there is nothing to score, as the layer of a fault without a place."""

    case: str
    seed: int
    steps: int
    onset: int | None
    true_events: int
    false_events: int
    late_events: int = 0
    """Of the false ones, those after the window of a fault that goes on."""
    incidents: tuple[int, int] | None = None
    """True and false events where an alarm is the first one of an incident, as the page tells it, and what joins the
    incident later is none; None of a detector that has no incidents."""
    hit: bool | None = None
    """A finding in the accept set was there before the window was over."""
    silent: bool | None = None
    """No scalar of the run left that of its healthy twin."""
    manifest_step: int | None = None
    alarm_step: int | None = None
    """First step looked at, at which the finding was there."""
    reported_onset: int | None = None
    lead: int | None = None
    """Steps from the alarm to the peak of the loss, of faults that the gradient shows first."""
    layer: str | None = None
    layer_right: bool | None = None
    causes: tuple[str, ...] = ()
    """Of the incident, likeliest first; "unknown" included."""
    confidence: float | None = None
    """Of the first cause; None without one, and where the first one is "unknown"."""
    cause_right: bool | None = None
    cause_in_three: bool | None = None
    true_cause: str | None = None
    fixed: bool | None = None
    """The incident's configuration patch, in force from the start, brings the twin's final loss."""
    patch: dict[str, object] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    """Findings of warning or worse as ``id@onset``, as the run's end shows them, worst first."""


def judge(case: Case, seed: int, run_dir: Path, *, silent: tuple[bool, int | None] | None = None) -> Score:
    """Score the doctor on the run in ``run_dir``, seen in order."""
    signals = Signals.from_run(open_run(run_dir))
    last = signals.last_step
    truth = truth_of(case, seed, last)
    final = diagnose(signals)
    said = tuple(f"{finding.id}@{finding.onset_step}" for finding in final.at_least("warning"))
    looks = [diagnose(signals, until_step=step) for step in range(EVERY, last, EVERY)]
    alarms = {(f.first_step, f.onset_step) for report in [*looks, final] for f in report.at_least("warning")}
    found = events(sorted(alarms), truth)
    told = {(i.first_step, i.onset_step) for report in [*looks, final] for i in report.incidents}
    grouped = events(sorted(told), truth)
    incidents = (grouped.true, grouped.false)
    if truth.onset is None:
        return Score(case.name, seed, last, None, found.true, found.false, incidents=incidents, said=said)
    alarm = _first_look(case, truth, signals)
    incident, finding = _answer(case, truth, final)
    return Score(
        case.name,
        seed,
        last,
        truth.onset,
        found.true,
        found.false,
        found.late,
        incidents,
        hit=alarm is not None,
        silent=silent[0] if silent else None,
        manifest_step=silent[1] if silent else None,
        alarm_step=alarm,
        reported_onset=finding.onset_step if finding else None,
        lead=_lead(signals, truth, alarm) if case.gradient_led else None,
        layer=incident.layer if incident else None,
        layer_right=_layer_right(case, seed, incident) if case.places else None,
        causes=tuple(cause.id for cause in incident.causes) if incident else (),
        confidence=_confidence(incident),
        cause_right=incident is not None and incident.causes[:1] != () and incident.causes[0].id in case.causes,
        cause_in_three=incident is not None and not set(_three(incident)).isdisjoint(case.causes),
        true_cause=case.causes[0],
        patch=dict(incident.remedy.config_patch) if incident and incident.remedy else {},
        said=said,
    )


def truth_of(case: Case, seed: int, last_step: int) -> Truth:
    return Truth(case.name, seed, None if case.healthy else onset_of(case, seed), case.window, case.lasts, last_step)


def _confidence(incident: Incident | None) -> float | None:
    first = incident.causes[0] if incident and incident.causes else None
    return None if first is None or first.id == "unknown" else first.confidence


def _three(incident: Incident) -> list[str]:
    return [cause.id for cause in incident.causes if cause.id != "unknown"][:3]


def _first_look(case: Case, truth: Truth, signals: Signals) -> int | None:
    """The first step looked at, from the onset to the end of the window, whose report has a right finding."""
    assert truth.onset is not None
    for wait in sorted({*(w for w in WAITS if w < truth.window), truth.window}):
        step = truth.onset + wait
        if step > truth.last_step and wait != truth.window:
            continue
        report = diagnose(signals, until_step=min(step, truth.last_step))
        if any(_is_right(case, truth, finding) for finding in report.at_least("warning")):
            return min(step, truth.last_step)
    return None


def _is_right(case: Case, truth: Truth, finding: Finding) -> bool:
    assert truth.onset is not None
    return finding.id in case.accept and finding.first_step >= truth.onset - EARLY


def _answer(case: Case, truth: Truth, final: Report) -> tuple[Incident | None, Finding | None]:
    """The incident of the run's end that answers the fault, and the finding of it that is right."""
    assert truth.onset is not None
    for incident in sorted(final.incidents, key=lambda one: one.onset_step):
        for finding in incident.findings:
            worth = finding.severity is not None and finding.severity.at_least("warning")
            if worth and _is_right(case, truth, finding):
                return incident, finding
    return None, None


def _layer_right(case: Case, seed: int, incident: Incident | None) -> bool:
    if incident is None or incident.layer is None:
        return False
    name = incident.layer
    return any(name.startswith(start) or f"{name}." == start for start in layers_of(case, seed))


def _lead(signals: Signals, truth: Truth, alarm: int | None) -> int | None:
    """Steps from the alarm to the peak of the loss within the window, or to its first value that is not finite."""
    if alarm is None or truth.onset is None:
        return None
    loss = signals["train_loss"].between(truth.onset, truth.onset + truth.window)
    if len(loss) == 0:
        return None
    lost = np.flatnonzero(~np.isfinite(loss.value))
    row = int(lost[0]) if len(lost) else int(np.argmax(loss.value))
    return int(loss.step[row]) - alarm


# Silent or manifest --------------------------------------------------------------------------------------------------

SCALARS = ("train_loss", "grad_norm_preclip", "step_time_s")
"""What an ordinary log holds: whatever else the monitor records, who has no monitor does not see it."""
TIMED_ROWS = 25
"""Step times are medians of so many rows, because single ones are the machine's."""
LEAST_SPREAD = {"train_loss": 1e-6, "grad_norm_preclip": 1e-6, "step_time_s": 0.02}
"""Of the logarithm; five healthy runs may agree by chance."""


def departure(run_dir: Path, twin_dir: Path, healthy: Sequence[Path], onset: int) -> tuple[bool, int | None]:
    """Whether the fault is silent, and the step at which it is not: the first one, within 200, at which a scalar is
    further from the twin's than three times the spread (standard deviation of the logarithm) of the healthy runs at
    that step, or is no longer finite."""
    run, twin = (Signals.from_run(open_run(path)) for path in (run_dir, twin_dir))
    others = [Signals.from_run(open_run(path)) for path in healthy]
    first = min(
        (step for name in SCALARS if (step := _departed(name, run, twin, others, onset)) is not None), default=None
    )
    return first is None, first


def _departed(name: str, run: Signals, twin: Signals, healthy: Sequence[Signals], onset: int) -> int | None:
    steps = np.arange(onset, onset + SILENT_AFTER + 1)
    mine, theirs = _logarithm(run, name, steps), _logarithm(twin, name, steps)
    seeds = np.array([_logarithm(one, name, steps) for one in healthy])
    with np.errstate(invalid="ignore"):
        spread = np.std(seeds, axis=0)
        apart = np.abs(mine - theirs) > SPREADS * np.maximum(spread, LEAST_SPREAD[name])
    lost = np.isfinite(theirs) & _is_lost(run, name, steps)
    rows = np.flatnonzero(apart | lost)
    return int(steps[rows[0]]) if len(rows) else None


def _logarithm(signals: Signals, name: str, steps: np.ndarray) -> np.ndarray:
    """float[len(steps)]; NaN where there is no row or no positive value."""
    series = signals[name]
    found = np.full(len(steps), np.nan)
    _, rows, places = np.intersect1d(series.step, steps, return_indices=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found[places] = np.log(series.value[rows])
    if name == "step_time_s":  # a median over a row that is missing is none
        found[TIMED_ROWS - 1 :] = np.median(np.lib.stride_tricks.sliding_window_view(found, TIMED_ROWS), axis=1)
        found[: TIMED_ROWS - 1] = np.nan
    return found


def _is_lost(signals: Signals, name: str, steps: np.ndarray) -> np.ndarray:
    """bool[len(steps)]: a row is there and its value is not finite."""
    series = signals[name]
    return np.isin(steps, series.step[~np.isfinite(series.value)])


def judged(asked: tuple[Case, int, Path, tuple[Path, list[Path]] | None]) -> Score:
    """:func:`judge` of (case, seed, run, twin and healthy runs) in another process, which has to find it by name."""
    case, seed, path, held = asked
    silent = departure(path, held[0], held[1], onset_of(case, seed)) if held else None
    return judge(case, seed, path, silent=silent)
