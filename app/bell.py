"""The bell on a run's page: notifications of the desktop for new incidents, for whoever turns it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app import text
from app.incident import incident_key
from app.live_grid import source_of

_HERE = Path(__file__).parent
_HTML = '<div class="gm-bell"><button type="button"></button><span role="status" aria-live="polite"></span></div>'
MOST = 20


def bell(run_id: str, name: str, incidents: Sequence[Mapping[str, Any]] | None) -> None:
    """Mount it; the browser compares what is given with what it was given before.

    Args:
        incidents: worst first; None while they are not known, which is no news.
    """
    js, css = source_of(_HERE / "bell.js", _HERE / "bell.css")
    component = st.components.v2.component("gradiometer_bell", html=_HTML, css=css, js=js, isolate_styles=False)
    told = None
    if incidents is not None:
        told = [
            {
                "key": incident_key(dict(one)),
                "severity": str(one.get("severity")),
                "summary": text.plain(one.get("summary", ""), 200),
            }
            for one in incidents[:MOST]
        ]
    component(key="bell", width="content", data={"run": run_id, "name": text.plain(name, 80), "incidents": told})
