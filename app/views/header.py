"""The head of a run's page: state, health, progress, the latest numbers, and what is wrong with the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app import data, text
from app.bell import bell
from app.data import DIAGNOSES, READERS, incidents_of
from app.facts import Facts, facts_of
from app.views import actions
from app.views.common import badge, bullets, health_badge, state_badge
from app.views.sections import sections_of
from monitor.errors import RunError
from monitor.runfile.lineage import Piece

WARNINGS_SHOWN = 3
LINE_SHOWN = 4  # attempts of a long lineage that are named


def show(path: Path, name: str, was_live: bool, had: Sequence[str]) -> None:
    """State, health, progress and the latest numbers; runs again by itself, soon while the training does."""
    with READERS.reading(path) as run:
        facts, version, created = facts_of(run), run.version, run.created
        line, parent, sections = run.line, run.parent, sections_of(run)
    if facts.live != was_live or sections != had:
        # It has ended or was resumed: the other parts follow it at another pace from now on. Or there is more to show.
        st.rerun()
    made = DIAGNOSES.of(path, version)
    title, beside = st.columns([3, 2], vertical_alignment="center")
    badges = [state_badge(facts.state), health_badge(made), badge("sample", "gray") if data.is_sample(path) else ""]
    title.markdown(f"## {text.markdown(name, 120)} {' '.join(badges)}")
    with beside.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center"):
        actions.show(path, facts)
        if facts.live:
            bell(path.name, name, None if made.value is None else incidents_of(made))
    progress(facts, created)
    lineage(facts, line, parent)
    numbers(facts)
    actions.receipt(path)
    troubles(facts)


def progress(facts: Facts, created: float) -> None:
    """The step of the planned steps, with the time left."""
    heard = f"updated {text.ago(facts.state.updated)}" if facts.state.updated else f"made {text.ago(created)}"
    if facts.step is None:
        reason = f" {text.markdown(facts.state.reason)}" if facts.live else ""
        st.caption(f"No step yet, {heard}.{reason}")
        return
    if facts.share is None or not facts.live:
        planned = f" of {text.count(facts.planned_steps)}" if facts.planned_steps else ""
        st.caption(f"step {text.count(facts.step)}{planned}, {heard}")
        return
    left = f", about {text.duration(facts.seconds_left)} left" if facts.seconds_left is not None else ""
    words = f"step {text.count(facts.step)} of {text.count(facts.planned_steps)}{left}, {heard}"
    st.progress(facts.share, text=words)


def lineage(facts: Facts, line: Sequence[Piece], parent: Mapping[str, Any] | None) -> None:
    """Which attempts make up the run, and which run it was forked from; nothing for one attempt of its own."""
    said = []
    if facts.attempts > 1:
        pieces = [f"{piece.attempt} from step {text.count(max(0, piece.after) + 1)}" for piece in line[-LINE_SHOWN:]]
        earlier = "earlier ones, " if len(line) > LINE_SHOWN else ""
        said.append(f"{facts.attempts} attempts, the run as it stands is {earlier}{', then '.join(pieces)}")
    if not parent:
        if said:
            st.caption(said[0])
        return
    run_id = str(parent.get("run"))
    said.append(f"forked from {text.markdown(run_id, 120)} at step {text.markdown(parent.get('step'), 20)}")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("; ".join(said), width="content")
        try:
            data.find_run(run_id)
        except RunError:
            return
        st.page_link("views/run.py", label="To the parent", query_params={"run": run_id})


def numbers(facts: Facts) -> None:
    """The latest values, each with its unit."""
    clip = (
        f"Before clipping, at the last step; the limit is {text.number(facts.clip_limit)}."
        if facts.clip_limit
        else "At the last step."
    )
    bad = sum(count for _, count in facts.nonfinite)
    where = ", ".join(f"{name} {text.count(count)}" for name, count in facts.nonfinite) or "None in any signal."
    shown = (
        ("Train loss", text.nats(facts.loss), None),
        ("Best loss", text.nats(facts.best_loss), None),
        ("Validation loss", text.nats(facts.val_loss), None),
        ("Gradient norm", text.number(facts.grad_norm, 3), clip),
        (
            "Tokens/s",
            text.rate(facts.tokens_per_s, "").strip(),
            "Throughput: median of the last 50 steps, over all ranks.",
        ),
        ("Step time", step_time(facts.step_time_s), None),
        ("Monitor cost", percent(facts.monitor_share), "Share of the step time that measuring takes."),
        ("MFU", mfu(facts), "Share of the device's peak that the model's operations reach."),
        *([("Device", device(facts), None)] if facts.device != "cpu" else []),
        ("Non-finite", text.count(bad), f"Values that are NaN or infinite. {where}"),
    )
    with st.grid(min_column_width=112, gap="small"):
        for label, value, explained in shown:
            st.metric(label, text.markdown(value), help=text.markdown(explained) if explained else None)


def device(facts: Facts) -> str:
    """The device's name; a dash when it is not known. Of a CPU ``MFU`` says that there is no GPU."""
    return "–" if facts.device in (None, "auto") else str(facts.device)


def mfu(facts: Facts) -> str:
    """``41 %``; ``no GPU`` where no peak is known because there is none."""
    return percent(facts.mfu) if facts.mfu is not None else "no GPU" if facts.device == "cpu" else "–"


def percent(share: float | None) -> str:
    """``1.2 %``; a dash for None."""
    return f"{share * 100:.2g} %" if share is not None and math.isfinite(share) else "–"


def step_time(seconds: float | None) -> str:
    """``41.2 ms``, ``1.3 s``; a dash for None."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def troubles(facts: Facts) -> None:
    """Warnings of the recorder, and what could not be read."""
    for words in facts.warnings[:WARNINGS_SHOWN]:
        st.warning(text.markdown(words, 400))
    if len(facts.warnings) > WARNINGS_SHOWN:
        with st.expander(f"{len(facts.warnings) - WARNINGS_SHOWN} more warnings"):
            bullets(list(facts.warnings[WARNINGS_SHOWN : WARNINGS_SHOWN + 50]))
    if facts.state.word in ("crashed", "lost", "stale", "stopped", "pending", "requeued"):
        st.caption(text.markdown(f"{facts.state.word}: {facts.state.reason}", 400))
    if facts.problems:
        count = len(facts.problems)
        with st.expander(
            f"{count} {'part' if count == 1 else 'parts'} of this run could not be read; the rest is shown"
        ):
            st.code(
                "\n".join(text.plain(problem, 400) for problem in facts.problems[:50]), language=None, wrap_lines=True
            )
