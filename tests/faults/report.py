"""What the benchmark has found: tables for the terminal, JSON, and the confusion of causes as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from rich.table import Table

from tests.faults.metrics import Figures, figures, onset_error, share
from tests.faults.scoring import Score

CELL = 30
"""Pixels."""
LAST = ("unknown", "no cause", "no alarm")


def by_case(scores: Sequence[Score]) -> Table:
    """One line a case."""
    shown = Table(
        "case", "recall", "silent", "onset error", "layer", "cause", "in 3", "fixed", "false", "said", box=None
    )
    for name in dict.fromkeys(score.case for score in scores):
        mine = [score for score in scores if score.case == name]
        errors = sorted(error for score in mine if (error := onset_error(score)) is not None)
        shown.add_row(
            name,
            str(share(score.hit for score in mine)),
            f"{sum(score.silent is True for score in mine)}" if mine[0].silent is not None else "",
            "/".join(map(str, errors)),
            str(share(score.layer_right for score in mine)),
            str(share(score.cause_right for score in mine)),
            str(share(score.cause_in_three for score in mine)),
            str(share(score.fixed for score in mine)),
            str(sum(score.false_events for score in mine)),
            "; ".join(dict.fromkeys(word for score in mine for word in (score.causes[:1] or score.said)))[:60],
        )
    return shown


def goals(found: Figures) -> Table:
    """The metrics over all cases beside what is wanted of them."""
    shown = Table("metric", "measured", "goal", box=None)
    shown.add_row("precision", str(found.precision), ">= 0.98")
    shown.add_row("  of incidents: what joins one is no new alarm", str(found.precision_of_incidents), "")
    shown.add_row("  without later alarms on a fault that goes on", str(found.precision_in_time), "")
    shown.add_row("recall, manifest", str(found.manifest), ">= 0.97")
    shown.add_row("recall, silent", str(found.silent), ">= 0.97")
    if found.unsorted.trials:
        shown.add_row("recall, without twins", str(found.unsorted), "")
    rate = "" if found.per_thousand is None else f"{found.per_thousand:.2f}"
    shown.add_row("false events per 1 000 healthy steps", rate, "<= 0.1")
    shown.add_row("healthy runs with any", str(found.alarmed), "<= 1 %")
    shown.add_row("onset error, abrupt, median / p90", _pair(found.abrupt), "<= 1 / <= 5")
    shown.add_row("onset error, drift, median / p90", _pair(found.drift), "<= 20 / <= 50")
    shown.add_row("lead over the loss peak, median", "" if found.lead is None else f"{found.lead:g}", ">= 3")
    shown.add_row("first layer", str(found.layer), ">= 0.92")
    shown.add_row("root cause", str(found.cause), ">= 0.90")
    shown.add_row("root cause in the first three", str(found.cause_in_three), ">= 0.97")
    shown.add_row("fix validity", str(found.fixed), ">= 0.90")
    for band in found.reliability:
        told = f"first cause right where its confidence was {band.low:g} to {band.high:g} (mean {band.said:.2f})"
        shown.add_row(told, str(band.right), "")
    shown.add_row("Brier score of the confidence", "" if found.brier is None else f"{found.brier:.3f}", "")
    return shown


def _pair(two: tuple[float, float] | None) -> str:
    return "" if two is None else f"{two[0]:g} / {two[1]:g}"


def peers(scores: Mapping[str, Sequence[Score] | str], windows: Callable[[str], int]) -> Table:
    """Every detector on the same runs; a sentence for one that is not installed."""
    shown = Table(
        "detector", "precision", "recall", "false per 1 000", "healthy runs with any", "onset error", box=None
    )
    for name, theirs in scores.items():
        if isinstance(theirs, str):
            shown.add_row(name, theirs)
            continue
        found = figures(theirs, windows)
        error = found.abrupt
        shown.add_row(
            name,
            str(found.precision),
            str(share(score.hit for score in theirs)),
            "" if found.per_thousand is None else f"{found.per_thousand:.2f}",
            str(found.alarmed),
            "" if error is None else f"{error[0]:g} / {error[1]:g}",
        )
    return shown


def picture(counted: Mapping[str, Mapping[str, int]]) -> str:
    """SVG of the confusion matrix: a row for each true cause, a column for each that was told."""
    told = {column for row in counted.values() for column in row}
    columns = [*counted, *sorted(told - set(counted) - set(LAST)), *(name for name in LAST if name in told)]
    left, top = 210, 190
    width, height = left + CELL * len(columns) + 150, top + CELL * len(counted) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        '<text x="10" y="20" font-weight="600">True cause (rows) and the cause told first (columns)</text>',
    ]
    for index, name in enumerate(columns):
        x = left + CELL * index + CELL / 2
        parts.append(f'<text transform="translate({x + 4} {top - 6}) rotate(-60)">{escape(name)}</text>')
    for line, (name, row) in enumerate(counted.items()):
        y, total = top + CELL * line, sum(row.values())
        parts.append(f'<text x="{left - 8}" y="{y + 20}" text-anchor="end">{escape(name)}</text>')
        for index, column in enumerate(columns):
            count = row.get(column, 0)
            colour = "#3d9bd6" if column == name else "#d95f4b"
            x = left + CELL * index
            parts.append(
                f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="{colour if count else "#eef1f4"}" '
                f'fill-opacity="{0.25 + 0.75 * count / total if count else 1:.2f}"/>'
            )
            if count:
                parts.append(f'<text x="{x + CELL / 2}" y="{y + 20}" text-anchor="middle">{count}</text>')
    return "\n".join([*parts, "</svg>"])
