"""What a page has beside its parts: keys, their help, and a button that saves it as one HTML file."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

_HERE = Path(__file__).parent
_HTML = '<div class="gm-page-tools"></div>'


def page_tools(title: str) -> None:
    """Mount the tools; ``title`` names the saved file."""
    js, css = ((_HERE / f"page_tools.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    component = st.components.v2.component("gradiometer_page_tools", html=_HTML, css=css, js=js, isolate_styles=False)
    component(key="page_tools", data={"title": title})
