"""Pieces that several pages show in the same way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import text
from app.data import Made, incidents_of
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
    "paused": ("Ⅱ", "blue"),
    "pending": ("◌", "gray"),
    "requeued": ("◌", "gray"),
    "finished": ("■", "green"),
    "stopped": ("■", "gray"),
    "crashed": ("✕", "red"),
    "stale": ("…", "orange"),
    "lost": ("?", "orange"),
}


def health_words(verdict: str | None, incidents: list[dict[str, Any]]) -> tuple[str, str]:
    """``(label, key of HEALTH)`` for a badge: ``▲ 2 incidents``, ``✓ healthy``. The first incident is the worst."""
    if incidents:
        worst, count = str(incidents[0]["severity"]), len(incidents)
        return f"{HEALTH[worst][0]} {count} {'incident' if count == 1 else 'incidents'}", worst
    key = verdict if verdict in HEALTH else "unknown"
    return f"{HEALTH[key][0]} {HEALTH[key][1]}", key


def badge(label: str, colour: str) -> str:
    """Markdown for a small coloured label."""
    return f":{colour}-badge[{text.markdown(label)}]"


def health_badge(made: Made[dict[str, Any]]) -> str:
    """What the doctor says, as markdown for a badge."""
    if made.value is None:
        return badge("✕ diagnosis failed" if made.error else "… checking", "gray")
    label, key = health_words(made.value["verdict"], incidents_of(made))
    return badge(label, HEALTH[key][2])


def severity_badge(event: Mapping[str, Any]) -> str:
    """``▲ critical`` as markdown for a badge."""
    severity = str(event["severity"])
    return badge(f"{HEALTH[severity][0]} {severity}", HEALTH[severity][2])


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


def zoomed() -> tuple[float, float] | None:
    """The range in the address; None when there is none or it is no range."""
    try:
        first, last = float(st.query_params["x0"]), float(st.query_params["x1"])
    except (KeyError, ValueError):
        return None
    return (first, last) if math.isfinite(first) and math.isfinite(last) and first < last else None


def zoomed_steps() -> tuple[float, float] | None:
    """The range in the address for charts along steps; None while it is one of tokens or seconds."""
    return zoomed() if st.session_state.get("story_axis", "step") == "step" else None


def keep_steps(key: str) -> None:
    """Write the zoomed range of charts along steps into the address, unless that holds one of tokens or seconds."""
    if st.session_state.get("story_axis", "step") == "step":
        keep_range(key)


def keep_range(key: str) -> None:
    """Write the zoomed range into the address."""
    span = st.session_state[key].get("range")
    if span and len(span) == 2:
        st.query_params.update(x0=f"{span[0]:.10g}", x1=f"{span[1]:.10g}")  # in one message: half a range is none
    else:
        for name in ("x0", "x1"):
            if name in st.query_params:
                del st.query_params[name]


def keep_cell(key: str) -> None:
    """Write the chosen layer and step into the address."""
    cell = st.session_state[key].get("cell") or {}
    for name in ("layer", "at"):
        keep(name, str(cell.get(name) or ""))


def keep(name: str, value: str) -> None:
    """Write ``value`` into the address; an empty one out of it."""
    if value:
        st.query_params[name] = value
    elif name in st.query_params:
        del st.query_params[name]
