"""The ranks of a run side by side: who is slow, whose gradient is off, and whether all hold the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import text
from app.data import READERS
from app.facts import Facts
from app.followed import followed
from app.live_grid import live_grid
from app.views.common import refused
from monitor.errors import RunError
from monitor.runfile.ranks import RankTable, rank_table
from monitor.runfile.reader import Run

WINDOW = 50
"""Steps of the window that the table is about (our judgement)."""
MEASURES: tuple[tuple[str, str], ...] = (
    ("step_time_s", "step time (s)"),
    ("first_gradient_s", "to first gradient (s)"),
    ("comm_exposed_s", "exposed communication (s)"),
    ("grad_norm_local", "local gradient norm"),
    ("train_loss", "loss"),
)
"""Columns of the table: signal and heading."""
ODD_FACTOR = 1.2
"""A rank is marked as slow when its time is this many times the median of all, as much as a step in which
one rank holds up all by a fifth (our judgement; the rule ``straggler`` decides on more)."""
ODD_NORM_FACTOR = 3.0
"""A rank is marked as odd when its gradient norm is so many times the median, or that fraction (our judgement)."""


def has_several(run: Run) -> bool:
    """Whether the attempt that the run stands at has more than one rank."""
    return bool(run.line) and len(run.ranks(run.line[-1].attempt)) > 1


def show(path: Path, facts: Facts) -> None:
    """The part of the run page."""
    followed(tables, 4.0 if facts.live else None)(path)
    live_grid(path.name, "ranks", key=f"ranks-{path.name}", every_s=4.0)


def tables(path: Path) -> None:
    """The last window, the worst one, and whether the ranks' weights are equal."""
    try:
        with READERS.reading(path) as run:
            last = run.last_step or 0
            recent = rank_table(run, first_step=max(0, last - WINDOW + 1), window=1)
            whole = rank_table(run)
    except RunError as refusal:
        refused(refusal)
        return
    if not len(whole.first_step):
        st.info("These ranks have recorded no step yet.")
        return
    st.markdown(f"**The last {WINDOW} steps** (attempt {whole.attempt}, {len(whole.ranks)} ranks)")
    st.dataframe(pd.DataFrame(rows(of_window(recent), recent.ranks)), hide_index=True, key="ranks_recent")
    worst = worst_window(whole)
    if worst is not None:
        first, final = int(whole.first_step[worst]), int(whole.last_step[worst])
        where = f"step {text.count(first)}" if first == final else f"steps {text.count(first)} to {text.count(final)}"
        st.markdown(f"**The worst window**: {where}, where one rank is farthest from the others")
        st.dataframe(pd.DataFrame(rows(of_row(whole, worst), whole.ranks)), hide_index=True, key="ranks_worst")
    weights(whole)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the ranks had in some steps: by signal, of those that any rank had."""

    values: dict[str, np.ndarray]
    """float64[R]: medians; NaN where one of the steps was, and where there is none."""
    there: dict[str, np.ndarray]
    """bool[R]: whether that rank had a value at all."""


def of_window(table: RankTable) -> Measured:
    """The medians over all rows of ``table``."""
    held = {name: table.count[name] > 0 for name in table.median}
    values = {
        name: np.array(
            [
                float(np.median(of[has])) if has.any() else np.nan
                for of, has in zip(medians.T, held[name].T, strict=True)
            ]
        )
        for name, medians in table.median.items()
    }
    return _of_those(values, {name: np.logical_or.reduce(has, axis=0) for name, has in held.items()})


def of_row(table: RankTable, row: int) -> Measured:
    """The same of one row."""
    there = {name: count[row] > 0 for name, count in table.count.items()}
    return _of_those({name: medians[row] for name, medians in table.median.items()}, there)


def _of_those(values: dict[str, np.ndarray], there: dict[str, np.ndarray]) -> Measured:
    had = [name for name in values if there[name].any()]
    return Measured({name: values[name] for name in had}, {name: there[name] for name in had})


def slowness(measured: dict[str, np.ndarray]) -> tuple[str, np.ndarray] | None:
    """The signal that tells who is slow, and each rank's time by the median; None without one.

    In a synchronous training all wait for the slow rank, so that the step time is the same everywhere: the time to the
    first gradient tells, or what is left of the step without the waiting.
    """
    if "first_gradient_s" in measured:
        return "first_gradient_s", by_middle(measured["first_gradient_s"])
    if "step_time_s" in measured and "comm_exposed_s" in measured:
        return "step_time_s", by_middle(measured["step_time_s"] - measured["comm_exposed_s"])
    return ("step_time_s", by_middle(measured["step_time_s"])) if "step_time_s" in measured else None


def by_middle(values: np.ndarray) -> np.ndarray:
    """Each value by the median of the finite ones, of two by the other, float64[R]; NaN where that is none or zero."""
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return np.full(len(values), np.nan)
    middle = np.full(len(values), np.median(finite))
    if len(finite) == 2:
        middle[np.isfinite(values)] = finite[::-1]
    return np.divide(values, middle, out=np.full(len(values), np.nan), where=middle > 0)


def worst_window(table: RankTable) -> int | None:
    """The row in which one rank is farthest from the others, by its time or its local gradient norm; None without any.

    A norm that is not finite on some ranks only is farther than any other.
    """
    worst, most = None, 0.0
    for row in range(len(table.first_step)):
        far = distance(of_row(table, row))
        if far > most:
            worst, most = row, far
    return worst


def distance(measured: Measured) -> float:
    """How far the oddest rank is from the others, in units of what is marked; 0 when nothing can be told."""
    ratios = [np.zeros(1)]
    slow = slowness(measured.values)
    if slow is not None:
        ratios.append(np.log(np.fmax(slow[1], 1e-12)) / np.log(ODD_FACTOR))
    norm = measured.values.get("grad_norm_local")
    if norm is not None:
        finite = np.isfinite(norm)
        if finite.any() and not finite[measured.there["grad_norm_local"]].all():
            return np.inf
        ratios.append(np.abs(np.log(np.fmax(by_middle(norm), 1e-12))) / np.log(ODD_NORM_FACTOR))
    return float(np.nanmax(np.concatenate(ratios)))


def rows(measured: Measured, ranks: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row a rank with what is remarkable about it in words; a dash where it has no value."""
    remarks = remarked(measured, len(ranks))
    return [
        {
            "rank": str(rank),
            **{
                title: text.number(float(measured.values[name][at]) if measured.there[name][at] else None)
                for name, title in MEASURES
                if name in measured.values
            },
            "remark": remarks[at],
        }
        for at, rank in enumerate(ranks)
    ]


def remarked(measured: Measured, count: int) -> list[str]:
    """What is remarkable about each rank; an empty text for most."""
    words: list[list[str]] = [[] for _ in range(count)]
    slow = slowness(measured.values)
    norm = measured.values.get("grad_norm_local", np.full(count, np.nan))
    there = measured.there.get("grad_norm_local", np.zeros(count, bool))
    ratio, finite = by_middle(norm), np.isfinite(norm)
    for at, own in enumerate(words):
        if slow is not None and slow[1][at] >= ODD_FACTOR:
            own.append(f"▲ slow: {text.number(float(slow[1][at]), 3)} times the middle of all")
        if finite.any() and there[at] and not finite[at]:
            own.append("▲ gradient norm not finite")
        elif ratio[at] >= ODD_NORM_FACTOR or ratio[at] <= 1 / ODD_NORM_FACTOR:
            own.append(f"▲ gradient norm {text.number(float(ratio[at]), 3)} times the middle of all")
    return [", ".join(own) for own in words]


def weights(table: RankTable) -> None:
    """Whether the ranks held the same parameters, since when not, and which of them."""
    st.markdown("**Weights**")
    compared = len(table.compared)
    if not compared:
        st.caption(
            "Whether they are equal is not known: at no step was a checksum of the parameters recorded on two ranks."
        )
    elif not len(table.differ):
        st.success(f"Equal on all ranks at each of the {text.count(compared)} steps at which they were compared.")
    else:
        first = table.apart[0]
        odd = f" Odd: rank {', '.join(map(str, first.odd))}." if first.odd else ""
        st.error(
            text.markdown(
                f"Apart since step {first.step}, at {len(table.differ)} of {compared} steps compared.{odd}", 400
            )
        )
        named = ", ".join(text.plain(name, 120) for name in first.layers) or "not recorded"
        st.caption("Parameters that differed there")
        st.code(named, language=None, wrap_lines=True)
