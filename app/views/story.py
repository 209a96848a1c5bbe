"""Story: the aligned stack of curves with what happened along it, and the worst incident above."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import text
from app.charts import measures
from app.data import DIAGNOSES, READERS, incidents_of
from app.facts import Facts
from app.incident import incident_key
from app.live_grid import live_grid
from app.views.common import keep_range, severity_badge, zoomed
from app.views.incidents import open_incident, refresh_s


def show(path: Path, facts: Facts) -> None:
    """The aligned stack, with the worst incident above it."""
    st.fragment(alarm, run_every=refresh_s(path, facts, 3.0))(path)
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
        there = measures.choices(run)
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
        on_range_change=lambda: keep_range(key),
        on_layer_change=lambda: keep_layer(key),
        on_incident_change=lambda: open_incident(str(st.session_state[key].get("incident"))),
    )
    if st.session_state.get("section") == "Incidents":
        st.rerun()


def heatmap_choice(there: list[measures.Choice]) -> str | None:
    """What the heatmap is to show, by its key; beside the choice what that is and how often it is measured."""
    by_key = {choice.key: choice for choice in there}
    picked, explained = st.columns([2, 3], vertical_alignment="bottom")
    with picked:
        key = st.selectbox(
            "The heatmap shows",
            list(by_key),
            format_func=lambda key: text.plain(by_key[key].label),
            key="stat",
            bind="query-params",
        )
    if key is not None:
        explained.caption(text.markdown(by_key[key].explained, 400))
    return key


def keep_layer(key: str) -> None:
    """Write the chosen layer into the address."""
    layer = st.session_state[key].get("layer")
    if layer:
        st.query_params["layer"] = str(layer)
    elif "layer" in st.query_params:
        del st.query_params["layer"]
