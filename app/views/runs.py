"""Runs: every run of the runs folders, newest first, with its health, its state and its loss at a glance."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from pandas.io.formats.style import Styler

from app import control, data, text
from app.compare import MOST_RUNS
from app.data import Listed, Overview, incidents_of
from app.views.common import HEALTH, STATES, bullets, health_words, refused
from monitor.errors import GradiometerError
from monitor.runfile import search
from trainer.config import TrainConfig

# Comments, not strings beneath: this file is run as a script, and Streamlit may print a bare string into the page.
Seen = dict[Path, Overview]  # run directory to what is known about it
# The newest, when the search asks for health; each costs a moment of a background process (our judgement).
ROWS_DIAGNOSED = 400
ROWS_SHOWN = 100  # rows on a page; only theirs are diagnosed and have a curve (our judgement)

_COLOURS = {
    "light": {"red": "#b3261e", "orange": "#8f5200", "green": "#1b7340", "blue": "#0b62a3", "gray": "#5a6572"},
    "dark": {"red": "#ff8a80", "orange": "#f0b23e", "green": "#6fd39b", "blue": "#7cc0f0", "gray": "#a7b1bd"},
}


def page() -> None:
    """The list, the search and the button that starts a training."""
    if run_id := st.session_state.pop("run_to_open", None):
        st.switch_page("views/run.py", query_params={"run": run_id})
    title, actions = st.columns([3, 2], vertical_alignment="bottom")
    title.title("Runs")
    with actions.container(horizontal=True, horizontal_alignment="right"):
        start_button()
    own = [folder for folder in data.folders() if not folder.sample]
    with st.container(horizontal=True, vertical_alignment="center"):
        words = st.text_input(
            "Search",
            placeholder="words, or state:crashed  loss<2.5  lr>=1e-3  tag:baseline  health:critical  -word",
            key="search",
            bind="query-params",
            on_change=first_page,
            label_visibility="collapsed",
            icon=":material/search:",
        )
        with st.popover("How to search", type="tertiary"):
            st.code(f"{search.__doc__}\nhere also: health:critical, -sample", language=None, wrap_lines=True)
    st.fragment(table, run_every=2.0)(words or "")
    st.caption(
        "Read from "
        + ", ".join(text.markdown(folder.path) for folder in own)
        + ", and the sample runs of the repository."
    )


def first_page() -> None:
    """Another search begins at its newest run."""
    st.session_state["page"] = 1


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
    """The rows that the search leaves, a page of them, brought up to date every two seconds."""
    listed = data.listed_runs()
    if not any(not row.sample for row in listed):
        first_steps()
    bullets(data.LISTING.notes())
    try:
        query = search.parse(words, more=("health",))
    except search.QueryError as refusal:
        st.warning(text.markdown(refusal, 1000))
        return
    if not listed:
        return
    rows = found(listed, query)
    if not rows:
        st.info(nothing_found(words, query, listed))
        return
    shown = rows_of_page(rows)
    seen = data.overviews(row.summary for row in shown)
    drawn_before = st.session_state.get("runs_drawn", [])
    st.session_state["runs_drawn"] = [row.summary.id for row in shown]
    compare_button(rows)
    event = st.dataframe(
        styled(shown, seen),
        hide_index=True,
        row_height=38,
        height="content" if len(shown) <= 16 else 38 * 17,
        column_config=columns(),
        key="runs_table",
        on_select=keep_ticked,
        selection_mode=["single-cell", "multi-row"],
        placeholder="–",
        alt="List of runs",
    )
    # A click names a row of the table that was on the screen; since then a new run may have moved all of them.
    chosen = [row for row, _ in event.selection.cells]
    if chosen and chosen[0] < len(drawn_before):
        # Not from here: while a fragment's run is on its way, a new page now and then arrives before it and stays white
        # ("Bad delta path index" in the browser, Streamlit 1.67).
        st.session_state["run_to_open"] = drawn_before[chosen[0]]
        st.rerun()


def keep_ticked() -> None:
    """Remember the ticked runs by name: the rows beneath the ticks move when a new run comes."""
    drawn = st.session_state.get("runs_drawn", [])
    ticked = st.session_state["runs_table"].selection.rows
    st.session_state["runs_ticked"] = [drawn[row] for row in ticked if row < len(drawn)]


def compare_button(rows: list[Listed]) -> None:
    """The way to the page that lays the ticked runs over each other."""
    names = {row.summary.id: row.summary.name or row.summary.id for row in rows}
    ticked = [run_id for run_id in st.session_state.get("runs_ticked", []) if run_id in names]
    with st.container(horizontal=True, vertical_alignment="center"):
        # A link and not a button with switch_page: a link ends this fragment's own reruns at once. One that came while
        # the other page was being made would empty that.
        st.page_link(
            "views/compare.py",
            label=f"Compare {len(ticked)} runs" if len(ticked) > 1 else "Compare",
            icon=":material/stacked_line_chart:",
            disabled=not 2 <= len(ticked) <= MOST_RUNS,
            help=f"Tick 2 to {MOST_RUNS} runs at the left edge of the table.",
            query_params={"run": ticked},
        )
        if ticked:
            st.caption(text.markdown(", ".join(names[run_id] for run_id in ticked), 300))


def found(listed: list[Listed], query: search.Query) -> list[Listed]:
    """The rows that the query leaves. Health is known of the newest only."""
    seen: Seen = {}
    if query.asks_for("health"):
        seen = data.overviews(row.summary for row in listed[:ROWS_DIAGNOSED])

    def more(row: Listed) -> dict[str, str]:
        own = {"words": "sample"} if row.sample else {}
        return own | {"health": health(row, seen)[1].replace(" ", "-")} if seen else own

    return query.select(listed, time.time(), data.LISTING.config_of, lambda row: row.summary, more)


def nothing_found(words: str, query: search.Query, listed: list[Listed]) -> str:
    """Why the list is empty though there are runs."""
    said = f"No run matches {text.markdown(repr(words))}."
    unknown = query.unknown_keys((row.summary for row in listed), data.LISTING.config_of)
    if unknown:
        said += f" No configuration here has {', '.join(text.markdown(key) for key in unknown)}."
    if query.asks_for("health"):
        known = data.overviews(row.summary for row in listed[:ROWS_DIAGNOSED]).values()
        waiting = sum(one.report.value is None and one.report.error is None for one in known)
        said += f" {text.count(waiting)} runs are still being diagnosed." if waiting else ""
        said += f" Only the newest {ROWS_DIAGNOSED} are diagnosed." if len(listed) > ROWS_DIAGNOSED else ""
    return f"{said} {text.count(len(listed))} runs are there; clear the search to see them."


def rows_of_page(rows: list[Listed]) -> list[Listed]:
    """The rows of the page that the address names; one page has no numbers."""
    pages = -(-len(rows) // ROWS_SHOWN)
    if pages == 1:
        return rows
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        said = st.empty()
        number = min(st.pagination(pages, key="page", bind="query-params"), pages)
    first = (number - 1) * ROWS_SHOWN
    shown = rows[first : first + ROWS_SHOWN]
    said.caption(f"{text.count(first + 1)} to {text.count(first + len(shown))} of {text.count(len(rows))} runs shown")
    return shown


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


def health(row: Listed, seen: Seen) -> tuple[str, str]:
    """``(label, key of HEALTH)``."""
    if row.summary.problem:
        return f"{HEALTH['unreadable'][0]} {HEALTH['unreadable'][1]}", "unreadable"
    known = seen.get(row.summary.path)
    if known is None or known.report.value is None:
        return ("✕ diagnosis failed", "unreadable") if known and known.report.error else health_words(None, [])
    return health_words(known.report.value["verdict"], incidents_of(known.report))


def state(row: Listed, now: float) -> str:
    """``▶ running, 3 s ago``."""
    current = row.summary.state
    heard = (
        f", {text.ago(current.updated, now)}"
        if current.updated and current.word in ("running", "paused", "starting", "stale", "lost")
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
