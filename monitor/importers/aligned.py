"""Tables of a text log whose columns are aligned with blanks: spaCy's, fastai's, those of many a script.

Numbers alone on a line mean nothing by themselves; they do below a line of as many names, one of which counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from monitor.importers.names import step_name
from monitor.importers.rows import MAX_NAME, Row, number_of, step_of

LEAST_COLUMNS = 3
MOST_COLUMNS = 100
"""Of one table; lines of more numbers are data that was printed. Our judgement."""
_GAP = re.compile(r"\s{2,}|\t")
_RULE = re.compile(r"\s*[-=\u2500]+(?:\s+[-=\u2500]+)+\s*")
_EMPTY = re.compile(r"(?:\d{1,3}:)?\d{1,3}:\d\d|-+|#na#|none|n/a", re.I)
"""What stands in a cell that holds no number: a clock, or that there is none."""
_SHORT = {"#": "step", "e": "epoch", "ep": "epoch", "itn": "iteration", "itn.": "iteration"}


@dataclass(slots=True)
class Aligned:
    """Names on one line, perhaps a rule of dashes, then lines of as many cells."""

    _above: str = ""
    """The last line that was no part of a table: the names, if numbers follow."""
    _names: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    """What is complete; to be taken out."""

    def takes(self, line: str) -> bool:
        """Whether ``line`` is a row of a table."""
        if _RULE.fullmatch(line) or not line.strip():
            return False  # parts the names from the rows, and says nothing
        cells = line.split(maxsplit=MOST_COLUMNS) if line.lstrip()[0] in "0123456789-+." else []
        if not LEAST_COLUMNS <= len(cells) <= MOST_COLUMNS or not _is_row(cells):
            self._above, self._names = line, []
            return False
        if not self._names:
            self._names = _names_of(self._above, len(cells))
        if len(self._names) != len(cells):
            return False
        values = {name: number for name, cell in zip(self._names, cells, strict=True)
                  if (number := number_of(cell)) is not None}  # fmt: skip
        counter = step_name(values)
        step = step_of(values.pop(counter)) if counter else None
        if step is None or not values:
            return False
        self.rows.append(Row(step, None, values))
        return True


def _is_row(cells: list[str]) -> bool:
    return all(number_of(cell) is not None or _EMPTY.fullmatch(cell) for cell in cells)


def _names_of(line: str, count: int) -> list[str]:
    """The ``count`` names on a line, parted by gaps or by single blanks; [] if they are not as many, or none counts."""
    if len(line) > count * MAX_NAME:
        return []
    for words in (_GAP.split(line.strip()), line.split()):
        names = [_SHORT.get(word.lower(), word) for word in words]
        if len(set(names)) == count and step_name(names) and all(number_of(name) is None for name in names):
            return names
    return []
