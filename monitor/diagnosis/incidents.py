"""Findings that belong together are one incident: what moved when, why, and what to do, told once.

Two findings belong together when one begins before the other is over, or close behind it. The incident's causes are
those of the finding that explains the others: "non-finite because of a gradient explosion" is an explanation only
until the explosion itself, a finding of the same incident, is explained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monitor.diagnosis.context import span
from monitor.diagnosis.rule import Cause, Finding, Remedy, Severity
from monitor.diagnosis.timeline import Departure, departures
from monitor.diagnosis.view import Signals

GAP_STEPS = 20
"""A finding that begins this soon after another one has ended is of the same incident; as alarms are merged in the
benchmark of the design notes."""
OVERWRITTEN = "weights-overwritten"
FROM_OUTSIDE = (
    "lr-schedule", "optimizer-change", "odd-input", "resume-mismatch", "mode-mismatch", "missing-zero-grad",
    OVERWRITTEN,
)  # fmt: skip
"""Findings about what was done to the training. No loss, gradient or weight brings them about, so that one of them at
the beginning of an event explains what the training then did."""
LOCATED = ("dead-units", "vanishing-gradient", "attention-collapse")
"""Findings about one place in the model. They explain a loss that went to another level at that time, of which the
loss alone can say no more than that the data may have changed."""
UNSPECIFIC = ("data-change", "bad-batch", "unknown")
EXCURSIONS = ("loss-spike", "gradient-explosion")
OF_THE_MACHINE = (
    "straggler", "exposed-communication", "stall", "memory-growth", "slower-steps", "input-bound", "low-device-use",
)  # fmt: skip
"""Findings about time and memory. They explain no loss and no gradient, and none of those explains them, so that they
are incidents of their own even when they happen at the same time."""
SAME_TIME_STEPS = 2
"""A finding for information explains an event only when it begins with it."""
LONG_STEPS = 100
"""Steps of a finding that go on being an event. A level that stays raised to the end of the run does not gather all
that happens later."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One event in the training, with everything that was found about it."""

    onset_step: int
    first_step: int
    """Step of the first alarm."""
    last_step: int
    severity: Severity
    summary: str
    """That of the finding that explains the others."""
    findings: tuple[Finding, ...]
    """By onset; at least one of them is of warning or worse."""
    layer: str | None
    """The layer that moved first."""
    rank: int | None
    causes: tuple[Cause, ...]
    remedy: Remedy | None
    timeline: tuple[Departure, ...]
    """Every signal that left its own baseline, earliest first."""


def incidents(findings: Sequence[Finding], signals: Signals) -> tuple[Incident, ...]:
    """The incidents among ``findings``, worst first, then by onset. Findings for information join, never begin, one."""
    near = span(signals, GAP_STEPS)
    groups: list[list[Finding]] = []
    for finding in sorted(findings, key=lambda f: (f.onset_step, f.first_step)):
        group = next((group for group in groups if _joins(finding, group, near)), None)
        if group is None:
            groups.append([finding])
        else:
            group.append(finding)
    told = [_incident(group, signals) for group in groups if any(_is_worse_than_info(f) for f in group)]
    return tuple(sorted(told, key=lambda i: (-i.severity.rank, i.onset_step)))


def _joins(finding: Finding, group: list[Finding], near: int) -> bool:
    alike = (finding.id in OF_THE_MACHINE) == (group[0].id in OF_THE_MACHINE)
    return alike and finding.onset_step <= _reach(group) + near


def _reach(group: list[Finding]) -> int:
    return max(min(f.last_step, f.onset_step + LONG_STEPS) for f in group)


def _is_worse_than_info(finding: Finding) -> bool:
    return finding.severity is not None and finding.severity.at_least(Severity.WARNING)


def _incident(group: list[Finding], signals: Signals) -> Incident:
    root = explaining(group)
    onset = min(f.onset_step for f in group if _is_worse_than_info(f) or f is root)
    last = max(f.last_step for f in group)
    return Incident(
        onset_step=onset,
        first_step=min(f.first_step for f in group),
        last_step=last,
        severity=max((f.severity for f in group if f.severity is not None), key=lambda s: s.rank),
        summary=root.summary,
        findings=tuple(group),
        layer=_layer(root, group),
        rank=root.rank if root.rank is not None else next((f.rank for f in group if f.rank is not None), None),
        causes=root.causes,
        remedy=root.remedy,
        timeline=departures(signals, onset, last),
    )


def _layer(root: Finding, group: list[Finding]) -> str | None:
    """Where it began: the tensor that was written over, when that is what happened; else as the explaining finding
    says, else as the first one that says."""
    written = next((f.layer for f in group if f.id == OVERWRITTEN and _may_begin(f, root)), None)
    return written or root.layer or next((f.layer for f in group if f.layer), None)


def _from_outside(finding: Finding, told: Finding) -> bool:
    """Whether nothing in the model can have brought ``finding`` about; of weights, that they shrink: no update does
    that for long, only their decay. Not so where ``told`` is an excursion that was there at once, as no decay makes
    one: the updates after it shrink what had been learnt before."""
    if finding.id != "weight-norm":
        return finding.id in FROM_OUTSIDE
    at_once = told.id in EXCURSIONS and told.first_step - told.onset_step <= SAME_TIME_STEPS
    at_once &= told.onset_step <= finding.onset_step + SAME_TIME_STEPS
    return float(finding.evidence.get("after", 0)) < finding.evidence.get("before", 0) and not at_once


def _may_begin(outside: Finding, finding: Finding) -> bool:
    """Whether ``outside`` came soon enough before the alarm of ``finding`` to be what it is about."""
    near = GAP_STEPS if _is_worse_than_info(outside) else SAME_TIME_STEPS
    return abs(outside.onset_step - finding.onset_step) <= near and outside.onset_step <= finding.first_step


def _is_behind(located: Finding, finding: Finding) -> bool:
    """Whether ``located`` is what ``finding`` is about: it began with it, or was measured the next time after it."""
    if located.id not in LOCATED or not _is_worse_than_info(located):
        return False
    if finding.id == "weight-norm":  # of all weights; one block's growth is that of the place
        return bool(located.layer and (finding.layer or "").startswith(f"{located.layer}."))
    near = SAME_TIME_STEPS if located.id == "vanishing-gradient" else LONG_STEPS
    unspecific = bool(finding.causes) and finding.causes[0].id in UNSPECIFIC
    return unspecific and -SAME_TIME_STEPS <= located.onset_step - finding.onset_step <= near


def explaining(group: Sequence[Finding]) -> Finding:
    """The finding of ``group`` whose causes explain the others: what came from outside at the beginning of the worst
    and earliest one, else back from that one along causes that are findings of the group themselves."""
    finding = min(group, key=lambda f: (-(f.severity or Severity.INFO).rank, f.onset_step, f.first_step))
    outside = [f for f in group if _from_outside(f, finding) and _may_begin(f, finding)]
    if any(f.id in LOCATED and _is_worse_than_info(f) for f in group):
        # That weights were written over is how it came about; what it is, units or logits, says more.
        outside = [f for f in outside if f.id != OVERWRITTEN]
    if outside:
        began = min(outside, key=lambda f: (-(f.severity or Severity.INFO).rank, f.onset_step))
        # Where both name the same cause, the one that weighed it against others knows more.
        return finding if [c.id for c in finding.causes[:1]] == [c.id for c in began.causes[:1]] else began
    if located := [f for f in group if _is_behind(f, finding)]:
        return min(located, key=lambda f: (LOCATED.index(f.id), f.onset_step))
    seen = {finding.id}
    while True:
        cause = next((c.id for c in finding.causes if c.id != "unknown"), None)
        behind = [f for f in group if f.id == cause and f.onset_step <= finding.onset_step and f.id not in seen]
        if not behind:
            return finding
        finding = behind[0]
        seen.add(finding.id)
