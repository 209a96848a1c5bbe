"""Rewind: go on from an earlier checkpoint with changes, as a new attempt or as a run of its own."""

from __future__ import annotations

import time
from pathlib import Path

import streamlit as st

from app import control, data, fixes, text
from app.data import READERS
from app.facts import Facts
from monitor.errors import ConfigError, GradiometerError


def show(path: Path, facts: Facts) -> None:
    """The button, and what came of the last request."""
    with READERS.reading(path) as run:
        steps = [point.step for point in run.checkpoints() if point.complete]
        reason = "A sample run is for reading." if data.is_sample(path) else fixes.why_not(run)
    reason = reason or control.read_only_reason()
    if st.button(
        "Rewind…",
        disabled=reason is not None,
        help=text.markdown(reason) if reason else "Goes on from an earlier checkpoint with changes.",
        key="rewind",
    ):
        dialog(path, facts, steps)
    kept = st.session_state.get("rewind_receipt")
    if kept and kept[0] == str(path) and time.time() - kept[1] < 120:
        (st.caption if kept[3] else st.warning)(f"Asked for {text.ago(kept[1])}: {text.markdown(kept[2], 600)}")


@st.dialog("Rewind")
def dialog(path: Path, facts: Facts, steps: list[int]) -> None:
    """Checkpoint, changes, batches to leave out, and what the result is to be."""
    step = st.selectbox(
        "From the checkpoint of step",
        [*reversed(steps), 0],
        format_func=lambda step: text.count(step) if step else "the start, with the same seed",
        key="rewind_step",
    )
    typed = st.text_area("Changes, one a line", placeholder="optimizer.lr = 3e-4", key="rewind_changes")
    skip = st.number_input("Batches to leave out after it", min_value=0, max_value=1_000_000, step=1, key="rewind_skip")
    as_child = st.toggle(
        "As a child run; this one is only read",
        value=True,
        disabled=facts.live or not step,
        help="Otherwise the run itself goes back, as a new attempt; what came after the checkpoint is superseded.",
        key="rewind_child",
    )
    if st.button(
        "Start",
        type="primary",
        on_click=ask,
        args=(path, int(step or 0), typed or "", int(skip), as_child),
        key="rewind_go",
    ):
        st.rerun()


def changes_in(typed: str) -> list[str]:
    """``name=value`` of each line; empty ones are left out.

    Raises:
        ConfigError: a line is none.
    """
    lines = [line.strip() for line in typed.splitlines() if line.strip()]
    for line in lines:
        if "=" not in line:
            raise ConfigError(f"{line}: not of the form name = value, such as optimizer.lr = 3e-4.")
    return ["=".join(part.strip() for part in line.split("=", 1)) for line in lines]


def ask(path: Path, step: int, typed: str, skip: int, as_child: bool) -> None:
    """Carry out the request and keep its receipt; never waits for a training."""
    try:
        words = control.rewind(path, step, changes_in(typed), skip, as_child=as_child or not step)
        st.session_state["rewind_receipt"] = (str(path), time.time(), words, True)
    except (GradiometerError, OSError) as error:
        st.session_state["rewind_receipt"] = (str(path), time.time(), str(error), False)
