"""System: what the machine did."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app.facts import Facts
from app.live_grid import live_grid


def show(path: Path, facts: Facts) -> None:
    """What the machine did."""
    live_grid(path.name, "system", key=f"system-{path.name}", every_s=4.0)
    if not facts.has_gpu:
        st.caption("No GPU was used, so there are no GPU curves.")
