"""Config: what was asked for, by whom it was run and where."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from app import text
from app.data import READERS
from app.facts import Facts, attempt_rows
from app.incident import as_lines


def show(path: Path, facts: Facts) -> None:
    """What was asked for, by whom it was run and where."""
    with READERS.reading(path) as run:
        asked, attempts, parent, rows = run.config, run.attempts, run.parent, attempt_rows(run)
    st.markdown("**Attempts**")
    if rows:
        st.dataframe(pd.DataFrame(rows), hide_index=True, key="attempts")
    else:
        st.caption("None has begun.")
    if parent:
        st.caption(text.markdown(f"Forked from {parent.get('run')} at step {parent.get('step')}"))
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**Configuration**")
        st.code(as_lines(asked) if asked else "none was recorded", language=None)
    with right:
        st.markdown("**Environment of the last attempt**")
        environment = attempts[-1].environment if attempts else {}
        git = attempts[-1].git if attempts else None
        st.code(
            as_lines({**environment, **({"git": git} if git else {})}) or "none was recorded",
            language=None,
            wrap_lines=True,
        )
    st.caption("Directory")
    st.code(str(path), language=None)
