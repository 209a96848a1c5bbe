"""Story: the aligned stack of curves with what happened along it, and the worst incident above."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import text
from app.charts import measures
from app.charts.axes import AXES
from app.charts.look import MOST_PINS
from app.data import DIAGNOSES, READERS, incidents_of
from app.facts import Facts
from app.followed import followed
from app.incident import incident_key
from app.live_grid import live_grid
from app.views.common import keep, keep_cell, keep_range, severity_badge, zoomed
from app.views.controls import axis_choice, metrics_choice, smoothing_choice
from app.views.incidents import open_incident, refresh_s


def show(path: Path, facts: Facts) -> None:
    """The aligned stack, with the worst incident above it."""
    followed(alarm, lambda: refresh_s(path, facts, 3.0))(path)
    if facts.step is None and not facts.live:
        st.info("This run has no points, and nothing writes to it any more. Start another one:")
        st.code("gradiometer train", language=None)
        return
    st.fragment(stack)(path)


def alarm(path: Path) -> None:
    """The worst incident in one line, with the way to it."""
    with READERS.reading(path) as run:
        version = run.version
    found = incidents_of(DIAGNOSES.of(path, version))
    if not found:
        return
    worst = found[0]
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        more = f" And {len(found) - 1} more." if len(found) > 1 else ""
        words = text.markdown(str(worst["summary"]).rstrip(".") + "." + more, 400)
        st.markdown(f"{severity_badge(worst)} {words}", width="stretch")
        if st.button("Why, and what to do", key="open_incident"):
            open_incident(incident_key(worst))
            st.rerun()


def stack(path: Path) -> None:
    """The live charts; a fragment of its own, so that a zoom does not run the rest of the page."""
    run_id = path.name
    with READERS.reading(path) as run:
        there, names = measures.choices(run), set(run.names)
        attempts = [attempt.number for attempt in run.attempts]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        axis = axis_choice([axis for axis in AXES if axis != "tokens" or "tokens" in names])
        st.session_state["story_axis"] = axis
        query = {"axis": axis, "smooth": f"{smoothing_choice():g}", "metrics": metrics_choice()}
        if len(attempts) > 1:
            query["attempt"] = attempt_choice(attempts)
        stat = heatmap_choice(there) if len(there) > 1 else None
    key = f"story-{run_id}"
    live_grid(
        run_id,
        "story",
        key=key,
        span=zoomed(),
        span_given=st.session_state.get("span_given", 0),
        stat=stat,
        layer=st.query_params.get("layer"),
        at=st.query_params.get("at"),
        pins=listed("pins"),
        logs=[one for one in listed("logs") if one[-2:] in (":0", ":1")],
        query=query,
        on_range_change=lambda: keep_range(key),
        on_cell_change=lambda: keep_cell(key),
        on_pins_change=lambda: keep_listed(key, "pins"),
        on_logs_change=lambda: keep_listed(key, "logs"),
        on_incident_change=lambda: open_incident(str(st.session_state[key].get("incident"))),
    )
    if st.session_state.get("section") == "Incidents":
        st.rerun()


def attempt_choice(attempts: list[int]) -> str:
    """The attempt whose curves are shown, by its number; empty for the run as it stands."""
    whole = "as it stands"
    chosen = st.selectbox(
        "Attempt", [whole, *map(str, attempts)], key="attempt", bind="query-params", persist_state="page", width=150,
        help="The run as it stands, with what a later attempt took over in grey; or one attempt alone.",
    )  # fmt: skip
    return "" if chosen in (None, whole) else str(chosen)


def heatmap_choice(there: list[measures.Choice]) -> str | None:
    """What the heatmap is to show, by its key; what that is and how often it is measured is said beside the choice."""
    by_key = {choice.key: choice for choice in there}
    chosen = by_key.get(str(st.session_state.get("stat")), there[0])
    return st.selectbox(
        "The heatmap shows",
        list(by_key),
        format_func=lambda key: text.plain(by_key[key].label),
        key="stat",
        bind="query-params",
        persist_state="page",
        width=330,
        help=text.markdown(chosen.explained, 400) or None,
    )


def listed(name: str) -> list[str]:
    """What the address has under ``name``, between commas."""
    return [one for one in st.query_params.get(name, "").split(",") if one][:MOST_PINS]


def keep_listed(key: str, name: str) -> None:
    """Write what the charts report as ``name`` into the address."""
    keep(name, ",".join(map(str, st.session_state[key].get(name) or [])))
