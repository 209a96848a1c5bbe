"""The ranks of one attempt side by side: who is slow, whose gradient is off, whose parameters have come apart.

Each rank writes its own numbers into its own files and waits for nobody; they are put together here, where they are
read. In a synchronous training every rank has the same step time, because the others wait for the slow one: who is slow
is told by ``first_gradient_s``, or where that was not measured by the parts of the step before the reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.reader import Run
from monitor.signals import TIME_PARTS

RANK_SIGNALS: tuple[str, ...] = (
    "step_time_s", *TIME_PARTS, "first_gradient_s", "comm_s", "comm_exposed_s",
    "grad_norm_local", "grad_norm_preclip", "train_loss",
)  # fmt: skip
"""What the table has of every rank, where it was recorded."""
MOST_WINDOWS = 200
"""Windows when none is asked for: as many rows as a person looks at."""
MOST_CELLS = 20_000_000
"""Of one table: windows by ranks by signals."""
DETAILED = 20
"""Of the steps at which ranks differ, so many are told in full, the first ones: what follows is their consequence."""
LAYERS_NAMED = 20


@dataclass(frozen=True, slots=True)
class Apart:
    """One step at which the ranks did not all hold the same parameters."""

    step: int
    checksums: tuple[float | None, ...]
    """``parameter_checksum`` of every rank, in the order of ``RankTable.ranks``; None where it was not recorded."""
    odd: tuple[int, ...]
    """The ranks that differ from most; () when no value is held by more than half of them."""
    layers: tuple[str, ...]
    """Parameter tensors that differ, ``LAYERS_NAMED`` at most; () where that was not recorded."""


@dataclass(frozen=True, slots=True)
class RankTable:
    """W windows of steps by R ranks."""

    attempt: int
    ranks: tuple[int, ...]
    first_step: np.ndarray
    """int64[W]: windows in which some rank recorded something, in order."""
    last_step: np.ndarray
    """int64[W]; the same as ``first_step`` where each window is one step."""
    median: dict[str, np.ndarray]
    """Signal to float64[W, R]: median over the steps of the window, NaN where one of them was NaN, and where there was
    none (``count`` 0). Signals that no rank recorded are left out."""
    count: dict[str, np.ndarray]
    """Signal to int64[W, R]: how many steps of the window have a value."""
    compared: np.ndarray
    """int64[C]: steps at which at least two ranks recorded a checksum of their parameters."""
    differ: np.ndarray
    """int64[D]: those of them at which the ranks are not equal."""
    apart: tuple[Apart, ...]
    """How, at the first ``DETAILED`` of these."""


def rank_table(
    run: Run,
    *,
    attempt: int | None = None,
    first_step: int | None = None,
    last_step: int | None = None,
    window: int | None = None,
) -> RankTable:
    """What the ranks of one attempt recorded, window by window.

    Args:
        attempt: its number; by default the last one that recorded steps.
        first_step, last_step: the steps to look at, both included; None leaves that side open.
        window: steps per row, so that row i holds the steps from ``i * window`` on; 1 is step by step. By default the
            least that gives at most ``MOST_WINDOWS`` rows.

    Raises:
        RunError: the run has no such attempt, or the table would be too large to hold.
        ValueError: ``window`` is below 1.
    """
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it is a number of steps, 1 or more")
    number = _attempt(run, attempt)
    ranks = tuple(sorted(run.ranks(number)))
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name in RANK_SIGNALS:
        series = [run.series(name, attempt=number, rank=rank).between(first_step, last_step) for rank in ranks]
        if any(map(len, series)):
            found[name] = [(one.step, one.value) for one in series]
    steps = _union([step for columns in found.values() for step, _ in columns])
    window = min(window or _window(steps), fmt.MAX_STEP)
    starts = np.unique(steps // window)
    if len(starts) * len(ranks) * len(found) > MOST_CELLS:
        raise RunError(
            f"attempt {number} has {len(ranks)} ranks and {len(starts)} windows of {window} steps: more than "
            f"{MOST_CELLS} values. Ask for fewer steps (first_step, last_step) or a larger window."
        )
    median: dict[str, np.ndarray] = {}
    count: dict[str, np.ndarray] = {}
    for name, columns in found.items():
        median[name] = np.full((len(starts), len(ranks)), np.nan)
        count[name] = np.zeros((len(starts), len(ranks)), np.int64)
        for at, (step, value) in enumerate(columns):
            rows, medians, sizes = _medians(step // window, value)
            where = np.searchsorted(starts, rows)
            median[name][where, at], count[name][where, at] = medians, sizes
    compared, differ, apart = _checksums(run, number, ranks, first_step, last_step)
    begins = starts * window
    return RankTable(number, ranks, begins, begins + (window - 1), median, count, compared, differ, apart)


def _medians(group: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The groups, ascending as they come, with the median of each one's values and how many there are."""
    rows, begins, sizes = np.unique(group, return_index=True, return_counts=True)
    ordered = value[np.lexsort((value, group))]  # NaN last in its group
    with np.errstate(invalid="ignore"):  # the mean of both infinities is no number, and that is right
        medians = (ordered[begins + (sizes - 1) // 2] + ordered[begins + sizes // 2]) / 2
    return rows, np.where(np.isnan(ordered[begins + sizes - 1]), np.nan, medians), sizes


def _attempt(run: Run, asked: int | None) -> int:
    known = [attempt.number for attempt in run.attempts]
    if asked is None:
        if not known:
            raise RunError(f"{run.path} has no attempt yet, so no ranks to compare.")
        return run.line[-1].attempt if run.line else known[-1]
    if asked not in known:
        raise RunError(f"{run.path} has no attempt {asked}. Its attempts are: {', '.join(map(str, known)) or 'none'}.")
    return asked


def _union(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(arrays)) if arrays else np.empty(0, np.int64)


def _window(steps: np.ndarray) -> int:
    """The least window that leaves at most ``MOST_WINDOWS`` rows: of the steps' span, which holds for any gaps."""
    if len(steps) <= MOST_WINDOWS:
        return 1
    return int(steps[-1] - steps[0]) // (MOST_WINDOWS - 1) + 1


def _checksums(
    run: Run, attempt: int, ranks: Sequence[int], first: int | None, last: int | None
) -> tuple[np.ndarray, np.ndarray, tuple[Apart, ...]]:
    """The steps at which ranks can be compared, those at which they differ, and how."""
    series = [run.series("parameter_checksum", attempt=attempt, rank=rank).between(first, last) for rank in ranks]
    steps = _union([one.step for one in series])
    if len(steps) * len(ranks) > MOST_CELLS:
        raise RunError(
            f"attempt {attempt} has {len(steps)} checksums of {len(ranks)} ranks: too many to hold side by side. Ask "
            "for fewer steps (first_step, last_step)."
        )
    values = np.full((len(steps), len(ranks)), np.nan)
    for at, one in enumerate(series):
        values[np.searchsorted(steps, one.step), at] = one.value
    there = ~np.isnan(values)
    several = there.sum(axis=1) >= 2
    low = np.where(there, values, np.inf).min(axis=1, initial=np.inf)
    high = np.where(there, values, -np.inf).max(axis=1, initial=-np.inf)
    differ = np.flatnonzero(several & (low != high))
    told = differ[:DETAILED]
    names = _differing_layers(run, attempt, ranks, steps[told])
    apart = tuple(
        Apart(
            step=int(steps[row]),
            checksums=tuple(None if np.isnan(value) else float(value) for value in values[row]),
            odd=_odd(values[row], ranks),
            layers=names.get(int(steps[row]), ()),
        )
        for row in told
    )
    return steps[several], steps[differ], apart


def _odd(values: np.ndarray, ranks: Sequence[int]) -> tuple[int, ...]:
    held, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    if 2 * counts.max() <= counts.sum():
        return ()
    most = held[counts.argmax()]
    return tuple(rank for rank, value in zip(ranks, values, strict=True) if not np.isnan(value) and value != most)


def _differing_layers(run: Run, attempt: int, ranks: Sequence[int], steps: np.ndarray) -> dict[int, tuple[str, ...]]:
    """Step to the layers whose own checksums are not all equal, each rank held against the first that has one."""
    found: dict[int, dict[str, None]] = {}
    first: dict[tuple[int, str], float] = {}
    for rank in ranks if len(steps) else ():
        matrix = run.layers("parameter_checksum", attempt=attempt, rank=rank)
        for row in np.flatnonzero(np.isin(matrix.step, steps)):
            step = int(matrix.step[row])
            for name, value, present in zip(matrix.names, matrix.value[row], matrix.present[row], strict=True):
                if present and first.setdefault((step, name), float(value)) != value:
                    found.setdefault(step, {})[name] = None
    return {step: tuple(names)[:LAYERS_NAMED] for step, names in found.items()}
