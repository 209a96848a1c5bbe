"""System: where the time of a step goes, and what the machine did."""

from __future__ import annotations

import shutil
from pathlib import Path

import streamlit as st

from app import text
from app.data import READERS
from app.facts import Facts
from app.live_grid import live_grid
from app.views.common import keep_steps, zoomed_steps


def show(path: Path, facts: Facts) -> None:
    """By steps, then by seconds."""
    with READERS.reading(path) as run:
        ranks = sorted(run.ranks(run.line[-1].attempt)) if run.line else []
        per_step = run.bytes_per_step
    key = f"speed-{path.name}"
    st.fragment(live_grid)(
        path.name, "speed", key=key, span=zoomed_steps(), every_s=4.0, on_range_change=lambda: keep_steps(key)
    )
    st.fragment(machine)(path, ranks)
    if not facts.has_gpu:
        st.caption("No GPU was used, so there are no GPU curves.")
    st.caption(disk(path, per_step))


def machine(path: Path, ranks: list[int]) -> None:
    """What was sampled of the machine, of one rank."""
    rank = "0"
    if len(ranks) > 1:
        chosen = st.selectbox(
            "Rank", [str(rank) for rank in ranks], key="system_rank", bind="query-params", width=120,
            help="Each process samples its own device and memory.",
        )  # fmt: skip
        rank = chosen or "0"
    live_grid(path.name, "system", key=f"system-{path.name}-{rank}", query={"rank": rank}, every_s=4.0)


def disk(path: Path, per_step: float | None) -> str:
    """What is free where the run lies, and what it writes."""
    try:
        free = f"{shutil.disk_usage(path).free / 2**30:.1f} GiB are free on the disk that this run lies on"
    except OSError:
        free = "How much is free on the disk of this run is not known"
    return f"{free}; it writes about {text.count(round(per_step))} bytes a step." if per_step else f"{free}."
