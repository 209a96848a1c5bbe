"""What a report tells of one training: values and curves, gathered once for every way of writing them down."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app import text
from app.charts.describe import Chart, Mark, Trace
from app.charts.measures import layer_curve
from app.charts.story import story_charts, story_marks
from app.facts import attempt_rows, facts_of
from app.foreign import Read, read_foreign
from app.incident import as_lines, incident_key, notes, onset_of, span_of
from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.report import Report
from monitor.diagnosis.wording import count, word_for_incidents
from monitor.importers import Taken
from monitor.runfile.reader import Run, open_run

CURVES = ("loss", "grad_norm", "lr")
"""Charts of the story that a report shows."""
NONFINITE_NAMED = 3
MOST_CONFIG_LINES = 500
MOST_MARKS = 200
"""Resumes and crashes that are marked on the curves; incidents are all."""
MOST_DRAWN = 12
"""Incidents that get curves of their own, the worst; the others are told without (our judgement)."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves over one stretch of the training."""

    charts: Sequence[Chart]
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Content:
    """One training, as a report tells it. All text comes from outside: it is escaped where it is written down."""

    name: str
    verdict: str
    """One sentence."""
    facts: Sequence[tuple[str, str]]
    """State, when, steps, task and the like, with what each is."""
    json: dict[str, Any]
    """The doctor's JSON."""
    whole: Panel
    around: dict[str, Panel]
    """By the key of the incident."""
    marks: Sequence[Mark]
    config: dict[str, Any]
    config_lines: str
    """The configuration as a reader sees it; bounded."""
    attempts: Sequence[dict[str, str]]
    resumes: Sequence[str]
    """What a trainer found when it checked its resumes."""
    problems: Sequence[str]
    """What of the run's files could not be read."""
    taken: Taken | None = field(default=None, repr=False)
    """How a log of another tool was read."""

    @property
    def severity(self) -> str:
        """That of the worst incident; else the verdict."""
        found = self.json["incidents"]
        return str(found[0]["severity"] if found else self.json["verdict"])


def content_of_run(path: Path) -> Content:
    """The run directory at ``path``.

    Raises:
        RunError: it cannot be read.
    """
    run = open_run(path)
    report = diagnose(run)
    return _content(run, report, report.to_dict(), None)


def contents_of_log(path: Path) -> list[Content]:
    """Each training in a file or folder of another tool.

    Raises:
        RunError: nothing there is a log with metrics.
    """
    return read_foreign(path, lambda read, run: _content(run, read.report, read.to_dict(), read))


def _content(run: Run, report: Report, json: dict[str, Any], read: Read | None) -> Content:
    charts = [chart for chart in story_charts(run) if chart.id in CURVES]
    last_step = run.last_step or 0
    around = {}
    for found in json["incidents"][:MOST_DRAWN]:
        first, last = span_of(found, last_step)
        around[incident_key(found)] = Panel([*charts, *_layer_chart(run, found)], max(0, first), last)
    config = {} if read else run.config or {}
    return Content(
        name=run.name,
        verdict=verdict_of(report, json),
        facts=_facts(run, read),
        json=json,
        whole=Panel(charts, 0, last_step),
        around=around,
        marks=_marks(run, json),
        config=config,
        config_lines=_config_lines(config),
        attempts=attempt_rows(run),
        resumes=[f"after step {one['step']}: {one['verdict']}, {one['text']}" for one in report.resumes],
        problems=run.problems,
        taken=read.taken if read else None,
    )


def _marks(run: Run, json: dict[str, Any]) -> list[Mark]:
    marks = story_marks(run, json["incidents"])
    others = [mark for mark in marks if mark.kind in ("resume", "crash")][:MOST_MARKS]
    return [mark for mark in marks if mark.kind == "incident"] + others


def _config_lines(config: dict[str, Any]) -> str:
    lines = as_lines(config).split("\n")
    more = f"\n… and {len(lines) - MOST_CONFIG_LINES} more lines" if len(lines) > MOST_CONFIG_LINES else ""
    return "\n".join(lines[:MOST_CONFIG_LINES]) + more


def _layer_chart(run: Run, found: dict[str, Any]) -> list[Chart]:
    """The gradient norm of the layer that moved first, if it was measured."""
    layer = found.get("layer")
    if not layer or "grad_norm_preclip" not in run.layer_stats:
        return []
    curve = layer_curve(run.peaks("grad_norm_preclip"), str(layer))
    if curve is None:
        return []
    return [Chart("layer", f"Gradient norm of {layer}", traces=(Trace(str(layer), curve, 5),), log=True)]


def verdict_of(report: Report, json: dict[str, Any]) -> str:
    """The verdict in one sentence."""
    looked = f"{count(len(report.checked), 'rule')} looked at {text.count(report.steps)} steps"
    untold = f", {len(report.abstained)} could not tell" if report.abstained else ""
    if report.verdict == "incident":
        found = json["incidents"]
        onsets = [onset_of(one) or 0 for one in found]
        return f"{word_for_incidents(onsets)}. {str(found[0]['summary']).rstrip('.')}."
    if report.verdict == "healthy":
        known = notes(json)
        extra = (
            f" There {'is' if len(known) == 1 else 'are'} {count(len(known), 'note')} for information." if known else ""
        )
        return f"Healthy: {looked} and found nothing{untold}.{extra}"
    return f"Cannot tell whether this training is healthy: {looked}{untold}, essential ones among them."


def _facts(run: Run, read: Read | None) -> list[tuple[str, str]]:
    facts = facts_of(run)
    planned = f" of {text.count(facts.planned_steps)}" if facts.planned_steps else ""
    rows = [("Steps", f"{text.count(facts.step)}{planned}"), ("Task", run.task or "–")]
    if read:
        written = read.taken.source.path.stat().st_mtime
        rows = [("Read from", str(read.taken.source.path)), ("Last written", _moment(written)), *rows]
    else:
        state = f"{facts.state.word}{f': {facts.state.reason}' if facts.state.reason else ''}"
        seen = facts.state.updated
        rows = [
            ("State", state),
            ("Begun", _moment(run.created)),
            *([("Last seen", _moment(seen))] if seen else []),
            *rows,
        ]
        rows.append(("Run", run.id))
    rows.append(("Training loss", f"{text.nats(facts.loss)}, best {text.nats(facts.best_loss)}"))
    if facts.val_loss is not None:
        rows.append(("Validation loss", text.nats(facts.val_loss)))
    if facts.device:
        rows.append(("Device", facts.device))
    if facts.tokens_per_s is not None:
        rows.append(("Throughput", text.rate(facts.tokens_per_s, "tokens/s")))
    bad = [f"{name} {text.count(amount)}" for name, amount in facts.nonfinite]
    more = f" and {len(bad) - NONFINITE_NAMED} more signals" if len(bad) > NONFINITE_NAMED else ""
    rows.append(("Non-finite values", f"{', '.join(bad[:NONFINITE_NAMED])}{more}" or "none"))
    return rows


def _moment(then: float) -> str:
    """Local date and time, with the zone."""
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(then))
