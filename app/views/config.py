"""Config: what was asked for, by whom it was run and where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import text
from app.compare import MOST_KEYS, config_difference
from app.data import READERS, find_run
from app.facts import Facts, attempt_rows
from app.incident import as_lines
from app.views import rewind
from monitor.errors import RunError


def show(path: Path, facts: Facts) -> None:
    """Attempts, what is different from the parent, then the configuration and the environment."""
    with READERS.reading(path) as run:
        asked, attempts, parent, rows = run.config, run.attempts, run.parent, attempt_rows(run)
    st.markdown("**Attempts**")
    if rows:
        st.dataframe(pd.DataFrame(rows), hide_index=True, key="attempts")
    else:
        st.caption("None has begun.")
    if parent:
        against_parent(asked, parent)
    rewind.show(path, facts)
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**Configuration**")
        st.code(as_lines(asked) if asked else "none was recorded", language=None)
    with right:
        last = attempts[-1] if attempts else None
        st.markdown("**Code of the last attempt**")
        st.code(git_lines(last.git if last else None), language=None, wrap_lines=True)
        st.markdown("**Environment of the last attempt**")
        environment = last.environment if last else {}
        st.code(as_lines(environment) or "none was recorded", language=None, wrap_lines=True)
    st.caption("Directory")
    st.code(str(path), language=None)


def against_parent(asked: Mapping[str, Any] | None, parent: Mapping[str, Any]) -> None:
    """The entries of the configuration that are not those of the run it was forked from."""
    name = str(parent.get("run"))
    st.markdown("**Changed against the parent**")
    st.caption(text.markdown(f"Forked from {name} at step {parent.get('step')}"))
    try:
        with READERS.reading(find_run(name)) as run:
            before = run.config
    except RunError:
        st.caption("The parent is not in these folders of runs, so what was changed is not known.")
        return
    if asked is None or before is None:
        st.caption("One of the two has no recorded configuration.")
        return
    changed = config_difference([before, asked])
    if not changed:
        st.caption("Nothing.")
        return
    table = pd.DataFrame(
        [
            {"key": text.plain(key, 200), "parent": text.plain(values[0], 300), "this run": text.plain(values[1], 300)}
            for key, values in changed[:MOST_KEYS]
        ]
    )
    st.dataframe(table, hide_index=True, height="content" if len(table) <= 16 else 600, key="against_parent")


def git_lines(git: Mapping[str, Any] | None) -> str:
    """The commit, and whether files differed from it."""
    if not git:
        return "none was recorded: the training did not run in a git checkout"
    words = {True: "files differed from the commit", False: "as committed"}
    said = {name: value for name, value in git.items() if name != "dirty"}
    dirty = git.get("dirty")
    return as_lines({**said, "state": words.get(dirty, "not known") if isinstance(dirty, bool) else "not known"})
