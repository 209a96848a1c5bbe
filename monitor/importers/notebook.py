"""What a notebook's cells printed: their text, and the tables that a Trainer or fastai shows as HTML.

Each cell is a training of its own.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.importers.lines import plain, read_text
from monitor.importers.rows import Account, Row
from monitor.importers.text import rows_of
from monitor.runfile.format import MAX_JSON_BYTES

MOST_CELLS = 100
_TELLS = re.compile(r"loss|reward|accuracy", re.I)
_TABLE = re.compile(r"<table.*?</table>", re.S | re.I)
_ROW = re.compile(r"<tr.*?</tr>", re.S | re.I)
_CELL = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.S | re.I)
_TAG = re.compile(r"<[^>]*>")
_ENDS = re.compile(r"\r\n|[\n\r]")


def notebook_cells(path: Path) -> list[tuple[str, str]]:
    """``(index, name)`` of each cell whose output tells of a loss or a reward; [] for another document.

    Raises:
        RunError: it is too large to be read at once.
    """
    told = [number for number, outputs in enumerate(_cells(path)) if any(map(_TELLS.search, _lines(outputs)))]
    return [(str(number), f"cell-{number + 1}" if len(told) > 1 else "") for number in told[:MOST_CELLS]]


def read_cell(path: Path, index: str, account: Account) -> Iterator[Row]:
    """The rows that one cell printed."""
    cells = _cells(path)
    return rows_of(_lines(cells[int(index)]), path, account) if int(index) < len(cells) else iter(())


def _cells(path: Path) -> list[list[Any]]:
    """The outputs of every cell."""
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise RunError(f"{path}: a notebook of {size:,} bytes; at most {MAX_JSON_BYTES:,} are read. Clear its images.")
    try:
        document = json.loads("".join(read_text(path)).lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return []
    cells = document.get("cells") if isinstance(document, dict) else None
    outputs = [cell.get("outputs") for cell in cells if isinstance(cell, dict)] if isinstance(cells, list) else []
    return [one if isinstance(one, list) else [] for one in outputs]


def _lines(outputs: list[Any]) -> Iterator[str]:
    for output in outputs:
        if not isinstance(output, dict):
            continue
        if output.get("output_type") == "stream":
            yield from map(plain, _ENDS.split(_text(output.get("text"))))
            continue
        data = output.get("data")
        shown = data if isinstance(data, dict) else {}
        if tables := _TABLE.findall(_text(shown.get("text/html"))):
            for table in tables:
                yield from _markdown(table)
        else:
            yield from map(plain, _ENDS.split(_text(shown.get("text/plain"))))


def _text(value: Any) -> str:
    """A text of a notebook, which is one string or its lines."""
    if isinstance(value, list):
        return "".join(line for line in value if isinstance(line, str))
    return value if isinstance(value, str) else ""


def _markdown(table: str) -> Iterator[str]:
    """The rows of an HTML table as those of a Markdown table, which the reader of texts knows."""
    for number, row in enumerate(_ROW.findall(table)):
        cells = [html.unescape(_TAG.sub("", cell)).strip().replace("|", "/") for cell in _CELL.findall(row)]
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            yield f"|{'---|' * len(cells)}"
    yield ""
