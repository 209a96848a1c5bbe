"""Attention: who attends to whom, in the maps that the monitor kept."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import text
from app.charts.attention import AttentionMap, attention_maps, head_figure
from app.data import READERS
from app.facts import Facts


def show(path: Path, facts: Facts) -> None:
    """The maps of one module at one step, its heads side by side."""
    st.fragment(maps)(path)


def maps(path: Path) -> None:
    """The choice of a step and a module, and the heads; a fragment, as a choice concerns nothing else."""
    with READERS.reading(path) as run:
        found, bad = attention_maps(run.events("attention_map"))
        as_bytes = run.task == "gpt"
    if bad:
        st.warning(f"{bad} of the attention maps of this run cannot be read; they are left out.")
    if not found:
        return
    chosen = map_choice(found)
    if chosen is None:
        return
    if not chosen.weights.any():
        # A softmax has a weight above zero in each row: what is kept as a byte has no word for NaN.
        st.warning("No weight is a number above zero: the scores of this step were not finite.")
    with st.grid(min_column_width=260, gap="small"):
        for head in range(len(chosen.weights)):
            figure = head_figure(chosen, head, as_bytes=as_bytes)
            st.plotly_chart(figure, key=f"head-{head}", config={"displayModeBar": False})
    st.caption(
        f"From 0 (dark) to {text.number(float(chosen.weights.max()), 2)} (bright), by the square root. Each row is a "
        f"query. Of {'the first sequence of the batch' if chosen.sample is None else 'a fixed sample'}, the first 64 "
        "queries and keys of at most 4 heads are kept."
    )
    words = chosen.words(as_bytes=as_bytes)
    if words:
        st.caption("Tokens, in order")
        st.code(("" if max(map(len, words)) == 1 else " ").join(words), language=None, wrap_lines=True)


def map_choice(found: list[AttentionMap]) -> AttentionMap | None:
    """Which map is looked at: its step, the latest unless told otherwise, and its module."""
    left, right, third = st.columns([1, 2, 2])
    samples = sorted({one.sample for one in found}, key=lambda sample: -1 if sample is None else sample)
    if samples != [None]:
        with third:
            of = {"batch" if sample is None else f"sample {sample}": sample for sample in samples}
            picked = st.selectbox("Sequence", list(of), key="map_sample", bind="query-params")
        found = [one for one in found if one.sample == of.get(str(picked))]
    steps = sorted({str(one.step) for one in found}, key=int, reverse=True)
    with left:
        step = st.selectbox(
            "Step", steps, format_func=lambda step: text.count(int(step)), key="map_step", bind="query-params"
        )
    modules = [one.module for one in found if str(one.step) == step]
    with right:
        module = st.selectbox("Module", modules, format_func=text.plain, key="map_module", bind="query-params")
    return next((one for one in found if str(one.step) == step and one.module == module), None)
