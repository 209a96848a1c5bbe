"""The table of runs: a component that keeps ticks by run id, and asks the page for rows only when something changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app.live_grid import source_of

_HERE = Path(__file__).parent


def run_table(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[dict[str, Any]],
    *,
    key: str,
    version: str,
    pending: bool,
    ticked: Sequence[str],
    ticked_given: int,
    sort: str,
    every_s: float = 2.0,
    on_ticked_change: Callable[[], None],
    on_sort_change: Callable[[], None],
) -> Any:
    """Mount the table.

    Args:
        rows: what ``app.views.run_rows.cells`` makes.
        columns: ``id``, ``title``, and whether it is a number, sortable, and left out of a narrow page.
        version: the answer of ``/api/runs`` that these rows were made from; the browser asks again every ``every_s``
            seconds while it is in sight, and for new rows when the answer is another.
        pending: whether new rows should be asked for in any case.
        ticked: ids of the runs to tick; the component's own ticks are by id too, so a new row moves none of them.
        ticked_given: a number to raise when ``ticked`` is to replace what the person has ticked since.
        on_ticked_change: the result's ``ticked`` has the ``ids``.
        on_sort_change: ``sort`` is the id of a column, after a minus when downwards; empty for the newest first.
    """
    wait, js, css = source_of(_HERE / "at_rest.js", _HERE / "run_table.js", _HERE / "run_table.css")
    component = st.components.v2.component(
        "gradiometer_run_table", html='<div class="gm-runs"></div>', css=css, js=wait + js, isolate_styles=False
    )
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return component(
        key=key,
        data={
            "rows": list(rows),
            "columns": list(columns),
            "version": version,
            "pending": pending,
            "ticked": list(ticked),
            "ticked_given": ticked_given,
            "sort": sort,
            "every": every_s,
            "base": f"/{base}" if base else "",
        },
        on_ticked_change=on_ticked_change,
        on_sort_change=on_sort_change,
        on_changed_change=lambda: None,
    )
