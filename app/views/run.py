"""Run: one training from its state to its causes; the address reproduces what is shown."""

from __future__ import annotations

import streamlit as st

from app import data
from app.data import DIAGNOSES, READERS
from app.facts import facts_of
from app.followed import followed
from app.page_tools import page_tools
from app.views import fixes, header
from app.views.common import refused
from app.views.incidents import refresh_s
from app.views.sections import SHOW, sections_of
from monitor.errors import RunError
from monitor.runfile.zoom import LONG_ROWS

LIST_COMMAND = "gradiometer runs"
# How long opening a short run may wait for its diagnosis; after that, and of a long run at once, the page says that it
# is being made. A comment, not a string beneath: this file is run as a script, and Streamlit may print a bare string
# into the page.
DIAGNOSIS_WAIT_S = 0.8
# How long the diagnosis of a long run, which keeps a core busy for seconds, is not begun: the page is drawn by then.
HEAD_START_S = 2.0
# Between two looks of the header at a live run, as the charts, and at one that has ended, which may be resumed.
LIVE_S, ENDED_S = 2.0, 5.0


def page() -> None:
    """The header, and the section that the address names."""
    run_id = st.query_params.get("run")
    if not run_id:
        refused("No run was named in the address. Open one from the list of runs.", LIST_COMMAND)
        st.page_link("views/runs.py", label="To the list of runs")
        return
    path = None
    try:
        path = data.find_run(run_id)
        with READERS.reading(path) as run:
            facts, name, version = facts_of(run), run.name, run.version
            sections = sections_of(run)
    except RunError as error:
        refused(error, None if path else LIST_COMMAND)  # an unreadable run says by itself what to do
        st.page_link("views/runs.py", label="To the list of runs")
        return
    if st.session_state.get("waited_for") != run_id:
        st.session_state["waited_for"] = run_id
        long = (facts.step or 0) >= LONG_ROWS
        DIAGNOSES.of(path, version, wait=0 if long else DIAGNOSIS_WAIT_S, head_start=HEAD_START_S if long else 0)
    followed(header.show, lambda: refresh_s(path, facts, LIVE_S) or ENDED_S, bell=True)(
        path, name, facts.live, sections
    )
    fixes.note(path)
    choice, tools = st.columns([4, 1], vertical_alignment="center")
    section = choice.segmented_control(
        "Section",
        sections,
        default="Story",
        required=True,
        key="section",
        bind="query-params",
        label_visibility="collapsed",
    )
    with tools:
        page_tools(f"{path.name}-{section}")
    SHOW[section or "Story"](path, facts)


if st.session_state.get("go_to_section"):
    st.session_state["section"] = st.session_state.pop("go_to_section")
    st.session_state["axis"] = "step"  # the way there is given in steps
page()
