"""What a comparison of runs is made of besides its charts: the runs themselves, their results, where they differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from app import text
from app.charts.compare import Entry, axis_of, metrics_of
from app.charts.story import story_marks
from app.data import DIAGNOSES, READERS, find_run, incidents_of
from app.facts import LIVE_WORDS, RECENT_STEPS
from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.index import flat
from monitor.runfile.store import RunState
from monitor.runfile.zoom import LongSignal, drawn, zoom_rows
from monitor.signals import Signal

MOST_RUNS = 10
"""As many as the palette has colours."""
MOST_MARKS = 20
"""Incidents of one run that are shown on its curves, the worst first (our judgement)."""


# ---- the runs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """The runs that an address names, as far as they can be read."""

    entries: tuple[Entry, ...]
    refused: Mapping[str, str]
    """Id to the reason."""
    pending: bool
    """Whether the diagnosis of some run is still being made."""


def distinct(ids: Sequence[str]) -> list[str]:
    """Each id once, in order, at most ``MOST_RUNS``."""
    return list(dict.fromkeys(ids))[:MOST_RUNS]


@contextmanager
def comparing(ids: Sequence[str]) -> Iterator[Comparison]:
    """The runs called ``ids``, up to date and held still while the block runs; colours by their order."""
    paths: dict[str, Path] = {}
    refused: dict[str, str] = {}
    forks: dict[str, tuple[Path, int]] = {}
    ids = distinct(ids)
    for run_id in ids:
        try:
            paths[run_id] = find_run(run_id)
            with READERS.reading(paths[run_id]) as run:
                parent = run.parent
        except RunError as error:
            refused[run_id] = str(error)
            paths.pop(run_id, None)
            continue
        if parent is not None and (fork := _fork(parent, ids)):
            forks[run_id] = fork
    with ExitStack() as stack:
        # Always in the same order: two tabs that wait for each other's runs would wait for ever.
        wanted = sorted({*paths.values(), *(path for path, _ in forks.values())})
        runs = {path: stack.enter_context(READERS.reading(path)) for path in wanted}
        names = [runs[path].name for path in paths.values()]
        entries, pending = [], False
        for run_id, path in paths.items():
            run = runs[path]
            made = DIAGNOSES.of(path, run.version)
            pending |= made.pending
            label = run.name if names.count(run.name) == 1 else f"{run.name} ({run_id})"
            marks = [mark for mark in story_marks(run, incidents_of(made)[:MOST_MARKS]) if mark.kind == "incident"]
            marks = [replace(mark, text=f"{text.plain(label, 60)}: {mark.text}") for mark in marks]
            parent_path, step = forks.get(run_id, (None, None))
            entries.append(
                Entry(
                    run,
                    text.plain(label, 80),
                    ids.index(run_id),
                    tuple(marks),
                    runs[parent_path] if parent_path else None,
                    step,
                )
            )
        yield Comparison(tuple(entries), refused, pending)


def _fork(parent: Mapping[str, Any], ids: Sequence[str]) -> tuple[Path, int] | None:
    """Directory of the parent and the step of the fork; None when it is shown anyway or cannot be read."""
    step, run_id = fmt.as_number(parent.get("step")), parent.get("run")
    if not isinstance(run_id, str) or run_id in ids or step is None or not 0 <= step <= fmt.MAX_STEP:
        return None
    try:
        path = find_run(run_id)
        with READERS.reading(path):
            return path, int(step)
    except RunError:
        return None


# ---- what came of them --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """One run's row in the table; None where nothing was recorded."""

    id: str
    label: str
    colour: int
    state: RunState
    step: int | None
    planned_steps: int | None
    train_last: float | None
    train_best: float | None
    val_last: float | None
    val_best: float | None
    tokens_per_s: float | None
    """Median of the last steps."""
    verdict: str | None
    incidents: list[dict[str, Any]]
    """Worst first."""
    forked_from: str | None

    @property
    def live(self) -> bool:
        """Whether more is to come."""
        return self.state.word in LIVE_WORDS


def result_of(entry: Entry) -> Result:
    """The row of one run. Reads a long run through its levels."""
    run = entry.run
    made = DIAGNOSES.of(run.path, run.version)
    train, val, speed = (drawn(run, name) for name in ("train_loss", "val_loss", "tokens_per_s"))
    parent = run.parent
    return Result(
        run.id,
        entry.label,
        entry.colour,
        run.state,
        run.last_step,
        run.planned_steps,
        last_of(train),
        best_of(train),
        last_of(val),
        best_of(val),
        _recent_median(speed),
        made.value["verdict"] if made.value else None,
        incidents_of(made),
        f"{parent.get('run')} at step {parent.get('step')}" if parent else None,
    )


def last_of(signal: Signal | LongSignal) -> float | None:
    """The last value; None when there is none."""
    if not len(signal):
        return None
    return signal.at(len(signal) - 1) if isinstance(signal, LongSignal) else float(signal.value[-1])


def best_of(signal: Signal | LongSignal) -> float | None:
    """The smallest finite value; None when there is none."""
    seen = signal.zoom(None, None, 1) if isinstance(signal, LongSignal) else zoom_rows(signal.step, signal.value, 1)
    return float(seen.value.min()) if len(seen.value) else None


def _recent_median(signal: Signal | LongSignal) -> float | None:
    if isinstance(signal, LongSignal):
        value = signal.zoom(int(signal.step[-RECENT_STEPS:][0]), None, RECENT_STEPS).value
    else:
        value = signal.tail(RECENT_STEPS).value
    value = value[np.isfinite(value)]
    return float(np.median(value)) if len(value) else None


# ---- where they differ --------------------------------------------------------------------------------------------

ABSENT = "–"
MOST_KEYS = 300
"""Rows of the difference; the rest is counted (our judgement)."""


def config_difference(configs: Sequence[Mapping[str, Any] | None]) -> list[tuple[str, tuple[str, ...]]]:
    """``(key, value of each run as text)`` of every entry that is not the same in all ``configs``, by key.

    A run that lacks the entry has ``ABSENT``; 1 and 1.0 are the same, 1 and true are not. A run without a configuration
    (None) takes no part in what is the same.
    """
    entries = [flat(config) if config is not None else None for config in configs]
    given = [own for own in entries if own is not None]
    rows = []
    for key in sorted({key for own in given for key in own}):
        if len({_identity(own[key]) if key in own else None for own in given}) > 1:
            rows.append((key, tuple(_spelled(own[key]) if own and key in own else ABSENT for own in entries)))
    return rows


def _identity(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53:
        value = float(value)
    return f"{type(value).__name__} {_spelled(value)}"


def _spelled(value: object) -> str:
    """As the configuration writes it: ``none`` is what turns a thing off."""
    if value is None:
        return "none"
    if isinstance(value, float) and math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


# ---- what is the matter -------------------------------------------------------------------------------------------


def matters(entries: Sequence[Entry], axis: str, pattern: str) -> list[str]:
    """Sentences on what cannot be compared, and why.

    Raises:
        ValueError: as ``metrics_of``.
    """
    said: list[str] = []
    for entry in entries:
        along = axis_of(entry, axis)
        if entry.run.last_step is None:
            said.append(f"{entry.label} has no points yet.")
        elif along is not None and not len(along.x):
            said.append(f"{entry.label} has not recorded its {axis}, so it has no curve on this axis; choose step.")
    names = metrics_of((entry.run for entry in entries), pattern)
    having = {name: [entry for entry in entries if name in entry.run.names] for name in names}
    if not names and pattern:
        known = sorted({name for entry in entries for name in entry.run.names})
        said.append(f"No metric matches {pattern!r}. There are: {', '.join(known[:40]) or 'none'}.")
    elif len(entries) > 1 and names and all(len(own) < 2 for own in having.values()):
        said.append("These runs have none of the metrics below in common; each curve stands alone.")
    for name, own in having.items():
        signals = [signal for entry in own if len(signal := drawn(entry.run, name))]
        if signals and all(best_of(signal) is None for signal in signals):
            said.append(f"{name} has no finite value in {'this run' if len(own) == 1 else 'any of these runs'}.")
    return said
