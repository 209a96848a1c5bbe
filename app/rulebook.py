"""The rules on the command line: what each looks for, and what other thresholds would have raised on runs there are."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from app.text import plain
from monitor.diagnosis.backtest import Backtest, Comparison
from monitor.diagnosis.rule import Rule
from monitor.diagnosis.settings import Threshold, thresholds_of
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count
from monitor.errors import ConfigError, RunError
from monitor.runfile.format import RUN_FILE
from monitor.runfile.reader import open_run
from monitor.runfile.store import list_runs

ONSETS_SHOWN = 5


def rule_table(rules: Sequence[Rule]) -> Table:
    """Every rule with its severity and what it looks for."""
    table = Table("rule", "severity", "looks for", box=None, pad_edge=False)
    for rule in rules:
        table.add_row(rule.id, str(rule.severity), rule.explanation.strip().split("\n\n")[0].replace("\n", " "))
    return table


def handbook(rule: Rule) -> str:
    """The rule's explanation, its signals and its thresholds with their defaults."""
    lines = [f"{rule.id} ({rule.severity})", "", inspect.cleandoc(rule.explanation).replace("``", ""), ""]
    lines.append(f"Signals: {', '.join(rule.needs).replace('|', ' or ') or 'see above'}.")
    defaults = thresholds_of(rule)
    if defaults:
        lines.append("Defaults: " + ", ".join(f"{name}={value:g}" for name, value in defaults.items()) + ".")
    return "\n".join([*lines, f"Remedy: {rule.remedy}"])


def parse_thresholds(words: Sequence[str]) -> dict[str, Threshold]:
    """``name=value`` words as numbers.

    Raises:
        ConfigError: a word is not of that form.
    """
    values: dict[str, Threshold] = {}
    for word in words:
        name, equals, text = word.partition("=")
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not equals or not name or number != number:
            raise ConfigError(f"--set {word}: expected NAME=NUMBER, such as z_single=7.")
        values[name.strip().replace("-", "_")] = number
    return values


def runs_to_test(place: Path) -> Iterator[tuple[str, Signals]]:
    """Name and signals of the run at ``place``, or of every run in that folder; unreadable ones are left out.

    Raises:
        RunError: nothing there is a run.
    """
    summaries = [] if (place / RUN_FILE).exists() or not place.is_dir() else list_runs(place)
    if not summaries:
        run = open_run(place)
        yield run.name, Signals.from_run(run)
        return
    for summary in summaries:
        try:
            run = open_run(summary.path)
        except RunError:
            continue
        yield summary.path.name, Signals.from_run(run)


def backtest_table(result: Backtest) -> Table:
    """One line for each run whose findings change."""
    table = Table("run", "steps", "now", "with these thresholds", box=None, pad_edge=False)
    for run in result.runs:
        if run.changed:
            table.add_row(plain(run.name), f"{run.steps:,}", _onsets(run, "before"), _onsets(run, "after"))
    return table


def _onsets(run: Comparison, which: str) -> str:
    findings = getattr(run, which)
    shown = ", ".join(f"{finding.severity} at {finding.onset_step}" for finding in findings[:ONSETS_SHOWN])
    more = f" and {len(findings) - ONSETS_SHOWN} more" if len(findings) > ONSETS_SHOWN else ""
    return (shown + more) or "-"


def backtest_summary(result: Backtest) -> str:
    """Alarms, runs and alarms per 1,000 steps, before and after."""
    told = []
    for which, title in (("before", "now"), ("after", "with these thresholds")):
        rate = result.per_thousand_steps(which)
        per = f", {rate:.2g} per 1,000 steps" if rate is not None else ""
        alarms = count(result.alarms(which), "alarm")
        told.append(f"{title}: {alarms} in {result.runs_with_alarm(which)} of {len(result.runs)} runs{per}")
    silent = sum(run.abstained is not None for run in result.runs)
    return "\n".join([*told, *([f"the rule cannot tell on {silent} of them"] if silent else [])])


def backtest_json(result: Backtest) -> dict[str, Any]:
    """The comparison as plain values."""
    return {
        "rule": result.rule,
        "thresholds": dict(result.thresholds),
        "alarms": {which: result.alarms(which) for which in ("before", "after")},
        "runs_with_alarm": {which: result.runs_with_alarm(which) for which in ("before", "after")},
        "runs": [
            {
                "run": run.name,
                "steps": run.steps,
                "before": [[f.onset_step, str(f.severity)] for f in run.before],
                "after": [[f.onset_step, str(f.severity)] for f in run.after],
                "abstained": run.abstained.reason if run.abstained else None,
            }
            for run in result.runs
        ],
    }
