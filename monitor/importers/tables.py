"""Tables as text: CSV loggers of Lightning and Keras, Ultralytics' results.csv, exports of W&B and TensorBoard."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path

from monitor.importers.lines import read_lines
from monitor.importers.rows import MAX_NAME, SPLITS, Account, Row, number_of, of_split
from monitor.runfile.format import MAX_COLUMNS

LONGEST_LINE = 1 << 24
_TENSOR = re.compile(r"\s*(?:tensor|\[)\(?([-+\d.e]+|-?nan|-?inf)[,)\]]")
"""A number that was written with its tensor around it."""
_TIMES = ("wall time", "wall_time", "timestamp", "_timestamp")
_MEASURED = re.compile(r"acc|precision|recall|f1|auc|iou|dice|(^|[/_ -])lr($|[/_ -])|learning.?rate", re.I)
LEAST_NOTHING = 2
"""Rows without a loss; a single one may be that of a test."""
MOST_HELD = 10_000
RUN_MARK = " - "
"""Between the run and the metric in W&B's export."""
YOLO_LOSSES = re.compile(r"(train|val)/(?:box|cls|dfl|obj|seg|sem|pose|kobj|rle|angle|giou|l1)_loss")
"""Its parts: of YOLOv5 with ``obj``, of segmentation, pose, oriented boxes, RT-DETR."""


def delimiter_of(lines: list[str]) -> str | None:
    """The delimiter of a table that begins with these lines (a header, then at least one row); None for other text."""
    lines = [line for line in lines if line.strip()]
    if len(lines) < 2:
        return None
    for delimiter in ",\t;|":
        header, *rows = (line.count(delimiter) for line in lines)
        if not header or any(count != header for count in rows[:3]):
            continue
        names = _cells(lines[0], delimiter)
        cells = _cells(lines[1], delimiter)
        if _named(names) and any(number_of(cell) is not None for cell in cells) and len(names) == len(cells):
            return delimiter
    return None


def _named(names: list[str]) -> bool:
    named = [name for name in names if name.strip()]
    return bool(named) and all(len(name) <= MAX_NAME and number_of(name) is None for name in named)


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def exported_runs(line: str, delimiter: str) -> list[str]:
    """The runs of a header as W&B exports a chart: ``run - train/loss``, once more with ``__MIN`` and ``__MAX``; [] for
    another table."""
    names = [name.strip().lstrip("\ufeff") for name in _cells(line, delimiter)]
    of_runs = [name for name in names if RUN_MARK in name]
    repeated = [name for name in of_runs if name.endswith(("__MIN", "__MAX"))]
    if not repeated or len(of_runs) < len(names) - 2:  # beside the step, at most a clock
        return []
    return list(dict.fromkeys(name.rpartition(RUN_MARK)[0] for name in of_runs))


def read_run(path: Path, run: str, account: Account, *, delimiter: str = ",") -> Iterator[Row]:
    """One run of such a table, by the names that it had in the training."""
    account.name = account.name or run[:MAX_NAME]
    start = f"{run}{RUN_MARK}"
    for row in read_table(path, delimiter, account):
        mine = {name.removeprefix(start): value for name, value in row.values.items() if _is_of(name, start)}
        if any(name.startswith(start) for name in row.values):  # the others have their rows at other steps
            yield Row(row.step, row.time, mine, fresh=row.fresh)


def _is_of(name: str, start: str) -> bool:
    return name.startswith(start) or RUN_MARK not in name


def read_table(path: Path, delimiter: str, account: Account) -> Iterator[Row]:
    """A row per line of numbers; a loss that ends as nothing beside other measurements is NaN, since pandas writes it
    so. A header that comes again begins a further file in the same one."""
    whole: frozenset[str] = frozenset()
    """What every row so far had."""
    held: list[Row] = []
    """The rows without a loss since the last with one."""
    for rows, row in enumerate(_rows(path, delimiter, account)):
        names = frozenset(row.values)
        if rows == 0 or row.fresh:
            whole = names
        if whole and not row.fresh and len(held) < MOST_HELD and _lacks_losses(names, whole):
            held.append(row)
            continue
        if held:  # a table with gaps
            yield from held
            held, whole = [], frozenset()
        whole &= names
        yield row
    if len(held) >= LEAST_NOTHING:
        account.say("nothing", f"{path}: a loss that is empty to the end, beside other numbers, is NaN.")
        for row in held:
            row.values.update(dict.fromkeys(whole - row.values.keys(), math.nan))
    yield from held


def _lacks_losses(names: frozenset[str], whole: frozenset[str]) -> bool:
    """Whether a row has all that those before had, a measurement among it, but the losses."""
    gone = whole - names
    kept = whole - gone
    return (
        bool(gone)
        and all("loss" in name.lower() for name in gone)
        and not any("loss" in name.lower() for name in names)
        and any(_MEASURED.search(name) for name in kept)
    )


def _rows(path: Path, delimiter: str, account: Account) -> Iterator[Row]:
    lines = (line for line in read_lines(path, account, LONGEST_LINE) if line.strip())
    names: dict[int, str] = {}
    header: list[str] = []
    split: int | None = None
    long: tuple[int, int] | None = None
    fresh, rows = False, 0
    for line in lines:
        cells = _cells(line, delimiter)
        if not header or (cells and _named(cells) and len(cells) > 1):
            fresh, header = bool(header), cells
            names = _names(path, cells, account)
            split = next((column for column, name in names.items() if name.lower() in SPLITS), None)
            long = _long(cells)
            continue
        if len(cells) != len(header):
            account.say("ragged", f"{path}: a line has {len(cells)} fields where the header has {len(header)}.")
        values: dict[str, float] = {}
        time: float | None = None
        for column, name in names.items():
            number = _number(cells[column], delimiter) if column < len(cells) else None
            if number is None:
                continue
            if name.lower() in _TIMES and number > 1e9:
                time = number / 1000 if number > 1e11 else number
            elif long is not None and column == long[1]:
                values[cells[long[0]].strip()[:MAX_NAME] or name] = number
            else:
                values[name] = number
        if values:
            _total(values, account)
            values = of_split(values, cells[split] if split is not None and split < len(cells) else None)
            yield Row(None, time, values, fresh=fresh)
            fresh, rows = False, rows + 1
    if header and not rows:
        account.say("rows", f"{path}: a header, and no row of numbers below it.")


def _long(header: list[str]) -> tuple[int, int] | None:
    """The columns of the metric's name and of its value, in a table with a line for each value."""
    names = [name.strip().lower() for name in header]
    named = next((names.index(name) for name in ("metric", "metric_name", "tag", "key") if name in names), None)
    return None if named is None or "value" not in names else (named, names.index("value"))


def read_numbers(path: Path, name: str, account: Account) -> Iterator[Row]:
    """A number a line and nothing else, which the file's name says what it is."""
    for line in read_lines(path, account):
        number = number_of(line)
        if number is not None:
            yield Row(None, None, {name: number})


def _number(cell: str, delimiter: str) -> float | None:
    """The number of a cell; where semicolons part the cells, as spreadsheets of half of Europe have it, a comma is the
    decimal point."""
    if match := _TENSOR.match(cell):
        return number_of(match[1])
    return number_of(cell.replace(",", ".") if delimiter == ";" and cell.count(",") == 1 else cell)


def _names(path: Path, cells: list[str], account: Account) -> dict[int, str]:
    names: dict[int, str] = {}
    for column, cell in enumerate(cells):
        name = cell.strip().lstrip("\ufeff")[:MAX_NAME]
        if name.lower() == "value":  # TensorBoard's export of one curve: the file is named after it
            name = path.stem.rpartition("-tag-")[2].replace("_", "/", 1) if "-tag-" in path.stem else path.stem
        if name and not name.endswith(("__MIN", "__MAX")):  # W&B's export repeats the value in these
            names[column] = name
        if len(names) == MAX_COLUMNS:
            account.say("columns", f"{path}: {len(cells):,} columns; the first {MAX_COLUMNS:,} are read.")
            break
    return names


def _total(values: dict[str, float], account: Account) -> None:
    """Ultralytics logs the parts of its loss, already weighted, and not their sum."""
    parts: dict[str, list[str]] = {}
    for name in values:
        if match := YOLO_LOSSES.fullmatch(name):
            parts.setdefault(match[1], []).append(name)
    if len(parts.get("train", ())) < 2 or "train/loss" in values:
        return
    for kind, names in parts.items():
        values[f"{kind}/loss"] = sum(values[name] for name in names)
        account.origins[f"{kind}/loss"] = f"sum of {', '.join(names)}"
