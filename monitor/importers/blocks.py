"""What says one thing over several lines of a text log: boxes, tables with a header line, dictionaries over many lines.

Boxes are Stable-Baselines3's; tables are Markdown's and those that YOLO prints for each epoch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from monitor.importers.names import step_name
from monitor.importers.rows import MAX_NAME, Row, number_of, step_of

LONGEST_LINES = 200
LONGEST_TEXT = 1 << 14
"""Lines and characters of a dictionary that are joined; longer ones are data that was printed. Our judgement."""
MOST_NAMES = 500
"""Of one box."""
_EDGE = re.compile(r"\s*(?:-{8,}|\+[-=+]{8,}\+)\s*")
_CELL = re.compile(r"\s*\|(?P<indent>\s*)(?P<name>[^|]*?[^|\s])?\s*\|\s*(?P<value>[^|]*?)\s*\|\s*")
_OPENS = re.compile(r"\s*\{\s*(?:['\"][\w/ .@-]{1,80}['\"]\s*:.*)?$")
_INSIDE = re.compile(r"\s*(?:['\"][\w/ .@-]{1,80}['\"]\s*:.*|[\]}\[{(),]+|[-+\w.'\"]+[,)\]}]*)\s*$")


def joined(lines: Iterable[str]) -> Iterator[str]:
    """``lines``, where those of a dictionary that was printed over several are one line."""
    held: list[str] = []
    open_braces = size = 0
    for line in lines:
        if not held and (("{" not in line) or not _OPENS.match(line)):
            yield line
            continue
        if held and (not _INSIDE.match(line) or len(held) >= LONGEST_LINES or size > LONGEST_TEXT):
            yield from held  # it was none after all
            held, open_braces, size = [], 0, 0
            yield line
            continue
        held.append(line)
        size += len(line)
        open_braces += line.count("{") - line.count("}")
        if open_braces <= 0:
            yield " ".join(part.strip() for part in held)
            held, open_braces, size = [], 0, 0
    yield from held


@dataclass(slots=True)
class Box:
    """A table of two columns between two lines of dashes, as Stable-Baselines3's logger prints it.

    A cell such as ``| rollout/ | |`` names the section of the indented ones after it.
    """

    _values: dict[str, float] | None = None
    _section: str = ""
    rows: list[Row] = field(default_factory=list)
    """What ended with the last line; to be taken out."""

    def takes(self, line: str) -> bool:
        """Whether ``line`` is part of a box; when it closes one, a row is there."""
        if _EDGE.fullmatch(line):
            self._close()
            self._values, self._section = {}, ""
            return True
        if self._values is None or not (cell := _CELL.fullmatch(line)):
            self._close()
            return False
        name, value = (cell["name"] or "")[:MAX_NAME], cell["value"]
        if name.endswith("/") and not value:
            self._section = name
        elif name and number_of(name) is None and len(self._values) < MOST_NAMES:
            number = number_of(value)
            if number is not None:
                inside = self._section if len(cell["indent"]) > 1 else ""
                self._values[inside + name] = number
        return True

    def _close(self) -> None:
        values, self._values = self._values, None
        if values:
            counter = step_name(values)
            step = step_of(values[counter]) if counter else None
            if counter and step is not None:
                del values[counter]
            self.rows.append(Row(step, None, values))


_RULE = re.compile(r"\s*(?:\|(?:\s*:?-{2,}:?\s*\|)+|:?-{2,}:?(?:\s*\|\s*:?-{2,}:?)+)\s*")
_YOLO = re.compile(r"\s*Epoch\s+gpu_mem\s+.*", re.I)
_YOLO_PARTS = ("box", "obj", "cls", "dfl", "seg", "pose", "kobj")


@dataclass(slots=True)
class Columns:
    """A table whose header line names the columns, and the lines below that hold the values."""

    _names: list[str] = field(default_factory=list)
    _before: list[str] = field(default_factory=list)
    """Cells of the line before, which a Markdown rule makes a header."""
    _yolo: bool = False
    _state: Row | None = None
    """Of YOLO's bar: the last state of the epoch counts."""
    rows: list[Row] = field(default_factory=list)
    """What is complete; to be taken out."""

    def takes(self, line: str) -> bool:
        """Whether ``line`` is part of a table."""
        if _YOLO.fullmatch(line):
            self.end()
            self._names, self._yolo = line.split(), True
            return True
        if self._yolo:
            return self._takes_state(line)
        if _RULE.fullmatch(line) and len(self._before) > 1:
            self._names, self._before = self._before, []
            return True
        barred = line.lstrip().startswith("|") or (" | " in line and len(line) < LONGEST_TEXT)
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if barred else []
        if self._names and len(cells) == len(self._names):
            self._row(dict(zip(self._names, map(number_of, cells), strict=True)))
            return True
        self._names, self._before = [], cells
        return False

    def _row(self, cells: dict[str, float | None]) -> None:
        values = {name[:MAX_NAME]: value for name, value in cells.items() if name and value is not None}
        counter = step_name(values)
        if counter and len(values) > 1:  # others are results of finished trainings, not a course
            self.rows.append(Row(step_of(values[counter]), None, {n: v for n, v in values.items() if n != counter}))

    def _takes_state(self, line: str) -> bool:
        cells = line.partition(":")[0].split()
        epoch, _, epochs = cells[0].partition("/") if cells else ("", "", "")
        if len(cells) != len(self._names) or not (epoch.isdecimal() and epochs.isdecimal() and len(epoch) < 10):
            return False
        parts: dict[str, float] = {}
        for name, cell in zip(self._names[2:], cells[2:], strict=True):
            number = number_of(cell)
            if number is not None and name.lower().removesuffix("_loss") in (*_YOLO_PARTS, "total"):
                parts[name] = number
        if not parts:
            return False
        whole = parts.pop("total") if "total" in parts else sum(parts.values())
        values = {f"train/{name.removesuffix('_loss')}_loss": value for name, value in parts.items()}
        if self._state is not None and self._state.step != int(epoch):
            self.end()
        self._state = Row(int(epoch), None, {"train/loss": whole, **values})
        return True

    def end(self) -> None:
        """The last epoch is over."""
        if self._state is not None:
            self.rows.append(self._state)
            self._state = None
