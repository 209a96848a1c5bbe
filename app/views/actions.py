"""The buttons in the header of a run: each acts at once and shows a receipt of what came of it."""

from __future__ import annotations

import time
from pathlib import Path

import streamlit as st

from app import control, data, text
from app.facts import Facts
from monitor.errors import GradiometerError


def show(path: Path, facts: Facts) -> None:
    """Stop while it runs, resume when it has ended before its last step."""
    reason = control.read_only_reason()
    if data.is_sample(path):
        return
    asked = asked_to_stop(path)
    if facts.live or facts.state.word == "stale":
        label = "Stopping" if asked else "Stop"
        explained = reason or "Saves a checkpoint and ends; it can be resumed."
        st.button(
            label,
            on_click=ask,
            args=("stop", path),
            disabled=bool(reason) or asked,
            help=text.markdown(explained),
            key="stop",
        )
        return
    complete = facts.step is not None and facts.planned_steps is not None and facts.step >= facts.planned_steps
    if complete:
        return
    explained = reason or (
        "Goes on from the last complete checkpoint." if facts.has_checkpoint else "There is no complete checkpoint."
    )
    st.button(
        "Resume",
        on_click=ask,
        args=("resume", path),
        disabled=bool(reason) or not facts.has_checkpoint,
        help=text.markdown(explained),
        key="resume",
    )


def ask(action: str, path: Path) -> None:
    """Carry out a click and keep its receipt; never waits for a process."""
    try:
        words = control.stop(path) if action == "stop" else control.resume(path)
        st.session_state["receipt"] = (str(path), action, time.time(), words, True)
    except (GradiometerError, OSError) as error:
        st.session_state["receipt"] = (str(path), action, time.time(), str(error), False)


def asked_to_stop(path: Path) -> bool:
    """Whether this tab asked for a stop a moment ago."""
    kept = st.session_state.get("receipt")
    return bool(kept and kept[0] == str(path) and kept[1] == "stop" and kept[4] and time.time() - kept[2] < 40)


def receipt(path: Path) -> None:
    """That a request was made, when, and what came of it."""
    kept = st.session_state.get("receipt")
    if not kept or kept[0] != str(path) or time.time() - kept[2] > 120:
        return
    _, action, when, words, fine = kept
    line = f"{action.capitalize()} asked for {text.ago(when)}: {text.markdown(words, 400)}"
    (st.caption if fine else st.warning)(line)
