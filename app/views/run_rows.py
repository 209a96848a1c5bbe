"""What the list of runs shows of each run, and in which order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from app import data, text
from app.compare import ABSENT, config_difference
from app.data import Listed, Overview, incidents_of
from app.incident import where
from app.views.common import HEALTH, STATES

Seen = dict[Path, Overview]  # run directory to what is known about it
CONFIGS_COMPARED = (
    500  # runs whose configurations are held against each other for the differing columns (our judgement)
)
MOST_CONFIG_COLUMNS = 12
CONFIG = "config."

TITLES = {
    "health": "Health",
    "state": "State",
    "name": "Name",
    "curve": "Loss",
    "step": "Step",
    "loss": "Last loss",
    "best": "Best loss",
    "incidents": "Incidents",
    "duration": "Duration",
    "task": "Task",
    "device": "Device",
    "started": "Started",
    "tags": "Tags",
    "notes": "Notes",
}
NUMBERS = ("step", "loss", "best", "incidents", "duration")
"""Aligned to the right."""
LATER = ("duration", "task", "device", "started", "notes")
"""Columns that a narrow page leaves out."""


def health_of(row: Listed, seen: Seen) -> str:
    """The key of ``HEALTH``: the worst incident, else the verdict."""
    known = seen.get(row.summary.path)
    if row.summary.problem or (known and known.report.value is None and known.report.error):
        return "unreadable"
    if known is None or known.report.value is None:
        return "unknown"
    incidents = incidents_of(known.report)
    key = str(incidents[0]["severity"] if incidents else known.report.value["verdict"])
    return key if key in HEALTH else "unknown"


def incident_count(row: Listed, seen: Seen) -> int | None:
    """Incidents found; None while it is not known."""
    known = seen.get(row.summary.path)
    return len(incidents_of(known.report)) if known and known.report.value else None


# ---- order --------------------------------------------------------------------------------------------------------

_WORST = {key: rank for rank, key in enumerate(("critical", "warning", "info", "cannot tell", "healthy"))}

_ORDER: dict[str, Callable[[Listed, Seen], Any]] = {
    "health": lambda row, seen: _WORST.get(health_of(row, seen)),
    "state": lambda row, seen: row.summary.state.word,
    "name": lambda row, seen: (row.summary.name or row.summary.id).lower(),
    "step": lambda row, seen: row.summary.last_step,
    "loss": lambda row, seen: row.summary.last_loss,
    "best": lambda row, seen: row.summary.best_loss,
    "incidents": incident_count,
    "duration": lambda row, seen: row.summary.duration_s,
    "task": lambda row, seen: row.summary.task,
    "device": lambda row, seen: row.summary.device,
    "started": lambda row, seen: row.summary.created,
}
FROM_DIAGNOSIS = ("health", "incidents")
"""Orders that need every run's diagnosis."""


def is_order(sort: str) -> bool:
    """Whether ``sort`` names an order: a column, or ``config.`` and an entry's name, maybe after a minus."""
    key = sort.removeprefix("-")
    return key in _ORDER or key.startswith(CONFIG)


def ordered(rows: list[Listed], sort: str, seen: Seen) -> list[Listed]:
    """``rows`` by a column, downwards after a minus; what is not known comes last, a NaN as the largest number.

    Rows that are equal keep their order.
    """
    key = sort.removeprefix("-")
    value = _ORDER.get(key) or (lambda row, seen: data.LISTING.config_of(row.summary).get(key.removeprefix(CONFIG)))
    keyed = [(value(row, seen), row) for row in rows]
    known = [(_rank(own), row) for own, row in keyed if own is not None]
    known.sort(key=lambda pair: pair[0], reverse=sort.startswith("-"))
    return [row for _, row in known] + [row for own, row in keyed if own is None]


def _rank(value: Any) -> tuple[int, float, str]:
    """Numbers first, then NaN, then texts."""
    if isinstance(value, (int, float)):
        number = float(value) if abs(value) < 1e308 or isinstance(value, float) else math.inf
        return (1, 0.0, "") if math.isnan(number) else (0, number, "")
    return (2, 0.0, str(value))


# ---- cells --------------------------------------------------------------------------------------------------------


def config_columns(found: Sequence[Listed], shown: Sequence[Listed]) -> tuple[list[tuple[str, dict[Path, str]]], int]:
    """The entries of the configuration that are not the same in all runs, as ``(key, text of each run)``, and how many
    more there are."""
    rows = list({row.summary.path: row for row in (*shown, *found[:CONFIGS_COMPARED])}.values())
    configs = [data.LISTING.config_of(row.summary) or None for row in rows]
    differing = config_difference(configs)
    paths = [row.summary.path for row in rows]
    columns = [(key, dict(zip(paths, values, strict=True))) for key, values in differing[:MOST_CONFIG_COLUMNS]]
    return columns, len(differing) - len(columns)


def cells(row: Listed, seen: Seen, config: Iterable[tuple[str, dict[Path, str]]]) -> dict[str, Any]:
    """One row of the table, as the browser draws it: texts, never markup."""
    summary = row.summary
    key = health_of(row, seen)
    failed = key == "unreadable" and not summary.problem
    sign, word, _ = HEALTH[key]
    state = STATES.get(summary.state.word, ("?", "gray"))
    heard = summary.state.updated if summary.state.word in ("running", "paused", "starting", "stale", "lost") else None
    known = seen.get(summary.path)
    spark = known.spark.value if known else None
    incidents = incidents_of(known.report) if known else []
    return {
        "id": summary.id,
        "health": [sign, "diagnosis failed" if failed else word, HEALTH[key][2]],
        "state": [state[0], summary.state.word, state[1], heard],
        "name": text.plain(summary.name or summary.id, 120),
        "sample": row.sample,
        "curve": [round(value, 6) for value in spark.loss] if spark else [],
        "nonfinite": spark.nonfinite if spark else 0,
        "step": progress(row),
        "loss": text.number(summary.last_loss),
        "best": text.number(summary.best_loss),
        "incidents": ABSENT if known is None or known.report.value is None else text.count(len(incidents)),
        "first": [text.plain(where(one), 160) for one in incidents[:3]],
        "duration": text.duration(summary.duration_s),
        "task": text.plain(summary.task or ABSENT, 40),
        "device": text.plain(summary.device or ABSENT, 40),
        "started": summary.created,
        "tags": [text.plain(tag, 60) for tag in summary.tags],
        "notes": text.plain((summary.problem or summary.notes or "").replace(f"{summary.path} ", ""), 200),
        "problem": summary.problem is not None,
        **{CONFIG + name: text.plain(values.get(summary.path, ABSENT), 60) for name, values in config},
    }


def progress(row: Listed) -> str:
    """``512 of 1 200``; a dash where no step is known, which need not mean that there was none."""
    last, planned = row.summary.last_step, row.summary.planned_steps
    return text.count(last) + (f" of {text.count(planned)}" if planned else "")
