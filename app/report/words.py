"""A report as Markdown, for a terminal, a ticket or a notebook. Text from outside stays text there too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app import text
from app.incident import cannot_tell, cause_title, evidence, findings_in, moved, notes, where
from app.report.content import Content
from monitor.diagnosis.report import set_words

MARK = "<!-- Gradiometer report -->"
"""By which a report is known again."""
_MARKUP = re.compile(r"([\\`*\[\]<>|~$&#!])")
_JOINER = "\u2060"


def render(contents: Sequence[Content]) -> str:
    """The whole file; several trainings of one log one after another."""
    return f"{MARK}\n\n" + "\n".join(_training(content) for content in contents)


def prose(said: object, longest: int = 600) -> str:
    """``said`` within a line of Markdown: what could be markup is escaped, and no address or mention becomes a link.

    An underscore within a word, as in a signal's name, is left alone: Markdown does so too.
    """
    line = _MARKUP.sub(r"\\\1", text.plain(said, longest))
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)
    line = re.sub(r"(?i)(https?|ftp|mailto|www)(?=[.:])", rf"\1{_JOINER}", line).replace("@", f"@{_JOINER}")
    return re.sub(r"^(\s*)([-+](?=\s|$)|[-=]{2,}|\d+(?=[.)](?:\s|$)))", rf"\1{_JOINER}\2", line)


def code(said: object, longest: int = 300) -> str:
    """``said`` as a span of code: nothing within it is markup."""
    line = text.plain(said, longest).strip() or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def _training(content: Content) -> str:
    report = content.json
    parts = [f"# {prose(content.name)}", f"**{prose(content.severity)}**: {prose(content.verdict)}"]
    parts.append(_bullets(f"{prose(name)}: {prose(value)}" for name, value in content.facts))
    parts += [_incident(one, report["findings"], index) for index, one in enumerate(report["incidents"], 1)]
    for title, lines in (
        ("For information", [_one(finding) for finding in notes(report)]),
        ("Could not be told", map(prose, cannot_tell(report))),
        ("Not read", map(prose, content.problems)),
        ("Resumes", map(prose, content.resumes)),
    ):
        inner = _bullets(lines)
        if inner:
            parts += [f"## {title}", inner]
    if content.attempts:
        parts += ["## Attempts", _table(content.attempts)]
    taken = content.taken
    if taken is not None:
        lines = [f"{prose(taken.source.format)}, read as: {', '.join(map(code, taken.names)) or 'no name is known'}"]
        lines += [f"kept under their own names: {', '.join(map(code, taken.own))}"] if taken.own else []
        parts += ["## How the log was read", _bullets([*lines, *map(prose, taken.messages)])]
    if content.config_lines:
        parts += ["## Configuration", _block(content.config_lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _incident(found: Mapping[str, Any], findings: list[dict[str, Any]], index: int) -> str:
    advice = found.get("remedy") or {}
    parts = [f"## {index}. {prose(found['severity'])}: {prose(found['summary'])}", prose(where(found))]
    rows = moved(found)
    if rows:
        parts += [
            "### What moved, in order",
            _table([{**row, **_names(row)} for row in rows], escaped=("signal", "layer")),
        ]
    parts.append("### Likely causes")
    for cause in found.get("causes") or []:
        lines = [f"for: {prose(words)}" for words in cause["for"]]
        lines += [f"against: {prose(words)}" for words in cause["against"]]
        parts += [f"**{prose(cause_title(cause))}**, confidence {cause['confidence'] * 100:.0f} %", _bullets(lines)]
    if not found.get("causes"):
        parts.append("None could be told from the signals that were recorded.")
    if any(advice.values()):
        parts += ["### What to do", prose(advice["text"], 1200)]
        parts += [_block(set_words(advice["config_patch"]), "sh")] if advice["config_patch"] else []
        parts += [_block(advice["snippet"], "python")] if advice["snippet"] else []
    inside = [_one(finding) for finding in findings_in(found, findings)]
    return "\n\n".join(part for part in [*parts, "### Findings", _bullets(inside)] if part)


def _names(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: code(row[name]).replace("|", "\\|") if row[name] else "" for name in ("signal", "layer")}


def _one(finding: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{name} {value}" for name, value in evidence(finding))
    told = f"{prose(finding['severity'])} {prose(finding['summary'])} ({prose(where(finding))})"
    return f"{told}. {prose(numbers, 2000)}" if numbers else told


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _block(lines: str, language: str = "") -> str:
    shown = "\n".join(text.plain(line, 400) for line in str(lines).split("\n"))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}{language}\n{shown}\n{fence}"


def _table(rows: Sequence[Mapping[str, Any]], escaped: Sequence[str] = ()) -> str:
    """Rows with the same keys; a column in which no row says anything is left out."""
    columns = [name for name in rows[0] if any(row[name] not in ("", None) for row in rows)]
    lines = [columns, ["---"] * len(columns)]
    lines += [[str(row[name]) if name in escaped else prose(row[name]) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
