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
from app.followed import followed
from app.incident import as_lines
from monitor.runfile.reader import Event

LINES_SHOWN, EVENTS_SHOWN = 400, 500
LINES_SEARCHED, EVENTS_SEARCHED = 20_000, 5_000
"""Of the end of the log and of the events that a search looks through (our judgement)."""


def show(path: Path, facts: Facts) -> None:
    """What the training printed last, and what happened in it."""
    followed(log_tail, 2.0 if facts.live else None)(path)


def log_tail(path: Path) -> None:
    """The end of the log, then the events; of both only what the search finds."""
    sought = st.text_input(
        "Search", placeholder="words that a line or an event holds", key="log_search", bind="query-params", width=340
    ).strip()
    with READERS.reading(path) as run:
        lines = run.log_tail(LINES_SEARCHED if sought else LINES_SHOWN)
        events = run.events()
    found = [line for line in lines if holds(line, sought)]
    if found:
        if sought:
            st.caption(f"{text.count(len(found))} of the last {text.count(len(lines))} lines")
        shown = "\n".join(text.plain(line, 2_000) for line in found[-LINES_SHOWN:])
        st.code(shown, language=None, height=420)
    elif lines:
        st.info(f"None of the last {text.count(len(lines))} lines of the log holds these words.")
    else:
        st.info("No log in this run. A training started from here or by the gradiometer command has one.")
    rows = [
        {
            "time": time.strftime("%H:%M:%S", time.localtime(event.time)),
            "step": text.count(event.step),
            "kind": text.plain(event.kind, 40),
            "what": text.plain(as_lines(told(event)).replace("\n", ", "), 300),
        }
        for event in reversed(events[-EVENTS_SEARCHED:])
    ]
    if rows:
        rows = [row for row in rows if holds(f"{row['kind']} {row['what']}", sought)][:EVENTS_SHOWN]
        st.markdown(f"**Events** ({text.count(len(rows))} of {text.count(len(events))})")
        st.dataframe(pd.DataFrame(rows), hide_index=True, key="events", height=300)


def holds(line: str, sought: str) -> bool:
    """Whether each word of ``sought`` is in ``line``, in whatever case."""
    low = line.lower()
    return all(word in low for word in sought.lower().split())


def told(event: Event) -> dict[str, Any]:
    """The fields of an event that can be read: of an attention map not its weights, which are a picture."""
    if event.kind != "attention_map":
        return event.fields
    return {name: event.fields[name] for name in ("module", "shape") if name in event.fields}
