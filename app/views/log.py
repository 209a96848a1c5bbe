"""Log: what the training printed, and what happened in it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import text
from app.data import READERS
from app.facts import Facts
from app.incident import as_lines
from monitor.runfile.reader import Event


def show(path: Path, facts: Facts) -> None:
    """What the training printed last, and what happened in it."""
    st.fragment(log_tail, run_every=2.0 if facts.live else None)(path)


def log_tail(path: Path) -> None:
    """The end of the log, then the events."""
    with READERS.reading(path) as run:
        lines = run.log_tail(400)
        events = run.events()
    if lines:
        st.code("\n".join(text.plain(line, 2_000) for line in lines), language=None, height=420)
    else:
        st.info("No log in this run. A training started from here or by the gradiometer command has one.")
    if events:
        st.markdown(f"**Events** ({text.count(len(events))})")
        rows = [
            {
                "time": time.strftime("%H:%M:%S", time.localtime(event.time)),
                "step": text.count(event.step),
                "kind": text.plain(event.kind, 40),
                "what": text.plain(as_lines(told(event)).replace("\n", ", "), 300),
            }
            for event in reversed(events[-500:])
        ]
        st.dataframe(pd.DataFrame(rows), hide_index=True, key="events", height=300)


def told(event: Event) -> dict[str, Any]:
    """The fields of an event that can be read: of an attention map not its weights, which are a picture."""
    if event.kind != "attention_map":
        return event.fields
    return {name: event.fields[name] for name in ("module", "shape") if name in event.fields}
