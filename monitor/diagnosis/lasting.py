"""What a statistic of layers or modules did for how long: the questions that rules about them have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from monitor.signals import LayerMatrix


@dataclass(frozen=True, slots=True)
class Stretch:
    """One layer (or module) for which a condition held in several of its measurements running."""

    layer: str
    column: int
    onset: int
    """Step of the first of them."""
    told: int
    """Step of the one that made it enough."""
    last: int
    """Step of the last of them."""
    to_the_end: bool
    """Whether the layer's last measurement is one of them."""


def stretches(matrix: LayerMatrix, holds: np.ndarray, rows: int) -> list[Stretch]:
    """The first stretch of each layer in which ``holds`` (bool[T, L]) in ``rows`` of its measurements running.

    Rows in which a layer was not measured are looked through. Earliest first, then in depth order.
    """
    found = []
    for column in np.flatnonzero(holds.any(axis=0)).tolist():
        measured = np.flatnonzero(matrix.present[:, column])
        flags = holds[measured, column]
        first = first_run(flags, rows)
        if first is None:
            continue
        stop = first + rows
        while stop < len(flags) and flags[stop]:
            stop += 1
        step = matrix.step[measured]
        found.append(
            Stretch(
                layer=matrix.names[column],
                column=column,
                onset=int(step[first]),
                told=int(step[first + rows - 1]),
                last=int(step[stop - 1]),
                to_the_end=stop == len(flags),
            )
        )
    return sorted(found, key=lambda s: (s.onset, s.column))


def grouped(found: Iterable[Stretch], steps: int = 20, most: int = 4) -> list[list[Stretch]]:
    """Stretches that began within ``steps`` of the first of them, together; at most ``most`` groups, earliest first. A
    harmless one at the start must not hide what happens to another layer later."""
    groups: list[list[Stretch]] = []
    for stretch in sorted(found, key=lambda s: (s.onset, s.column)):
        if groups and stretch.onset <= groups[-1][0].onset + steps:
            groups[-1].append(stretch)
        else:
            groups.append([stretch])
    return groups[:most]


def first_run(flags: np.ndarray, rows: int) -> int | None:
    """First row of the first ``rows`` of bool[T] set in a row; None without."""
    if len(flags) < rows:
        return None
    hits = np.flatnonzero(np.convolve(flags, np.ones(rows, int), "valid") == rows)
    return int(hits[0]) if len(hits) else None


def spaced(matrix: LayerMatrix, steps: int) -> LayerMatrix:
    """The rows at least ``steps`` apart, the first one first: an armed monitor measures each step, and so many rows are
    no long time then."""
    rows: list[int] = []
    for row, step in enumerate(matrix.step.tolist()):
        if not rows or step - matrix.step[rows[-1]] >= steps:
            rows.append(row)
    return replace(matrix, step=matrix.step[rows], value=matrix.value[rows], present=matrix.present[rows], since=None,
                   nonfinite=None)  # fmt: skip


def measured(matrix: LayerMatrix) -> np.ndarray:
    """float64[T, L]: the values, NaN where a layer was not measured or not finite."""
    value = matrix.value.astype(np.float64)
    value[~(matrix.present & np.isfinite(value))] = np.nan
    return value


def named(layers: list[str], most: int = 5) -> str:
    """``a, b and 3 more``."""
    more = f" and {len(layers) - most} more" if len(layers) > most else ""
    return ", ".join(layers[:most]) + more
