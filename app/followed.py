"""Parts of a page that run again by themselves, as ``run_every`` of a fragment, but only while somebody sees the page.

A fragment's own clock goes on in every hidden tab, and a run's page that was left open would keep a server busy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeAlias

import streamlit as st

from app.live_grid import source_of

P = ParamSpec("P")

_HERE = Path(__file__).parent
_HTML = '<div class="gm-followed"></div>'


Seconds: TypeAlias = "float | None"


def followed(
    part: Callable[P, None], every_s: Seconds | Callable[[], Seconds], *, bell: bool = False
) -> Callable[P, None]:
    """``part`` as a fragment that runs again every ``every_s`` seconds while the page is in sight; None for never.

    Args:
        every_s: asked again with each run of the part where it is a function.
        bell: every ten seconds in a hidden tab too when the bell is on.
    """

    @wraps(part)
    def with_beat(*args: P.args, **kwargs: P.kwargs) -> None:
        seconds = every_s() if callable(every_s) else every_s
        if seconds is not None:
            _beat(f"beat-{part.__module__.strip('_')}.{part.__qualname__}", seconds, bell)  # no __ in a key of it
        part(*args, **kwargs)

    return st.fragment(with_beat)


def _beat(key: str, every_s: float, bell: bool) -> None:
    wait, js, css = source_of(_HERE / "at_rest.js", _HERE / "followed.js", _HERE / "followed.css")
    component = st.components.v2.component(
        "gradiometer_followed", html=_HTML, css=css, js=wait + js, isolate_styles=False
    )
    component(key=key, data={"every": every_s, "bell": bell}, on_beat_change=lambda: None)
