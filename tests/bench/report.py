"""What a benchmark has found, as a table on the terminal, as CSV and JSON, and as a picture."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
"""Not in the repository: figures belong to the machine they were taken on."""


@dataclass(frozen=True, slots=True)
class Line:
    """One measured figure."""

    what: str
    measured: float
    unit: str
    goal: float | None = None
    least: bool = False
    """Whether the goal is a lower bound."""
    beside: str = ""
    """The same work done by others, or the noise."""

    @property
    def ratio(self) -> float | None:
        """Measured over goal, the other way round for a lower bound: met at 1 or less."""
        if self.goal is None:
            return None
        above, below = (self.goal, self.measured) if self.least else (self.measured, self.goal)
        return above / below if below else math.inf if above else 0.0

    def cells(self) -> tuple[str, str, str, str, str]:
        goal = "" if self.goal is None else f"{'≥' if self.least else '≤'} {number(self.goal)} {self.unit}"
        verdict = "" if self.ratio is None else f"{self.ratio:.2f} {'met' if self.ratio <= 1 else 'MISSED'}"
        return self.what, goal, f"{number(self.measured)} {self.unit}", verdict, self.beside


def number(value: float) -> str:
    """Three digits, thousands apart."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def table(title: str, lines: list[Line]) -> str:
    """The lines under one another."""
    rows = [("", "goal", "measured", "of goal", "beside it"), *(line.cells() for line in lines)]
    widths = [max(len(row[index]) for row in rows) for index in range(4)]
    text = [title]
    for row in rows:
        text.append("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip())
    return "\n".join(text)


def bars(title: str, values: dict[str, float], unit: str, ours: str) -> list[str]:
    """SVG elements of one chart of horizontal bars on a logarithmic scale, and their height as the last."""
    low = 10 ** math.floor(math.log10(min(values.values())) - 0.3)
    span = math.log10(max(values.values()) / low)
    parts = [f'<text x="0" y="16" font-weight="600">{escape(title)} ({escape(unit)}, logarithmic)</text>']
    for index, (name, value) in enumerate(values.items()):
        y, width = 28 + 22 * index, 420 * math.log10(value / low) / span
        colour = "#3d9bd6" if name.startswith(ours) else "#8490a0"
        parts.append(f'<text x="230" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="238" y="{y}" width="{width:.1f}" height="17" fill="{colour}"/>')
        parts.append(f'<text x="{244 + width:.1f}" y="{y + 13}">{number(value)}</text>')
    return [*parts, str(44 + 22 * len(values))]


def picture(charts: list[list[str]]) -> str:
    """Charts of :func:`bars` one above the other."""
    at, body = 10, []
    for chart in charts:
        body += [f'<g transform="translate(10 {at})">', *chart[:-1], "</g>"]
        at += int(chart[-1])
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="780" height="{at}" font-family="sans-serif" font-size="13">'
    return "\n".join([head, f'<rect width="780" height="{at}" fill="#fff"/>', *body, "</svg>"])


def save(name: str, lines: list[Line], more: dict[str, Any], charts: list[list[str]]) -> list[Path]:
    """Write ``name`` as JSON, CSV and SVG into :data:`RESULTS`."""
    RESULTS.mkdir(exist_ok=True)
    paths = [RESULTS / f"{name}.{kind}" for kind in ("json", "csv", "svg")]
    record = {**more, "lines": [{**asdict(line), "ratio": line.ratio} for line in lines]}
    paths[0].write_text(json.dumps(record, indent=1))
    with paths[1].open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "measured", "unit", "goal", "least", "ratio", "beside"])
        for line in lines:
            writer.writerow([line.what, line.measured, line.unit, line.goal, line.least, line.ratio, line.beside])
    paths[2].write_text(picture([chart for chart in charts if chart]))
    return paths
