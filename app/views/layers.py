"""Layers: how gradients, updates and activations are along the depth of the model, and each layer by itself."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from app import text
from app.charts.layers import Measured, measured_at
from app.data import READERS
from app.facts import Facts
from app.followed import followed
from app.live_grid import live_grid
from app.views.common import keep, keep_cell, keep_steps, zoomed_steps
from app.web import stretch_of

MOST_ROWS = 2_000
"""Rows of a table; more are not looked through by eye (our judgement)."""


def show(path: Path, facts: Facts) -> None:
    """The part of the run page."""
    st.fragment(layers)(path, facts)


def layers(path: Path, facts: Facts) -> None:
    """The step that is looked at, what was measured there over depth, and the tables."""
    at = chosen_stretch()
    step_choice(facts.step, at)
    key = f"layers-{path.name}"
    live_grid(
        path.name,
        "layers",
        key=key,
        span=zoomed_steps(),
        span_given=st.session_state.get("span_given", 0),
        layer=st.query_params.get("layer"),
        at=st.query_params.get("at") if at else None,
        every_s=4.0,
        on_range_change=lambda: keep_steps(key),
        on_cell_change=lambda: keep_cell(key),
    )
    followed(tables, 10.0 if facts.live else None)(path, at)


def chosen_stretch() -> tuple[int, int] | None:
    """The steps that the address names; None when it names none."""
    try:
        return stretch_of(st.query_params.get("at"))
    except ValueError:
        return None


def step_choice(last_step: int | None, at: tuple[int, int] | None) -> None:
    """The step to look at; empty for the last one, so that a live run is followed."""
    st.session_state["layers_at"] = at[1] if at else None
    st.number_input(
        "At step",
        min_value=0,
        max_value=max(last_step or 0, at[1] if at else 0),
        key="layers_at",
        on_change=keep_step,
        placeholder="the last one measured",
        width=220,
        help="Each statistic is shown where it was last measured until this step.",
    )


def keep_step() -> None:
    """Write the step into the address."""
    step = st.session_state["layers_at"]
    keep("at", "" if step is None else str(int(step)))


def tables(path: Path, at: tuple[int, int] | None) -> None:
    """All layers, then all modules; a click on a row chooses it."""
    with READERS.reading(path) as run:
        found = [(title, stream, measured_at(run, stream, at)) for title, stream in TABLES]
    for title, stream, measured in found:
        if measured.columns:
            table_of(title, stream, measured)


TABLES = (("Layers", "layers"), ("Modules", "modules"))


def table_of(title: str, stream: str, measured: Measured) -> None:
    """One row a layer, one column a statistic, with the step it is of."""
    count = len(measured.names)
    st.markdown(f"**{title}** ({text.count(count)})")
    table = pd.DataFrame({"name": [text.plain(name, 200) for name in measured.names]} | measured.columns)
    picked = st.dataframe(
        table.head(MOST_ROWS),
        hide_index=True,
        height=38 + 35 * min(count, 12),
        key=f"table-{stream}",
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            name: st.column_config.NumberColumn(
                name, format="%.3g", help=f"Measured at step {text.count(measured.steps[name])}."
            )
            for name in measured.columns
        },
    )
    if count > MOST_ROWS:
        st.caption(f"The first {text.count(MOST_ROWS)} are in the table; the heatmap of the story has all.")
    rows = picked.selection.rows
    # Only a fresh tick chooses: a click on a chart since then may have chosen another layer.
    if rows and rows[0] < count and st.session_state.get(f"picked-{stream}") != rows[0]:
        st.query_params["layer"] = measured.names[rows[0]]
        st.session_state[f"picked-{stream}"] = rows[0]
        st.rerun()
    if not rows:
        st.session_state.pop(f"picked-{stream}", None)
