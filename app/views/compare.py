"""Compare: the same charts of several runs laid over each other, what came of each, and where they differ."""

from __future__ import annotations

import contextlib
import hashlib
import time

import pandas as pd
import streamlit as st
from streamlit.errors import StreamlitAPIException

from app import data, text
from app.charts.axes import AXES
from app.charts.compare import MOST_CHARTS, metrics_of
from app.compare import (
    MOST_KEYS,
    MOST_RUNS,
    Result,
    comparing,
    config_difference,
    distinct,
    matters,
    result_of,
)
from app.live_grid import live_grid
from app.views.common import HEALTH, STATES, bullets, health_words, keep_range, refused, zoomed
from app.views.controls import axis_choice, metrics_choice, smoothing_choice
from monitor.runfile import search

RESULTS = "results"  # the part that the charts have drawn anew when something came
ROWS_OFFERED = 500  # newest runs in the box to choose from; the search reaches all (our judgement)


def page() -> None:
    """The choice of runs, and what there is to say about them."""
    if run_id := st.session_state.pop("run_to_open", None):
        st.switch_page("views/run.py", query_params={"run": run_id})
    st.title("Compare")
    named = st.query_params.get_all("run")
    ids = distinct(named)
    choice(ids)
    if len(set(named)) > MOST_RUNS:
        st.warning(f"{len(set(named))} runs are named in the address; the first {MOST_RUNS} are compared.")
    if not ids:
        nothing_chosen()
        return
    axis, smoothing, pattern, log = controls()
    with comparing(ids) as compared:
        readable = len(compared.entries)
    for run_id, reason in compared.refused.items():
        st.warning(f"**{text.markdown(run_id, 80)}** cannot be read: {text.markdown(reason, 400)}")
    if not readable:
        refused("None of the chosen runs can be read.", "gradiometer runs")
        return
    if readable == 1:
        st.info("One run is shown. Choose another above to compare it with.")
    st.fragment(results, key=RESULTS)(ids, axis, pattern)
    query = {"axis": axis, "smooth": f"{smoothing:g}", "metrics": pattern, "log": "1" if log else "0"}
    st.fragment(charts)(ids, query)
    differences(ids)


# ---- what to compare ----------------------------------------------------------------------------------------------


def choice(ids: list[str]) -> None:
    """The runs of the address in a box, and a search that adds to them."""
    rows = data.listed_runs()
    names = {row.summary.id: row.summary.name or row.summary.id for row in rows}
    st.session_state["compare_runs"] = ids
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with left:
        st.multiselect(
            f"Runs, up to {MOST_RUNS}",
            list(dict.fromkeys([*ids, *(row.summary.id for row in rows[:ROWS_OFFERED])])),
            format_func=lambda run_id: text.plain(label_of(str(run_id), names), 120),
            max_selections=MOST_RUNS,
            key="compare_runs",
            on_change=keep_runs,
            placeholder="Choose runs",
        )
    with right, st.container(horizontal=True, vertical_alignment="bottom"):
        words = st.text_input(
            "Add by search", placeholder="for example tag:baseline lr>=1e-3", key="find", bind="query-params"
        )
        found = matching(words or "", rows, ids)
        st.button(
            f"Add {len(found)}" if found else "Add",
            disabled=not found,
            on_click=add_runs,
            args=(ids, found),
            key="add_found",
        )


def label_of(run_id: str, names: dict[str, str]) -> str:
    """Name and id; the id alone for an unknown run."""
    name = names.get(run_id, run_id)
    return run_id if name == run_id else f"{name} ({run_id})"


def matching(words: str, rows: list[data.Listed], ids: list[str]) -> list[str]:
    """The newest runs that a query finds, as many as there is still room for."""
    if not words.strip():
        return []
    try:
        query = search.parse(words)
    except search.QueryError as refusal:
        st.warning(text.markdown(refusal, 1000))
        return []
    found = query.select(rows, time.time(), data.LISTING.config_of, lambda row: row.summary)
    fresh = [row.summary.id for row in found if row.summary.id not in ids and row.summary.problem is None]
    if not fresh:
        st.caption(f"No other run matches {text.markdown(repr(words))}.")
    return distinct(fresh)[: MOST_RUNS - len(ids)]


def keep_runs() -> None:
    """Write the chosen runs into the address."""
    st.query_params["run"] = st.session_state["compare_runs"]


def add_runs(ids: list[str], found: list[str]) -> None:
    """Add what was found."""
    st.query_params["run"] = [*ids, *found]


def nothing_chosen() -> None:
    """What to do on an empty page."""
    if not data.listed_runs():
        st.info("There are no runs yet. Start one here, or in a terminal:")
        st.code("gradiometer train", language=None)
        return
    st.info(f"Choose 2 to {MOST_RUNS} runs above, or tick them in the list of runs.")
    st.page_link("views/runs.py", label="To the list of runs")


def controls() -> tuple[str, float, str, bool]:
    """Axis, smoothing, search for metrics, and whether all value axes are logarithmic."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        axis, smoothing, pattern = axis_choice(list(AXES)), smoothing_choice(), metrics_choice()
        log = st.toggle("Logarithmic", key="log", bind="query-params")
    return axis, smoothing, pattern, log


# ---- what there is to see -----------------------------------------------------------------------------------------


def results(ids: list[str], axis: str, pattern: str) -> None:
    """What came of each run, and what cannot be compared."""
    with comparing(ids) as compared:
        rows = [result_of(entry) for entry in compared.entries]
        said = matters(compared.entries, axis, pattern)
        metrics = len(metrics_of((entry.run for entry in compared.entries), pattern))
    event = st.dataframe(
        frame(rows).style.apply(lambda column: painted(rows, str(column.name)), axis=0),
        hide_index=True,
        height="content",
        key="results",
        on_select="rerun",
        selection_mode="single-cell",
        column_config={"colour": st.column_config.TextColumn("", width=28)},
        alt="Results of the runs",
    )
    for row, _ in event.selection.cells:
        # By a run of the whole page, as in the list of runs.
        st.session_state["run_to_open"] = rows[row].id
        st.rerun()
    bullets(said)
    if metrics > MOST_CHARTS:
        st.caption(f"{metrics} metrics match; the first {MOST_CHARTS} are shown. Search more narrowly for the others.")


def draw_results_anew() -> None:
    """Run the part above alone."""
    with contextlib.suppress(StreamlitAPIException):  # the page was left while the news was on its way
        st.rerun(RESULTS)


def frame(rows: list[Result]) -> pd.DataFrame:
    """One row a run."""
    return pd.DataFrame(
        {
            "colour": ["●" for _ in rows],
            "run": [text.plain(row.label, 120) for row in rows],
            "state": [f"{STATES.get(row.state.word, ('?', ''))[0]} {row.state.word}" for row in rows],
            "health": [health_of(row) for row in rows],
            "steps": [steps_of(row) for row in rows],
            "last train loss": [text.number(row.train_last) for row in rows],
            "best train loss": [text.number(row.train_best) for row in rows],
            "last held-out loss": [text.number(row.val_last) for row in rows],
            "best held-out loss": [text.number(row.val_best) for row in rows],
            "tokens/s": [text.rate(row.tokens_per_s, "tokens/s") for row in rows],
            "forked from": [text.plain(row.forked_from or "–", 120) for row in rows],
        }
    )


def health_of(row: Result) -> str:
    """What the diagnosis says."""
    if row.verdict is None:
        return f"{HEALTH['unknown'][0]} {HEALTH['unknown'][1]}"
    return health_words(row.verdict, row.incidents)[0]


def steps_of(row: Result) -> str:
    """``512 of 1 200``."""
    planned = f" of {text.count(row.planned_steps)}" if row.planned_steps else ""
    return f"{text.count(row.step)}{planned}"


def painted(rows: list[Result], column: str) -> list[str]:
    """The dot of each row in the colour of its curves."""
    if column != "colour":
        return [""] * len(rows)
    theme = "dark" if st.context.theme.type == "dark" else "light"
    colours = st.get_option(f"theme.{theme}.chartCategoricalColors") or []
    return [f"color: {colours[row.colour]}; font-size: 1.3em" if row.colour < len(colours) else "" for row in rows]


def charts(ids: list[str], query: dict[str, str]) -> None:
    """The live charts; a fragment of its own, so that a zoom does not run the rest of the page."""
    # Another choice of runs is another grid: what the browser has of the one says nothing about the other.
    key = f"compare-{hashlib.blake2b(repr(ids).encode(), digest_size=6).hexdigest()}"
    live_grid(
        ids,
        "compare",
        key=key,
        query=query,
        span=zoomed(),
        span_given=st.session_state.get("span_given", 0),
        on_range_change=lambda: keep_range(key),
        on_news_change=draw_results_anew,
    )


def differences(ids: list[str]) -> None:
    """The entries of the configurations that differ: one row a key, the runs as columns."""
    with comparing(ids) as compared:
        labels = [entry.label for entry in compared.entries]
        configs = [entry.run.config for entry in compared.entries]
    if len(labels) < 2:
        return
    st.markdown("**Where the configurations differ**")
    missing = [label for label, config in zip(labels, configs, strict=True) if config is None]
    if missing:
        st.caption(f"Without a recorded configuration: {text.markdown(', '.join(missing), 400)}.")
    rows = config_difference(configs)
    if not rows:
        if len(labels) - len(missing) > 1:
            st.caption("Nowhere: they are the same.")
        return
    table = {"key": [text.plain(key, 200) for key, _ in rows[:MOST_KEYS]]}
    for at, label in enumerate(labels):
        column = label if label not in table else f"{label} "  # a run may be called "key"
        table[column] = [text.plain(values[at], 300) for _, values in rows[:MOST_KEYS]]
    st.dataframe(pd.DataFrame(table), hide_index=True, height="content" if len(rows) <= 16 else 600, key="differences")
    if len(rows) > MOST_KEYS:
        st.caption(f"{text.count(len(rows) - MOST_KEYS)} further entries differ.")


page()
