"""The diagnosis of a run that goes on: the same rules, asked again when it is worth it, with the same answers.

    live = LiveDiagnosis(open_run(path))
    while training: live.poll()      # reads on; asks the rules when something stands out, else seldom
                    live.report      # what diagnose(run, until_step=live.step) gives

A rule is a pure function of a view, so a live answer is made by the same function from what is there so far. What is
decided here is *when*. Two detectors, of spikes and of drifts, and an exact check for non-finite values look at every
new row of the loss and of the gradient norm; they cost some 20 us a row. When one of them speaks the rules are asked
soon, otherwise seldom (:class:`Pace`), so that their cost stays a fixed share of a processor however long the run is.

Where live and post hoc may differ. At a step s that was looked at, the report is ``diagnose(run, until_step=s)``, but
for the state in ``report.run``, as long as nothing about steps up to s is written after the look. Afterwards may come:
values that ``mon.log`` adds late, events of that step (a checkpoint that took its time, a replay), samples of the
machine, rows of the other ranks, and of a thinned run the rows round an incident and the interval in progress. The next
look has them. Between two looks the report is that of the last one.

Memory is that of the run's reader: eight bytes a scalar and step, and per-layer statistics up to the writer's budget
(256 MiB a stream); a detector keeps about a hundred rows. Nothing is thinned here, so nothing is lost by it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from monitor.diagnosis.context import DRIFT_SETTINGS, GRADIENT_SETTINGS, LOSS_SETTINGS
from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.primitives import DriftDetector, SpikeDetector
from monitor.diagnosis.report import Report
from monitor.diagnosis.rule import Finding, Severity
from monitor.diagnosis.view import Kept, Signals
from monitor.runfile.reader import Run
from monitor.signals import Signal

SAME_STEPS = 20
"""A rule's findings this close to one another are one, whose onset was seen better later. As alarms are merged in the
benchmark of the design notes."""


@dataclass(frozen=True, slots=True)
class Pace:
    """When the rules are asked again, in seconds and in shares of one processor. Our judgement."""

    soon_s: float = 1.0
    """After the last look, when something stands out."""
    soon_share: float = 0.10
    seldom_s: float = 15.0
    """When nothing does: for what only the rules see, such as units that die."""
    seldom_share: float = 0.02

    def due(self, waited_s: float, last_cost_s: float, stands_out: bool) -> bool:
        """Whether to look now: ``waited_s`` after a look that took ``last_cost_s`` of processor time."""
        least, share = (self.soon_s, self.soon_share) if stands_out else (self.seldom_s, self.seldom_share)
        return waited_s >= max(least, last_cost_s / share)


class Triggers:
    """Looks at every row of the loss and of the gradient norm once; says whether a look of the rules is worth it.

    Less strict than the rules, which know the warm-up, the gates and each other's signals: a trigger costs a look, no
    more.
    """

    def __init__(self) -> None:
        self._spikes = {
            "train_loss": (SpikeDetector(LOSS_SETTINGS), LOSS_SETTINGS.effect),
            "grad_norm_preclip": (SpikeDetector(GRADIENT_SETTINGS), GRADIENT_SETTINGS.effect),
        }
        self._drift = DriftDetector(DRIFT_SETTINGS)
        self._events = 0
        self._seen: dict[str, int] = {}
        """Last step looked at, by signal."""

    def stands_out(self, signals: Callable[[str], Signal]) -> bool:
        """Whether a row that is new since the last call is not finite, or begins a spike or a drift."""
        found = False
        for name, (detector, effect) in self._spikes.items():
            rows = signals(name).between(self._seen.get(name, -1) + 1, None)
            if not len(rows):
                continue
            self._seen[name] = int(rows.step[-1])
            for value in rows.value.tolist():
                found |= not math.isfinite(value)
                detector.push(value, effect)
                if name == "train_loss":
                    self._drift.push(value, DRIFT_SETTINGS.effect)
        events = sum(len(d.finish()) for d, _ in self._spikes.values()) + len(self._drift.finish())
        found |= events != self._events
        self._events = events
        return found


class LiveDiagnosis:
    """Follows one run and keeps its report up to date.

    Args:
        run: read on by :meth:`poll`.
        since: findings whose alarm is not after this step are known already: what was found before a resume.
        clock: monotonic seconds.
        cost: processor seconds of this process.
    """

    def __init__(
        self,
        run: Run,
        *,
        since: int = 0,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
        cost: Callable[[], float] = time.process_time,
    ) -> None:
        self.run = run
        self.step = 0
        """Step of the last look; 0 before the first."""
        self.report: Report | None = None
        """Of the last look."""
        self.looks = 0
        self._since = since
        self._pace = pace or Pace()
        self._clock, self._cost = clock, cost
        self._triggers = Triggers()
        self._kept: Kept = {}
        self._told: list[Finding] = []
        self._stands_out = False
        self._looked_at = clock()
        self._last_cost_s = 0.0

    def poll(self) -> list[Finding]:
        """Read on and look when it is time; the findings of warning or worse that are new, or worse than before."""
        self.run.refresh()
        if (self.run.last_step or 0) <= self.step:
            return []
        self._stands_out |= self._triggers.stands_out(self.run.series)
        if not self._pace.due(self._clock() - self._looked_at, self._last_cost_s, self._stands_out):
            return []
        return self.look()

    def look(self) -> list[Finding]:
        """Ask the rules now; as :meth:`poll`."""
        began = self._cost()
        self.report = diagnose(Signals.from_run(self.run, kept=self._kept))
        self._last_cost_s = self._cost() - began
        self._looked_at, self._stands_out = self._clock(), False
        self.step = self.report.steps
        self.looks += 1
        return [finding for finding in self.report.findings if self._is_news(finding)]

    def _is_news(self, finding: Finding) -> bool:
        severity = finding.severity or Severity.INFO
        if not severity.at_least(Severity.WARNING) or finding.first_step <= self._since:
            return False
        for index, told in enumerate(self._told):
            if told.id == finding.id and told.rank == finding.rank and _overlap(told, finding):
                worst = max(told.severity or severity, severity, key=lambda s: s.rank)
                self._told[index] = replace(finding, severity=worst)  # one that eases and worsens again is no news
                return worst is not told.severity
        self._told.append(finding)
        return True


def _overlap(told: Finding, finding: Finding) -> bool:
    return (
        finding.onset_step <= max(told.onset_step, told.last_step) + SAME_STEPS
        and told.onset_step <= max(finding.onset_step, finding.last_step) + SAME_STEPS
    )
