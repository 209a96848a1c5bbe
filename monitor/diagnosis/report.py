"""A diagnosis as JSON, which other programs read and which is kept stable, and as text for a terminal."""

from __future__ import annotations

import json
import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from monitor.diagnosis.incidents import Incident
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Severity
from monitor.diagnosis.timeline import Departure
from monitor.diagnosis.wording import count, number, word_for_incidents

VERSION = 1
"""Version of the JSON below."""
Verdict = Literal["healthy", "incident", "cannot tell"]
WIDTH = 100
TIMELINE_TOLD = 6
"""Departures that the text tells; the JSON has all of them."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the rules said about one run."""

    run: Mapping[str, Any]
    """``id``, ``name``, ``path``, ``state``; None where it does not come from a run directory."""
    steps: int
    """Last step that was looked at."""
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    """Worst first, then by onset."""
    incidents: tuple[Incident, ...] = ()
    """The findings that belong together, as one event each; worst first, then by onset."""
    abstained: tuple[Abstained, ...] = ()
    checked: tuple[str, ...] = field(default=())
    """Ids of the rules that gave an answer, found or not."""
    resumes: tuple[Mapping[str, Any], ...] = ()
    """``step``, ``verdict`` and ``text`` of a trainer's checks of its own resumes, the last ones; in the text alone."""

    def at_least(self, severity: Severity | str) -> tuple[Finding, ...]:
        """The findings of this severity or worse."""
        return tuple(f for f in self.findings if f.severity is not None and f.severity.at_least(severity))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values: non-finite numbers are the strings NaN, Infinity and -Infinity."""
        return plain(
            {
                "version": VERSION,
                "run": dict(self.run),
                "steps": self.steps,
                "verdict": self.verdict,
                "findings": [_finding(finding) for finding in self.findings],
                "incidents": [_incident(incident, self.findings) for incident in self.incidents],
                "abstained": [{"id": a.id, "needs": list(a.needs), "reason": a.reason} for a in self.abstained],
            }
        )

    def to_text(self) -> str:
        """The report for a terminal."""
        lines = [_headline(self), ""]
        for index, incident in enumerate(self.incidents, 1):
            lines += [*_told(index, incident), ""]
        gathered = {id(finding) for incident in self.incidents for finding in incident.findings}
        notes = [finding for finding in self.findings if id(finding) not in gathered]
        lines += [_wrap(f"for information: {f.id}  step {f.onset_step}: {f.summary}.") for f in notes]
        lines += [_wrap(f"resumed after step {r['step']}, {r['verdict']}: {r['text']}") for r in self.resumes]
        lines += _cannot_tell(self.abstained)
        return "\n".join(lines).rstrip() + "\n"


def _incident(incident: Incident, findings: Sequence[Finding]) -> dict[str, Any]:
    place = {id(finding): index for index, finding in enumerate(findings)}
    return {
        "id": _explaining(incident).id,
        "onset_step": incident.onset_step,
        "first_step": incident.first_step,
        "last_step": incident.last_step,
        "severity": str(incident.severity),
        "summary": incident.summary,
        "findings": [place[id(finding)] for finding in incident.findings],
        "layer": incident.layer,
        "rank": incident.rank,
        "causes": [_cause(cause) for cause in incident.causes],
        "remedy": _remedy(incident.remedy),
        "timeline": [
            {"signal": d.signal, "step": d.step, "layer": d.layer, "before": d.before, "value": d.value, "z": d.z}
            for d in incident.timeline
        ],
    }


def _explaining(incident: Incident) -> Finding:
    """The finding that explains the others."""
    return next((f for f in incident.findings if f.summary == incident.summary), incident.findings[0])


def _cause(cause: Cause) -> dict[str, Any]:
    return {"id": cause.id, "confidence": cause.confidence, "for": list(cause.supports), "against": list(cause.against)}


def _remedy(remedy: Remedy | None) -> dict[str, Any]:
    return {
        "text": remedy.text if remedy else "",
        "config_patch": dict(remedy.config_patch) if remedy else {},
        "snippet": remedy.snippet if remedy else "",
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.id,
        "severity": str(finding.severity),
        "onset_step": finding.onset_step,
        "first_step": finding.first_step,
        "last_step": finding.last_step,
        "layer": finding.layer,
        "rank": finding.rank,
        "summary": finding.summary,
        "evidence": dict(finding.evidence),
        "causes": [_cause(cause) for cause in finding.causes],
        "remedy": _remedy(finding.remedy),
    }


_NONFINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def plain(value: Any) -> Any:
    """``value`` with numpy types and non-finite numbers turned into what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, str) or value is None:
        return None if value is None else str(value)
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else _NONFINITE[str(float(value))]
    return str(value)


def _headline(report: Report) -> str:
    name = report.run.get("name") or report.run.get("id") or "this run"
    what = {
        "healthy": "healthy",
        "incident": word_for_incidents([incident.onset_step for incident in report.incidents]),
        "cannot tell": "cannot tell",
    }[report.verdict]
    notes = len(report.findings) - len(report.at_least(Severity.WARNING))
    extra = f", {count(notes, 'note')} for information" if notes else ""
    return f"{name}: {what}{extra} ({report.steps:,} steps, {len(report.checked)} rules answered)"


def _told(index: int, incident: Incident) -> list[str]:
    title = _explaining(incident).id
    lines = [_wrap(f"{index}. {incident.severity}  {title}  step {incident.onset_step}: {incident.summary}.")]
    if incident.layer:
        reason = next((str(f.evidence.get("layer_reason") or "") for f in incident.findings if f.layer), "")
        lines.append(_wrap(f"first layer: {incident.layer}" + (f" ({reason})" if reason else ""), 3))
    lines += _moved(incident.timeline)
    lines += [
        _wrap(f"also: {f.severity} {f.id}, step {f.onset_step}: {f.summary}.", 3)
        for f in incident.findings
        if f.summary != incident.summary
    ]
    lines += _why(incident.causes)
    if incident.remedy:
        lines.append(_wrap(f"do: {incident.remedy.text}", 3))
        if incident.remedy.config_patch:
            lines.append(_wrap(set_words(incident.remedy.config_patch), 7))
    return lines


def _moved(timeline: Sequence[Departure]) -> list[str]:
    if len(timeline) < 2:
        return []
    told = [
        f"step {d.step} {d.signal}{f' of {d.layer}' if d.layer else ''}"
        f" ({number(d.before)}, furthest {number(d.value)})"
        for d in timeline[:TIMELINE_TOLD]
    ]
    more = f"; and {len(timeline) - TIMELINE_TOLD} more" if len(timeline) > TIMELINE_TOLD else ""
    return [_wrap(f"moved, in order: {'; '.join(told)}{more}", 3)]


def _cannot_tell(abstained: Sequence[Abstained]) -> list[str]:
    """Rules that lack a signal, together; the others each with its reason."""
    lacking = [f"{a.id} ({', '.join(a.needs)})" for a in abstained if a.needs]
    lines = [_wrap(f"cannot tell {a.id}: {a.reason}") for a in abstained if not a.needs]
    return [*lines, _wrap(f"cannot tell, for lack of signals: {'; '.join(lacking)}")] if lacking else lines


def _why(causes: Sequence[Cause]) -> list[str]:
    lines = []
    if causes and causes[0].id == "unknown":
        lines.append(_wrap(f"cause: not certain; {'; '.join(causes[0].supports + causes[0].against)}", 3))
        causes = causes[1:]
    for place, cause in enumerate(causes[:3]):
        label = "   or:" if lines else "cause:"
        lines.append(_wrap(f"{label} {cause.id} ({cause.confidence:.0%}): {'; '.join(cause.supports)}", 3))
        if place == 0 and cause.against:
            lines.append(_wrap(f"but: {'; '.join(cause.against)}", 10))
    return lines


def set_words(patch: Mapping[str, Any]) -> str:
    """A configuration patch as what is added to the command line, quoted for a shell: ``--set optimizer.lr=0.001``."""
    return " ".join(shlex.join(["--set", f"{key}={_value(value)}"]) for key, value in patch.items())


def _value(value: Any) -> str:
    """As ``--set`` reads it: ``none`` turns a thing off."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(plain(value))


def _wrap(text: str, indent: int = 0) -> str:
    pad = " " * indent
    return textwrap.fill(text, WIDTH, initial_indent=pad, subsequent_indent=pad + "   ", break_on_hyphens=False)
