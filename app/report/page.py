"""A report as one HTML file that needs nothing else: no script, and a policy within it that lets none run.

Whatever comes out of a run is escaped by ``_e``; the rest of the page is written here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from app import text
from app.incident import (
    cannot_tell,
    cause_title,
    config_diff,
    evidence,
    findings_in,
    incident_key,
    moved,
    notes,
    where,
)
from app.report.content import Content, Panel
from app.report.curve import figure
from monitor.diagnosis.report import set_words

GENERATOR = '<meta name="generator" content="Gradiometer report">'
"""By which a report is known again."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Nothing is fetched and no script runs, whatever an escape may have missed."""
_STYLE = Path(__file__).with_name("style.css")
_SIGNS = {"critical": "▲", "warning": "▲", "info": "●", "healthy": "✓"}


def render(contents: Sequence[Content]) -> str:
    """The whole file; several trainings of one log one after another."""
    title = contents[0].name if len(contents) == 1 else f"{contents[0].name} and {len(contents) - 1} more"
    made = time.strftime("%Y-%m-%d %H:%M %Z")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{GENERATOR}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(title)}: Gradiometer report</title>\n"
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n{''.join(_training(content) for content in contents)}"
        f"<footer>Written by Gradiometer on {_e(made)}. The bars of confidence are shares of belief between the causes "
        "that are listed and any other.</footer>\n</body>\n</html>\n"
    )


def _e(said: object, longest: int = 600) -> str:
    """Text from outside as text: on one line, without control characters, its markup escaped."""
    return escape(text.plain(said, longest))


def _training(content: Content) -> str:
    report = content.json
    found = report["incidents"]
    inner = [
        f'<p class="by">Gradiometer report</p><h1>{_e(content.name)}</h1>',
        f'<p class="verdict">{_badge(content.severity)} {_e(content.verdict)}</p>',
        f'<dl class="facts">{"".join(f"<div><dt>{_e(k)}</dt><dd>{_e(v)}</dd></div>" for k, v in content.facts)}</dl>',
        _curves(content.whole, content),
    ]
    inner += [_incident(one, content, index) for index, one in enumerate(found, 1)]
    known = notes(report)
    if known:
        inner.append(f"<h2>For information</h2>{''.join(map(_finding, known))}")
    inner.append(_section("Could not be told", _bullets(cannot_tell(report))))
    inner.append(_section("Not read", _bullets(content.problems)))
    inner.append(_section("Attempts", _table(content.attempts)))
    inner.append(_section("Resumes", _bullets(content.resumes)))
    inner.append(_import(content))
    if content.config_lines:
        inner.append(_section("Configuration", _code(content.config_lines, "config")))
    return f"<main>{''.join(inner)}</main>\n"


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{title}</h2>{inner}</section>" if inner else ""


def _badge(severity: str) -> str:
    return f'<span class="badge {escape(severity)}">{_SIGNS.get(severity, "?")} {_e(severity)}</span>'


def _curves(panel: Panel, content: Content) -> str:
    return "".join(figure(chart, panel.first, panel.last, content.marks) for chart in panel.charts)


def _incident(found: Mapping[str, Any], content: Content, index: int) -> str:
    panel = content.around.get(incident_key(found))
    inside = findings_in(found, content.json["findings"])
    curves = _curves(panel, content) if panel else "<p class=note>Curves are drawn of the worst incidents only.</p>"
    return (
        f"<article><h2>{index}. {_badge(str(found['severity']))} {_e(found['summary'])}</h2>"
        f'<p class="where">{_e(where(found))}</p>{curves}'
        f"<h3>What moved, in order</h3>{_table(moved(found)) or '<p>No signal was seen to leave its baseline.</p>'}"
        f"<h3>Likely causes</h3>{_causes(found)}{_remedy(found.get('remedy') or {}, content.config)}"
        f"<details><summary>Findings of this incident ({len(inside)})</summary>"
        f"{''.join(map(_finding, inside))}</details></article>"
    )


def _causes(found: Mapping[str, Any]) -> str:
    told = []
    for cause in found.get("causes") or []:
        share = min(max(float(cause["confidence"]), 0.0), 1.0)
        lines = [f"for: {words}" for words in cause["for"]] + [f"against: {words}" for words in cause["against"]]
        told.append(
            f'<div class="cause"><b>{_e(cause_title(cause))}</b>, confidence {share * 100:.0f} %'
            f'<div class="bar"><i style="width:{share * 100:.0f}%"></i></div></div>{_bullets(lines)}'
        )
    return "".join(told) or "<p>None could be told from the signals that were recorded.</p>"


def _remedy(advice: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    patch, snippet = advice.get("config_patch") or {}, str(advice.get("snippet") or "")
    inner = f"<p>{_e(advice['text'], 1200)}</p>" if advice.get("text") else ""
    if patch:
        inner += f'<p class="where">Change in the configuration</p>{_code(config_diff(config, patch))}'
        inner += f'<p class="where">On the command line</p>{_code(set_words(patch), "copy")}'
    if snippet:
        inner += f'<p class="where">In a loop of your own</p>{_code(snippet, "copy")}'
    return f"<h3>What to do</h3>{inner}" if inner else ""


def _finding(finding: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{name} {value}" for name, value in evidence(finding))
    return (
        f"<p>{_badge(str(finding['severity']))} {_e(finding['summary'])}</p>"
        f'<p class="where">{_e(where(finding))}</p>'
        + (f'<p class="where">Evidence: {_e(numbers, 3000)}</p>' if numbers else "")
    )


def _code(lines: str, kind: str = "") -> str:
    shown = "\n".join(text.plain(line, 400) for line in lines.split("\n"))
    return f'<pre class="{kind}">{escape(shown)}</pre>'


def _bullets(lines: Iterable[str]) -> str:
    inner = "".join(f"<li>{_e(line)}</li>" for line in lines)
    return f"<ul>{inner}</ul>" if inner else ""


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys; a column in which no row says anything is left out."""
    columns = [name for name in rows[0] if any(row[name] not in ("", None) for row in rows)] if rows else []
    if not columns:
        return ""
    kinds = {"signal": "name", "layer": "name", "step": "n", "from step": "n", "to step": "n"}
    kinds |= dict.fromkeys(("before", "furthest", "strength"), "v")
    head = "".join(f'<th class="{kinds.get(name, "")}">{_e(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(_cell(row[name], kinds.get(name, '')) for name in columns)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: object, kind: str) -> str:
    said = text.count(value) if isinstance(value, int) else value
    return f'<td class="{kind}">{_e(said)}</td>'


def _import(content: Content) -> str:
    taken = content.taken
    if taken is None:
        return ""
    every = f", a row every {taken.interval:,} steps" if taken.interval else ""
    names = [{"in the log": a, "read as": b} for a, _, b in (name.partition(" -> ") for name in taken.names)]
    inner = f"<p>{_e(taken.source.format)}{every}.</p>{_table(names)}"
    if taken.own:
        inner += f"<p>Kept under their own names: {_e(', '.join(taken.own), 3000)}</p>"
    return _section("How the log was read", inner + _bullets(taken.messages))
