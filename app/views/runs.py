"""Runs: every run of the runs folders, newest first, with its health, its state and its loss at a glance."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from pandas.io.formats.style import Styler

from app import control, data, text
from app.data import Listed, Overview, findings_of
from app.views.common import HEALTH, STATES, health_words, refused, worst_severity
from monitor.errors import GradiometerError
from trainer.config import TrainConfig

# Comments, not strings beneath: this file is run as a script, and Streamlit may print a bare string into the page.
Seen = dict[Path, Overview]  # run directory to what is known about it
ROWS_DIAGNOSED = 400  # the newest; each costs a moment of a background process (our judgement)
ROWS_SHOWN = 200  # rows drawn at once (our judgement); the search narrows a longer list

_COLOURS = {
    "light": {"red": "#b3261e", "orange": "#8f5200", "green": "#1b7340", "blue": "#0b62a3", "gray": "#5a6572"},
    "dark": {"red": "#ff8a80", "orange": "#f0b23e", "green": "#6fd39b", "blue": "#7cc0f0", "gray": "#a7b1bd"},
}


def page() -> None:
    """The list, the search and the button that starts a training."""
    title, actions = st.columns([3, 2], vertical_alignment="bottom")
    title.title("Runs")
    with actions.container(horizontal=True, horizontal_alignment="right"):
        start_button()
    own = [folder for folder in data.folders() if not folder.sample]
    words = st.text_input(
        "Search",
        placeholder="name, task or device; state:running, health:critical",
        key="search",
        bind="query-params",
        label_visibility="collapsed",
        icon=":material/search:",
    )
    st.fragment(table, run_every=2.0)(words or "")
    st.caption(
        "Read from "
        + ", ".join(text.markdown(folder.path) for folder in own)
        + ", and the sample runs of the repository."
    )


def start_button() -> None:
    """One click: the default training, then its page."""
    reason = control.read_only_reason()
    if st.button(
        "Start a real training", type="primary", disabled=reason is not None, help=reason and text.markdown(reason)
    ):
        try:
            run_id = control.start(TrainConfig())
        except (GradiometerError, OSError) as error:
            refused(error, "gradiometer train")
            return
        st.switch_page("views/run.py", query_params={"run": run_id})


def table(words: str) -> None:
    """The rows that the search leaves, brought up to date every two seconds."""
    listed = data.listed_runs()
    if not any(not row.sample for row in listed):
        first_steps()
    seen = data.overviews(row.summary for row in listed[:ROWS_DIAGNOSED])
    rows = [row for row in listed if matches(row, seen, words)]
    if not listed:
        return
    if not rows:
        st.info(
            f"No run matches {text.markdown(repr(words))}. {len(listed)} runs are there; clear the search to see them."
        )
        return
    event = st.dataframe(
        styled(rows[:ROWS_SHOWN], seen),
        hide_index=True,
        row_height=38,
        height="content" if len(rows) <= 16 else 38 * 17,
        column_config=columns(),
        key="runs_table",
        on_select="rerun",
        selection_mode="single-cell",
        placeholder="–",
        alt="List of runs",
    )
    if len(rows) > ROWS_SHOWN:
        st.caption(f"The newest {ROWS_SHOWN} of {len(rows)} runs. Search to narrow the list.")
    chosen = [row for row, _ in event.selection.cells]
    if chosen and chosen[0] < len(rows):
        st.switch_page("views/run.py", query_params={"run": rows[chosen[0]].summary.id})


def first_steps() -> None:
    """What to do when there is no run of one's own yet."""
    with st.container(border=True):
        st.markdown("**No runs of your own yet.** Start one here with the button above, or in a terminal:")
        st.code("gradiometer train", language=None)
        st.markdown("or attach the monitor to a training loop that you have, and open this page where it runs:")
        st.code(
            'mon = monitor.attach(model, optimizer, run="runs")    # then, in the loop: mon.step(loss=loss)',
            language="python",
        )
        st.caption("Below are runs that came with the repository.")


def matches(row: Listed, seen: Seen, words: str) -> bool:
    """Whether every word of the search fits: plain words anywhere, ``state:``, ``health:`` and ``tag:`` exactly."""
    summary = row.summary
    everything = " ".join(str(part) for part in (summary.id, summary.name, summary.task, summary.device, *summary.tags))
    for word in words.lower().split():
        field, colon, value = word.partition(":")
        if colon and field == "state":
            fits = summary.state.word == value
        elif colon and field == "tag":
            fits = value in [tag.lower() for tag in summary.tags]
        elif colon and field == "health":
            fits = health(row, seen)[1].replace(" ", "-") == value
        else:
            fits = word in everything.lower() or (word == "sample" and row.sample)
        if not fits:
            return False
    return True


def health(row: Listed, seen: Seen) -> tuple[str, str]:
    """``(label, key of HEALTH)``."""
    if row.summary.problem:
        return f"{HEALTH['unreadable'][0]} {HEALTH['unreadable'][1]}", "unreadable"
    known = seen.get(row.summary.path)
    if known is None or known.report.value is None:
        return ("✕ diagnosis failed", "unreadable") if known and known.report.error else health_words(None, None, 0)
    findings = findings_of(known.report)
    return health_words(known.report.value["verdict"], worst_severity(findings), len(findings))


def state(row: Listed, now: float) -> str:
    """``▶ running, 3 s ago``."""
    current = row.summary.state
    heard = (
        f", {text.ago(current.updated, now)}"
        if current.updated and current.word in ("running", "starting", "stale", "lost")
        else ""
    )
    return f"{STATES.get(current.word, ('?', ''))[0]} {current.word}{heard}"


def frame(rows: list[Listed], seen: Seen, now: float) -> pd.DataFrame:
    """One row a run, as the table shows it."""
    return pd.DataFrame(
        {
            "health": [health(row, seen)[0] for row in rows],
            "state": [state(row, now) for row in rows],
            "name": [text.plain(row.summary.name or row.summary.id, 120) for row in rows],
            "loss_curve": [spark(row, seen) for row in rows],
            "step": [progress(row) for row in rows],
            "loss": [text.number(row.summary.last_loss) for row in rows],
            "best": [text.number(row.summary.best_loss) for row in rows],
            "duration": [text.duration(row.summary.duration_s) for row in rows],
            "task": [text.plain(row.summary.task or "–", 40) for row in rows],
            "device": [text.plain(row.summary.device or "–", 40) for row in rows],
            "started": [started(row, now) for row in rows],
            "notes": [notes(row, seen) for row in rows],
        }
    )


def spark(row: Listed, seen: Seen) -> list[float]:
    """The loss curve as far as it is known."""
    known = seen.get(row.summary.path)
    return list(known.spark.value.loss) if known and known.spark.value else []


def progress(row: Listed) -> str:
    """``512 of 1 200``."""
    last, planned = row.summary.last_step, row.summary.planned_steps
    return text.count(last) if not planned else f"{text.count(last or 0)} of {text.count(planned)}"


def started(row: Listed, now: float) -> str:
    """How long ago the run was made; the date when it is long ago."""
    created = row.summary.created
    if created is None:
        return "–"
    return (
        text.ago(created, now) if now - created < 86_400 else time.strftime("%Y-%m-%d %H:%M", time.localtime(created))
    )


def notes(row: Listed, seen: Seen) -> str:
    """Whether it is a sample, its tags, and what is wrong with it."""
    parts = ["sample"] if row.sample else []
    parts += [text.plain(tag, 40) for tag in row.summary.tags]
    if row.summary.problem:
        parts.append(text.plain(row.summary.problem, 200))
    known = seen.get(row.summary.path)
    if known and known.spark.value and known.spark.value.nonfinite:
        parts.append(f"{text.count(known.spark.value.nonfinite)} non-finite losses")
    return ", ".join(parts)


def styled(rows: list[Listed], seen: Seen) -> Styler:
    """The table with the health and state words coloured as their badges are on the run's page."""
    table = frame(rows, seen, time.time())
    palette = _COLOURS["dark" if st.context.theme.type == "dark" else "light"]
    health_colours = [palette.get(HEALTH[health(row, seen)[1]][2], "") for row in rows]
    state_colours = [palette.get(STATES.get(row.summary.state.word, ("", "gray"))[1], "") for row in rows]

    def paint(column: pd.Series) -> list[str]:
        colours = {"health": health_colours, "state": state_colours}.get(str(column.name))
        return [f"color: {colour}; font-weight: 600" for colour in colours] if colours else [""] * len(column)

    return table.style.apply(paint, axis=0)


def columns() -> dict[str, Any]:
    """Titles and widths."""
    config = st.column_config
    return {
        "health": config.TextColumn("Health", width=118, help="What the diagnosis says; open the run to see why."),
        "state": config.TextColumn("State", width=125),
        "name": config.TextColumn("Name", width=170),
        "loss_curve": config.LineChartColumn("Loss", width=110, help="Training loss; extremes are kept."),
        "step": config.TextColumn("Step", width=128, alignment="right"),
        "loss": config.TextColumn("Last loss", width=75, alignment="right"),
        "best": config.TextColumn("Best loss", width=75, alignment="right"),
        "duration": config.TextColumn("Duration", width=95, alignment="right"),
        "task": config.TextColumn("Task", width=62),
        "device": config.TextColumn("Device", width=62),
        "started": config.TextColumn("Started", width=122),
        "notes": config.TextColumn("Notes", width=140),
    }


page()
