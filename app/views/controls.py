"""The controls of live charts that several pages have: along which axis, how smooth, which metrics."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import text
from app.charts.metric_search import checked_pattern
from app.charts.smooth import MOST


def axis_choice(axes: Sequence[str]) -> str:
    """What the curves are laid along, one of ``axes``; the first is in force until another is chosen."""
    if st.session_state.get("axis", axes[0]) not in axes:
        del st.session_state["axis"]
    axis = st.segmented_control(
        "Along",
        axes,
        default="step",
        required=True,
        key="axis",
        bind="query-params",
        persist_state="page",
        on_change=forget_range,
    )
    return axis or axes[0]


def smoothing_choice() -> float:
    """The weight of the moving average."""
    return st.slider(
        "Smoothing",
        0.0,
        MOST,
        0.0,
        0.001,
        format="%.3f",
        key="smooth",
        bind="query-params",
        persist_state="page",
        width=220,
        help="The debiased moving average of TensorBoard, the same for the same number. What was recorded stays "
        "visible behind it. It begins anew after a value that is not finite and after a restart.",
    )


def metrics_choice() -> str:
    """The regular expression that metrics are searched by; with its words when it is none, and then as if empty."""
    pattern = st.text_input(
        "Metrics",
        placeholder="regular expression, for example loss|grad.*norm",
        key="metrics",
        bind="query-params",
        persist_state="page",
        width=300,
    )
    try:
        checked_pattern(pattern or "")
    except ValueError as refusal:
        st.warning(text.markdown(refusal, 600))
        return ""
    return pattern or ""


def forget_range() -> None:
    """A range of steps is none of seconds."""
    for name in ("x0", "x1"):
        if name in st.query_params:
            del st.query_params[name]
    st.session_state["span_given"] = st.session_state.get("span_given", 0) + 1
