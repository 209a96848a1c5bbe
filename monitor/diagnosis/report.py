"""A diagnosis as JSON, which other programs read and which is kept stable, and as text for a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from monitor.diagnosis.rule import Abstained, Cause, Finding, Severity
from monitor.diagnosis.wording import number, word_for_steps

VERSION = 1
"""Version of the JSON below."""
Verdict = Literal["healthy", "incident", "cannot tell"]
WIDTH = 100


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
                "abstained": [{"id": a.id, "needs": list(a.needs), "reason": a.reason} for a in self.abstained],
            }
        )

    def to_text(self) -> str:
        """The report for a terminal."""
        lines = [_headline(self), ""]
        for index, finding in enumerate(self.findings, 1):
            lines += [*_told(index, finding), ""]
        lines += [_wrap(f"resumed after step {r['step']}, {r['verdict']}: {r['text']}") for r in self.resumes]
        lines += [_wrap(f"cannot tell {a.id}: {a.reason}") for a in self.abstained]
        return "\n".join(lines).rstrip() + "\n"


def _finding(finding: Finding) -> dict[str, Any]:
    remedy = finding.remedy
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
        "causes": [
            {"id": c.id, "confidence": c.confidence, "for": list(c.supports), "against": list(c.against)}
            for c in finding.causes
        ],
        "remedy": {
            "text": remedy.text if remedy else "",
            "config_patch": dict(remedy.config_patch) if remedy else {},
            "snippet": remedy.snippet if remedy else "",
        },
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
        "incident": f"incident: {word_for_steps(report.at_least(Severity.WARNING))}",
        "cannot tell": "cannot tell",
    }[report.verdict]
    notes = len(report.findings) - len(report.at_least(Severity.WARNING))
    extra = f", {notes} for information" if notes else ""
    return f"{name}: {what}{extra} ({report.steps:,} steps, {len(report.checked)} rules answered)"


def _told(index: int, finding: Finding) -> list[str]:
    lines = [_wrap(f"{index}. {finding.severity}  {finding.id}  step {finding.onset_step}: {finding.summary}.")]
    if finding.layer:
        lines.append(_wrap(f"first layer: {finding.layer}" + _because(finding), 3))
    lines += _why(finding.causes)
    if finding.remedy:
        lines.append(_wrap(f"do: {finding.remedy.text}", 3))
        if finding.remedy.config_patch:
            patch = "  ".join(f"--set {key}={_value(value)}" for key, value in finding.remedy.config_patch.items())
            lines.append(_wrap(patch, 7))
    return lines


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


def _because(finding: Finding) -> str:
    reason = finding.evidence.get("layer_reason")
    return f" ({reason})" if reason else ""


def _value(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _wrap(text: str, indent: int = 0) -> str:
    pad = " " * indent
    return textwrap.fill(text, WIDTH, initial_indent=pad, subsequent_indent=pad + "   ", break_on_hyphens=False)
