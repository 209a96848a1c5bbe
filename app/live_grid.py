"""The live charts: a component that pulls windows from ``/api/frame`` and redraws in place; no script reruns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app.web import plotly_version

_HERE = Path(__file__).parent
_HTML = '<div class="gm-grid"></div>'


def source_of(*files: Path) -> tuple[str, ...]:
    """The text of a component's files, read again only when one has changed."""
    return _source(files, tuple(file.stat().st_mtime_ns for file in files))


@st.cache_resource(max_entries=8)
def _source(files: tuple[Path, ...], changed: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(file.read_text(encoding="utf-8") for file in files)


def live_grid(
    run_id: str | Sequence[str],
    view: str,
    *,
    key: str,
    span: tuple[float, float] | None = None,
    span_given: int = 0,
    stat: str | None = None,
    layer: str | None = None,
    at: str | None = None,
    pins: Sequence[str] = (),
    logs: Sequence[str] = (),
    query: Mapping[str, str] | None = None,
    every_s: float = 2.0,
    on_range_change: Callable[[], None] = lambda: None,
    on_cell_change: Callable[[], None] = lambda: None,
    on_pins_change: Callable[[], None] = lambda: None,
    on_logs_change: Callable[[], None] = lambda: None,
    on_incident_change: Callable[[], None] = lambda: None,
    on_news_change: Callable[[], None] = lambda: None,
) -> Any:
    """Mount the live charts of one view of a run, or of several runs over each other.

    Args:
        run_id: several for ``compare``.
        view: one of ``app.web.VIEWS``.
        query: more for the question that the charts ask, by name.
        layer, at: the layer, and the steps (``400-420``), whose curve and profile are shown.
        pins: ids of the charts that come first.
        logs: ``id:1`` or ``id:0`` for each chart whose value axis was made logarithmic or linear by hand.
        span: the zoomed range to start with, in units of the x axis.
        span_given: a number to raise when ``span`` is to replace the range that the person has zoomed to since.
        every_s: seconds between questions while the run is live.
        on_range_change: called after a zoom; the result's ``range`` is ``[x0, x1]``, or ``[]`` when it was reset.
        on_cell_change: called after a click on the heatmap or on a profile over depth; ``cell`` has the ``layer`` and
            the steps ``at`` which it was, both None when nothing is chosen any more.
        on_pins_change, on_logs_change: called after a chart was pinned or no longer is, or got the other value axis;
            ``pins`` and ``logs`` are as the arguments.
        on_incident_change: called after a click on an incident; ``incident`` is its key.
        on_news_change: called when what stands beside the charts may be out of date: soon after another word in
            ``news`` of their status, seldom for more steps alone.

    Returns:
        The component's result, with ``range``, ``cell``, ``pins``, ``logs``, ``incident`` and ``news``.
    """
    wait, js, css = source_of(_HERE / "at_rest.js", _HERE / "live_grid.js", _HERE / "live_grid.css")
    component = st.components.v2.component(
        "gradiometer_live_grid", html=_HTML, css=css, js=wait + js, isolate_styles=False
    )
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
            "at": at,
            "pins": list(pins),
            "logs": list(logs),
            "every": every_s,
            "base": f"/{base}" if base else "",
            "plotly": plotly_version(),
        },
        on_range_change=on_range_change,
        on_cell_change=on_cell_change,
        on_pins_change=on_pins_change,
        on_logs_change=on_logs_change,
        on_incident_change=on_incident_change,
        on_news_change=on_news_change,
    )
