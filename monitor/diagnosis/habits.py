"""What a training does again and again without harm: from the fourth time on it is information."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from monitor.diagnosis.rule import Finding, Severity

HABIT = 3
"""Excursions told as warnings that came to nothing, after which one of up to twice their size is information. Our
judgement."""


def habits(findings: Iterable[Finding], came_to_nothing: Callable[[Finding], bool]) -> list[Finding]:
    """The same findings, earliest first, each with its ``peak_ratio`` in the evidence; as information from where on the
    run has shown ``HABIT`` warnings of the size that came to nothing: the next one is what this training does (a target
    network that is renewed, a target with heavy tails), not something that broke.
    """
    told: list[Finding] = []
    passed: list[float] = []
    for finding in findings:
        if finding.severity is not Severity.WARNING or not came_to_nothing(finding):
            told.append(finding)
            continue
        ratio = float(finding.evidence["peak_ratio"])
        habit = sum(ratio <= 2 * earlier for earlier in passed) >= HABIT
        told.append(replace(finding, severity=Severity.INFO) if habit else finding)
        passed.append(ratio)
    return told
