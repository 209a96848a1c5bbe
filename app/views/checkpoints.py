"""Checkpoints: what can be gone back to, on the curve and as a table."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from app import text
from app.data import READERS
from app.facts import Facts
from app.followed import followed
from app.live_grid import live_grid
from app.views import rewind
from app.views.common import keep_steps, zoomed_steps
from monitor.runfile.reader import Checkpoint, Run
from monitor.signals import Signal

MOST_FILES = 10_000
"""Files of one checkpoint that are added up; a folder may hold anything."""


def show(path: Path, facts: Facts) -> None:
    """The curves with the checkpoints on them, and the table."""
    rewind.show(path, facts)
    followed(table, 4.0 if facts.live else None)(path)
    key = f"checkpoints-{path.name}"
    st.fragment(live_grid)(
        path.name, "checkpoints", key=key, span=zoomed_steps(), every_s=4.0, on_range_change=lambda: keep_steps(key)
    )


def table(path: Path) -> None:
    """A row for each folder, the latest first."""
    with READERS.reading(path) as run:
        found = run.checkpoints()
        rows = [row_of(run, one) for one in reversed(found)]
    if not rows:
        st.info(
            "No checkpoint lies in this run's folder. The trainer writes them every checkpoint.every\\_steps steps."
        )
        return
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, key="checkpoints", height=38 + 35 * min(len(rows), 10),
        column_config={"written": st.column_config.DatetimeColumn("written", format="distance")},
    )  # fmt: skip
    incomplete = sum(not one.complete for one in found)
    if incomplete:
        st.caption(f"{incomplete} of them were cut short: they have no COMMIT.json, and none is resumed from.")


def row_of(run: Run, one: Checkpoint) -> dict[str, object]:
    """Step, whether it is whole, the losses there, its size and when it was written."""
    size, written = size_of(one.path)
    return {
        "step": one.step,
        "state": "complete" if one.complete else "cut short",
        "train loss": text.number(value_at(run.series("train_loss"), one.step)),
        "validation loss": text.number(value_at(run.series("val_loss"), one.step)),
        "MiB": round(size / 2**20, 1),
        "written": pd.to_datetime(written, unit="s", utc=True),
    }


def value_at(signal: Signal, step: int) -> float | None:
    """The value of exactly this step; None where none was recorded."""
    row = int(np.searchsorted(signal.step, step))
    return float(signal.value[row]) if row < len(signal) and signal.step[row] == step else None


def size_of(folder: Path) -> tuple[int, float | None]:
    """Bytes of the plain files in a folder, and when it was last changed; links are not followed."""
    total, count = 0, 0
    try:
        for where, _, files in os.walk(folder, followlinks=False):
            for name in files:
                about = Path(where, name).lstat()
                total += about.st_size if stat.S_ISREG(about.st_mode) else 0
                count += 1
                if count >= MOST_FILES:
                    return total, folder.stat().st_mtime
        return total, folder.stat().st_mtime
    except OSError:  # it may be removed while it is looked at
        return total, None
