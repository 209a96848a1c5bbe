"""What a threshold would have raised on runs that are there already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.rule import Abstained, Finding, Rule
from monitor.diagnosis.settings import Threshold, with_thresholds
from monitor.diagnosis.view import Signals


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run under a rule as it is and under the rule as it might be."""

    name: str
    steps: int
    before: tuple[Finding, ...]
    """Findings with the rule's own thresholds."""
    after: tuple[Finding, ...]
    """Findings with the thresholds that are tried."""
    abstained: Abstained | None
    """Why the rule could not tell, with the thresholds that are tried."""

    @property
    def changed(self) -> bool:
        return _told(self.before) != _told(self.after)


def _told(findings: Sequence[Finding]) -> list[tuple[int, str]]:
    return [(finding.onset_step, str(finding.severity)) for finding in findings]


@dataclass(frozen=True, slots=True)
class Backtest:
    """The comparison over many runs."""

    rule: str
    thresholds: Mapping[str, Threshold]
    runs: tuple[Comparison, ...]

    def alarms(self, which: str) -> int:
        """Findings of warning or worse, ``which`` being ``before`` or ``after``."""
        return sum(len(_alarms(getattr(run, which))) for run in self.runs)

    def runs_with_alarm(self, which: str) -> int:
        return sum(bool(_alarms(getattr(run, which))) for run in self.runs)

    def per_thousand_steps(self, which: str) -> float | None:
        """Alarms per 1,000 steps; None without a step."""
        steps = sum(run.steps for run in self.runs)
        return 1000 * self.alarms(which) / steps if steps else None


def _alarms(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity is not None and finding.severity.at_least("warning")]


def backtest(runs: Iterable[tuple[str, Signals]], rule: Rule, thresholds: Mapping[str, Threshold]) -> Backtest:
    """``rule`` on every run (its name and signals), as it is and with ``thresholds``.

    Raises:
        ConfigError: a threshold's name or value is not accepted.
    """
    tried = with_thresholds(rule, thresholds)
    compared = []
    for name, signals in runs:
        before, after = diagnose(signals, rules=[rule]), diagnose(signals, rules=[tried])
        why = after.abstained[0] if after.abstained else None
        compared.append(Comparison(name, signals.last_step, before.findings, after.findings, why))
    return Backtest(rule.id, dict(thresholds), tuple(compared))
