"""The live charts: a component that pulls windows from ``/api/frame`` and redraws in place; no script reruns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app.web import plotly_version

_HERE = Path(__file__).parent
_HTML = '<div class="gm-grid"></div>'


@st.cache_resource(max_entries=1)
def _source(changed: tuple[int, int]) -> tuple[str, str]:
    return (_HERE / "live_grid.js").read_text(encoding="utf-8"), (_HERE / "live_grid.css").read_text(encoding="utf-8")


def live_grid(
    run_id: str | Sequence[str],
    view: str,
    *,
    key: str,
    span: tuple[float, float] | None = None,
    span_given: int = 0,
    stat: str | None = None,
    layer: str | None = None,
    query: Mapping[str, str] | None = None,
    every_s: float = 2.0,
    on_range_change: Callable[[], None] = lambda: None,
    on_layer_change: Callable[[], None] = lambda: None,
    on_incident_change: Callable[[], None] = lambda: None,
) -> Any:
    """Mount the live charts of one view of a run, or of several runs over each other.

    Args:
        run_id: several for ``compare``.
        view: ``story``, ``landscape``, ``system``, ``ranks`` or ``compare``.
        query: more for the question that the charts ask, by name.
        span: the zoomed range to start with, in units of the x axis.
        span_given: a number to raise when ``span`` is to replace the range that the person has zoomed to since.
        every_s: seconds between questions while the run is live.
        on_range_change: called after a zoom; the result's ``range`` is ``[x0, x1]``, or ``[]`` when it was reset.
        on_layer_change: called after a click on the heatmap; ``layer`` is the layer's name, or empty.
        on_incident_change: called after a click on an incident; ``incident`` is its key.

    Returns:
        The component's result, with ``range``, ``layer`` and ``incident``.
    """
    files = (_HERE / "live_grid.js", _HERE / "live_grid.css")
    js, css = _source(tuple(file.stat().st_mtime_ns for file in files))  # type: ignore[arg-type]
    component = st.components.v2.component("gradiometer_live_grid", html=_HTML, css=css, js=js, isolate_styles=False)
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return component(
        key=key,
        data={
            "run": run_id if isinstance(run_id, str) else list(run_id),
            "query": dict(query or {}),
            "view": view,
            "span": list(span) if span else None,
            "span_given": span_given,
            "stat": stat,
            "layer": layer,
            "every": every_s,
            "base": f"/{base}" if base else "",
            "plotly": plotly_version(),
        },
        on_range_change=on_range_change,
        on_layer_change=on_layer_change,
        on_incident_change=on_incident_change,
    )
