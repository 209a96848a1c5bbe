"""Rules in, report out: the same code for a run that is going on and for one that has ended."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from monitor.diagnosis.causes import rank
from monitor.diagnosis.context import lr_jump_steps, span
from monitor.diagnosis.incidents import incidents
from monitor.diagnosis.remedies import changes_only, remedy_for
from monitor.diagnosis.report import Report, Verdict
from monitor.diagnosis.rule import Abstained, Finding, Rule, Severity
from monitor.diagnosis.rules import RULES
from monitor.diagnosis.view import Signals

if TYPE_CHECKING:
    from monitor.runfile.reader import Run

MOST_FINDINGS = 20
"""Findings of one rule that are told one by one, the worst; the rest are counted in the last one's evidence."""


def diagnose(
    run: Run | Signals | str | os.PathLike[str], *, until_step: int | None = None, rules: Sequence[Rule] = RULES
) -> Report:
    """What ``rules`` say about ``run``, a run directory's path, an opened run or a view of plain arrays.

    ``until_step`` gives the report as it stood when that step was the last one, which is what a live view showed then.

    Raises:
        RunError: the path is not a run directory that can be read.
    """
    signals = _view(run).until(until_step)
    findings: list[Finding] = []
    abstained: list[Abstained] = []
    for rule in rules:
        answer = _ask(rule, signals)
        if isinstance(answer, Abstained):
            abstained.append(answer)
        else:
            findings.extend(answer)
    findings.sort(key=lambda f: (-_severity(f).rank, f.onset_step, f.first_step))
    facts = signals.facts
    silent = {a.id for a in abstained}
    return Report(
        run={"id": facts.id, "name": facts.name, "path": facts.path, "state": facts.state},
        steps=signals.last_step,
        verdict=_verdict(findings, any(rule.essential and rule.id in silent for rule in rules)),
        findings=tuple(findings),
        incidents=incidents(findings, signals),
        abstained=tuple(abstained),
        checked=tuple(rule.id for rule in rules if rule.id not in silent),
        resumes=tuple(_resumes(signals)[-MOST_FINDINGS:]),
    )


def _resumes(signals: Signals) -> list[dict[str, Any]]:
    """What a trainer found when it checked its resumes."""
    checks = [(event.step, event.fields) for event in signals.events("fidelity")]
    return [
        {"step": step, "verdict": _line(fields["verdict"]), "text": _line(fields["text"])}
        for step, fields in checks
        if step is not None and isinstance(fields.get("verdict"), str) and isinstance(fields.get("text"), str)
    ]


def _line(text: str) -> str:
    """On one line, printable and of bounded length: it lies in a run directory."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(text[:2000].split()))[:600]


def _view(run: Run | Signals | str | os.PathLike[str]) -> Signals:
    if isinstance(run, Signals):
        return run
    if isinstance(run, str | os.PathLike):
        from monitor.runfile.reader import open_run  # pyarrow is slow to import and arrays do not need it

        run = open_run(run)
    return Signals.from_run(run)


def _ask(rule: Rule, signals: Signals) -> Abstained | list[Finding]:
    missing = rule.missing(signals)
    if missing:
        reason = f"{', '.join(missing).replace('|', ' or ')} not recorded"
        return Abstained(reason, tuple(name for need in missing for name in need.split("|")), rule.id)
    verdict = rule.check(signals)
    if isinstance(verdict, Abstained):
        return replace(verdict, id=rule.id)
    found = [verdict] if isinstance(verdict, Finding) else list(verdict or ())
    return [_complete(finding, rule, signals) for finding in _worst(found, rule)]


def _worst(found: list[Finding], rule: Rule) -> list[Finding]:
    if len(found) <= MOST_FINDINGS:
        return found
    order = sorted(found, key=lambda f: (-(f.severity or rule.severity).rank, f.onset_step))
    *kept, last = order[:MOST_FINDINGS]
    return [*kept, replace(last, evidence={**last.evidence, "further_findings": len(found) - MOST_FINDINGS})]


def _complete(finding: Finding, rule: Rule, signals: Signals) -> Finding:
    """The finding with its id, severity, causes and remedy."""
    onset = _onset(finding, signals)
    named = replace(finding, id=rule.id, severity=finding.severity or rule.severity, onset_step=onset)
    weighed = replace(named, causes=named.causes or rank(named, signals))
    remedy = changes_only(weighed.remedy, signals) if weighed.remedy else remedy_for(weighed, signals, rule.remedy)
    return replace(weighed, remedy=remedy)


def _onset(finding: Finding, signals: Signals) -> int:
    """The finding's onset, or that of a jump of the learning rate just before: an update shows one step later."""
    near = span(signals, 2)
    jumps = [step for step in lr_jump_steps(signals) if finding.onset_step - near <= step <= finding.onset_step]
    return min(jumps, default=finding.onset_step)


def _severity(finding: Finding) -> Severity:
    return finding.severity or Severity.INFO


def _verdict(findings: list[Finding], essential_abstained: bool) -> Verdict:
    if any(_severity(finding).at_least(Severity.WARNING) for finding in findings):
        return "incident"
    return "cannot tell" if essential_abstained and not findings else "healthy"
