"""Landscape: the loss around the weights."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app.charts.still import slice_figure
from app.data import READERS
from app.facts import Facts
from app.live_grid import live_grid
from app.views.common import keep_steps, zoomed_steps


def show(path: Path, facts: Facts) -> None:
    """The loss around the weights, over steps and along one direction."""
    with READERS.reading(path) as run:
        samples = run.landscape()
        measured = bool(samples) or "landscape_loss_mean" in run.names
    if not measured:
        st.info("No landscape samples in this run.")
        st.caption("The trainer takes them every monitor.landscape\\_every steps; in a loop of your own call:")
        st.code("mon.landscape_sample(lambda: loss_of(fixed_batch))", language="python")
        return
    key = f"landscape-{path.name}"
    st.fragment(live_grid)(
        path.name, "landscape", key=key, span=zoomed_steps(), every_s=4.0, on_range_change=lambda: keep_steps(key)
    )
    st.fragment(slices, run_every=10.0 if facts.live else None)(path)


def slices(path: Path) -> None:
    """The last slices."""
    with READERS.reading(path) as run:
        figure = slice_figure(run.landscape())
    if figure is None:
        st.caption("No slice along a direction has been taken yet.")
        return
    st.markdown("**Loss along one direction through the weights**")
    st.plotly_chart(figure, key="slice", config={"displayModeBar": False})
