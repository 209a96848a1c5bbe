"""Pieces that several pages show in the same way."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import text
from app.data import Made
from monitor.runfile.store import RunState

HEALTH: dict[str, tuple[str, str, str]] = {
    # verdict or severity: sign, word, badge colour
    "healthy": ("✓", "healthy", "green"),
    "critical": ("▲", "critical", "red"),
    "warning": ("▲", "warning", "orange"),
    "info": ("●", "info", "blue"),
    "cannot tell": ("?", "cannot tell", "gray"),
    "unknown": ("…", "checking", "gray"),
    "unreadable": ("✕", "unreadable", "red"),
}
"""Never the colour alone: a sign and a word go with it."""

STATES: dict[str, tuple[str, str]] = {
    # word: sign, badge colour
    "starting": ("◌", "blue"),
    "running": ("▶", "blue"),
    "finished": ("■", "green"),
    "stopped": ("■", "gray"),
    "crashed": ("✕", "red"),
    "stale": ("…", "orange"),
    "lost": ("?", "orange"),
}

SEVERITIES = ("critical", "warning", "info")


def worst_severity(findings: list[dict[str, Any]]) -> str | None:
    """The worst severity among ``findings``; None when there are none."""
    found = {str(finding.get("severity")) for finding in findings}
    return next((level for level in SEVERITIES if level in found), None)


def health_words(verdict: str | None, worst: str | None, incidents: int) -> tuple[str, str]:
    """``(label, key of HEALTH)`` for a badge: ``▲ 2 incidents``, ``✓ healthy``."""
    if worst and incidents:
        return f"{HEALTH[worst][0]} {incidents} {'incident' if incidents == 1 else 'incidents'}", worst
    key = verdict if verdict in HEALTH else "unknown"
    return f"{HEALTH[key][0]} {HEALTH[key][1]}", key


def badge(label: str, colour: str) -> str:
    """Markdown for a small coloured label."""
    return f":{colour}-badge[{text.markdown(label)}]"


def health_badge(made: Made[dict[str, Any]]) -> str:
    """What the doctor says, as markdown for a badge."""
    if made.value is None:
        return badge("✕ diagnosis failed" if made.error else "… checking", "gray")
    findings = made.value["findings"]
    label, key = health_words(made.value["verdict"], worst_severity(findings), len(findings))
    return badge(label, HEALTH[key][2])


def state_badge(state: RunState) -> str:
    """The state of a run, as markdown for a badge."""
    sign, colour = STATES.get(state.word, ("?", "gray"))
    return badge(f"{sign} {state.word}", colour)


def refused(problem: object, command: str | None = None) -> None:
    """An error of ours as such: its words, and the next command to type."""
    with st.container(border=True):
        st.markdown("**This cannot be shown**")
        st.text(str(problem))
        if command:
            st.caption("Type next")
            st.code(command, language=None)


def bullets(lines: list[str]) -> None:
    """A list of text from outside; nothing for an empty one."""
    if lines:
        st.markdown("\n".join(f"- {text.markdown(line, 600)}" for line in lines))
