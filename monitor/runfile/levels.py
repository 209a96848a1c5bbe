"""Any stretch of a run in about as many cells as there are pixels, however long the run is.

A cell holds the smallest and the largest finite value of some consecutive rows, the last value, and how many were NaN,
+inf and -inf: nothing that a picture needs is lost. Of a compacted stream the cells come from its levels, and the rows
are touched only at the two ends of the stretch; of any other stream the rows themselves are reduced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from monitor.errors import RunError
from monitor.runfile.attempt import RankData
from monitor.runfile.cells import NAMES, Cells, join, merge, reduce_values
from monitor.runfile.levelfile import DamagedBlock, LevelFiles, Levels
from monitor.runfile.lineage import Piece
from monitor.runfile.reader import Run
from monitor.runfile.thinned import Extents


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of one scalar (arrays [B]) or of one statistic of L layers (arrays [B, L]), cell by cell.

    The cells lie in the order of steps, do not overlap, and together hold every value of the stretch.
    """

    name: str
    names: tuple[str, ...]
    """The L layers in depth order; () for a scalar."""
    first_step: np.ndarray
    """int64[B]: the cell is about ``first_step <= step <= last_step``."""
    last_step: np.ndarray
    min: np.ndarray
    """Smallest finite value; NaN when there is none."""
    max: np.ndarray
    """Largest finite value; NaN when there is none."""
    last: np.ndarray
    """Last value, whatever it is; NaN without meaning where ``count`` is 0."""
    count: np.ndarray
    """Values in the cell, non-finite ones included."""
    nan: np.ndarray
    posinf: np.ndarray
    neginf: np.ndarray
    rows: int
    """Rows of the stretch, those without a value included."""
    read: int
    """Rows and cells that were looked at, per layer: what the answer cost."""

    def __len__(self) -> int:
        return len(self.first_step)


def window(
    run: Run,
    name: str,
    first: int | None = None,
    last: int | None = None,
    points: int = 1000,
    *,
    attempt: int | None = None,
    rank: int = 0,
) -> Window:
    """The values of one scalar with ``first <= step <= last`` (None: open) in at most about ``points`` cells.

    At least half of ``points`` when there are as many rows, and up to two more per attempt. At most ``64 * points``
    cells of a level are read, and at the two ends of each attempt's part 126 of every level below. A scalar that was
    logged after the fact in an attempt (events), and an attempt that is not compacted, are reduced from their rows.

    Args:
        points: at least 1; the width of the chart in pixels is a good choice.
        attempt: one attempt alone instead of the current line.
    """
    try:
        return _scalar_window(run, name, first, last, points, attempt, rank, from_levels=True)
    except DamagedBlock as damage:
        run.say_problem(str(damage))
        return _scalar_window(run, name, first, last, points, attempt, rank, from_levels=False)


def _scalar_window(
    run: Run,
    name: str,
    first: int | None,
    last: int | None,
    points: int,
    attempt: int | None,
    rank: int,
    from_levels: bool,
) -> Window:
    sources: list[tuple[Source, int, int]] = []
    for piece, data in _pieces(run, attempt, rank):
        step = data.scalars.step.view()
        source: Source
        try:
            if name in data.late or not from_levels:
                raise RunError(f"{name}: some values came as events, or the levels are damaged")
            source = Levels(level_files(run, data, "scalars", step), name, None)
        except DamagedBlock:
            raise
        except (RunError, FileNotFoundError):
            signal = run.series(name, attempt=piece.attempt, rank=rank)
            source = Plain(signal.step, signal.value, None)
        sources.append((source, *within(source.step, piece, first, last)))
    return _window(name, (), sources, points)


def layer_window(
    run: Run,
    stat: str,
    first: int | None = None,
    last: int | None = None,
    points: int = 1000,
    *,
    attempt: int | None = None,
    rank: int = 0,
) -> Window:
    """One statistic of every layer, as :func:`window`.

    When the set of layers changed along the way, the rows are reduced: the columns of such a matrix lie nowhere in one
    piece. So are those of a thinned statistic, which are few; a cell then holds the extremes of the steps left out too,
    and is never finer than the rows beside dense windows are.
    """
    intervals = run.extents(stat, attempt=attempt, rank=rank, windows=False)
    if intervals:
        return _of_intervals(stat, intervals, first, last, points)
    try:
        return _layer_window(run, stat, first, last, points, attempt, rank, from_levels=True)
    except DamagedBlock as damage:
        run.say_problem(str(damage))
        return _layer_window(run, stat, first, last, points, attempt, rank, from_levels=False)


def _layer_window(
    run: Run,
    stat: str,
    first: int | None,
    last: int | None,
    points: int,
    attempt: int | None,
    rank: int,
    from_levels: bool,
) -> Window:
    sources: list[tuple[Source, int, int]] = []
    names: tuple[str, ...] | None = None
    for piece, data in _pieces(run, attempt, rank):
        blocks = data.layers.blocks
        if not blocks:
            continue
        if len(blocks) > 1 or blocks[0].names != (names or blocks[0].names):
            return _whole_layers(run, stat, first, last, points, attempt, rank)
        names = blocks[0].names
        source: Source
        try:
            if not from_levels:
                raise RunError(f"{stat}: the levels are damaged")
            step = blocks[0].step.view()
            source = Levels(level_files(run, data, "layers", step), stat, len(names))
        except DamagedBlock:
            raise
        except (RunError, FileNotFoundError):
            column = blocks[0].column(stat)
            if column is None:
                continue
            source = Plain(column.step.view(), column.value.view(), column.present())
        sources.append((source, *within(source.step, piece, first, last)))
    return _window(stat, names or (), sources, points, width=len(names or ()))


_FILES: WeakKeyDictionary[RankData, dict[str, LevelFiles | RunError]] = WeakKeyDictionary()
"""What was found when a rank's levels were first asked for: a run opened before it was compacted stays as it is."""


def level_files(run: Run, data: RankData, stream: str, step: np.ndarray) -> LevelFiles:
    """The mapped files of one stream of one rank, opened once.

    Args:
        step: the steps of the stream's rows.

    Raises:
        RunError: it is not compacted, or its levels do not fit.
    """
    kept = _FILES.setdefault(data, {})
    if stream not in kept:
        try:
            kept[stream] = LevelFiles(run.path, stream, data.attempt, data.rank, step)
        except (RunError, FileNotFoundError) as error:
            kept[stream] = error if isinstance(error, RunError) else RunError(str(error))
    found = kept[stream]
    if isinstance(found, RunError):
        raise found
    if len(found.step) != len(step):
        raise RunError(f"{found.rows.path}: more rows have come since.")
    return found


def _whole_layers(
    run: Run, stat: str, first: int | None, last: int | None, points: int, attempt: int | None, rank: int
) -> Window:
    matrix = run.layers(stat, attempt=attempt, rank=rank)
    source = Plain(matrix.step, matrix.value, matrix.present)
    span = within(source.step, Piece(0, -1, None), first, last)
    return _window(stat, matrix.names, [(source, *span)], points, width=len(matrix.names))


def _of_intervals(stat: str, parts: Sequence[Extents], first: int | None, last: int | None, points: int) -> Window:
    """The cells of the intervals that any step of the stretch lies in."""
    places = {name: index for index, name in enumerate(dict.fromkeys(name for part in parts for name in part.names))}
    shape = (sum(len(part.step) for part in parts), len(places))
    nothing = np.full(shape, np.nan, np.float32)
    rows = Cells(nothing, nothing.copy(), nothing.copy(), *(np.zeros(shape, np.uint32) for _ in range(4)))
    at = 0
    for part in parts:
        place = np.ix_(range(at, at + len(part.step)), [places[name] for name in part.names])
        for kind in ("min", "max", "nan", "posinf", "neginf"):
            getattr(rows, kind)[place] = getattr(part, kind)
        rows.last[place] = np.where(part.present, part.value, part.max)
        distinct = np.isfinite(part.max).astype(np.uint32) + (part.max > part.min)
        rows.count[place] = np.maximum(part.present, part.nonfinite + distinct)
        at += len(part.step)
    step, since = (np.concatenate([getattr(part, name) for part in parts]) for name in ("step", "since"))
    low = 0 if first is None else int(np.searchsorted(step, first, side="left"))
    high = len(step) if last is None else int(np.searchsorted(since, last, side="right"))
    source = Intervals(step, since, rows)
    return _window(stat, tuple(places), [(source, low, max(low, high))], points, width=len(places))


def _pieces(run: Run, attempt: int | None, rank: int) -> Iterator[tuple[Piece, RankData]]:
    for piece in run.line if attempt is None else (Piece(attempt, -1, None),):
        data = run.ranks(piece.attempt).get(rank)
        if data is not None:
            yield piece, data


def within(step: np.ndarray, piece: Piece, first: int | None = None, last: int | None = None) -> tuple[int, int]:
    """The rows (first included, last excluded) of a piece that lie in the stretch asked for."""
    after = piece.after if first is None else max(piece.after, first - 1)
    upto = min((end for end in (piece.upto, last) if end is not None), default=None)
    low = int(np.searchsorted(step, after, side="right"))
    high = len(step) if upto is None else int(np.searchsorted(step, upto, side="right"))
    return low, max(low, high)


# Cutting a stretch into cells ----------------------------------------------------------------------------------------


class Source(Protocol):
    """Rows that can be had as cells."""

    @property
    def step(self) -> np.ndarray:
        """int64[n], the rows' steps."""
        ...


class Plain:
    """Rows at hand."""

    def __init__(self, step: np.ndarray, value: np.ndarray, present: np.ndarray | None):
        self.step, self.value, self.present = step, value, present


class Intervals:
    """Rows that each stand for several steps, as cells.

    How many finite values there were in one is not known; ``count`` has those that are.
    """

    def __init__(self, step: np.ndarray, since: np.ndarray, cells: Cells):
        self.step, self.since, self.cells = step, since, cells


def _window(
    name: str, names: tuple[str, ...], sources: Sequence[tuple[Source, int, int]], points: int, width: int | None = None
) -> Window:
    if points < 1:
        raise ValueError(f"points is {points}; at least 1 is needed.")
    rows = sum(high - low for _, low, high in sources)
    size = max(1, -(-rows // points))
    first, last, cells, read = [], [], [], 0
    for source, low, high in sources:
        if high == low:
            continue
        bounds, own, cost = _cut(source, low, high, size)
        first.append((source.since if isinstance(source, Intervals) else source.step)[bounds[:-1]])
        last.append(source.step[bounds[1:] - 1])
        cells.append(own)
        read += cost
    if not cells:
        nothing = np.empty(0 if width is None else (0, width), np.float64 if width is None else np.float32)
        counts = nothing.astype(np.uint32)
        no_step = np.empty(0, np.int64)
        return Window(name, names, no_step, no_step, nothing, nothing, nothing, counts, counts, counts, counts, 0, 0)
    whole = join(cells)
    kept = whole.count > 0 if width is None else (whole.count > 0).any(axis=1)
    return Window(
        name=name,
        names=names,
        first_step=np.concatenate(first)[kept],
        last_step=np.concatenate(last)[kept],
        rows=rows,
        read=read,
        **{kind: getattr(whole, kind)[kept] for kind in NAMES},
    )


def _cut(source: Source, low: int, high: int, size: int) -> tuple[np.ndarray, Cells, int]:
    """Rows ``low..high`` in cells of ``size`` rows: bounds int64[B + 1], the B cells, and what was read.

    Cells begin at multiples of their size, so that they stay the same while somebody pans.
    """
    if isinstance(source, Levels):
        return _cut_levels(source, low, high, size)
    bounds = _bounds(low, high, size)
    if isinstance(source, Intervals):
        return bounds, merge(source.cells.rows(low, high), bounds[:-1] - low), high - low
    assert isinstance(source, Plain)
    present = None if source.present is None else source.present[low:high]
    return bounds, reduce_values(source.value[low:high], present, bounds[:-1] - low), high - low


def _bounds(low: int, high: int, size: int) -> np.ndarray:
    inner = np.arange((low // size + 1) * size, high, size, dtype=np.int64)
    return np.concatenate([[low], inner, [high]])


def _cut_levels(levels: Levels, low: int, high: int, size: int) -> tuple[np.ndarray, Cells, int]:
    level, unit = 0, 1
    while level < levels.height and unit * levels.factor <= size:
        level, unit = level + 1, unit * levels.factor
    size = -(-size // unit) * unit
    bounds = _bounds(low, high, size)
    if level == 0:
        value, present = levels.values(low, high)
        return bounds, reduce_values(value, present, bounds[:-1] - low), high - low
    begin, end = -(-low // size) * size, high // size * size
    if begin >= end:
        parts = [_exact(levels, start, stop) for start, stop in pairwise(bounds.tolist())]
        return bounds, join([cells for cells, _ in parts]), sum(read for _, read in parts)
    inner = levels.cells(level, begin // unit, end // unit)
    edges = {edge: _exact(levels, *edge) for edge in ((low, begin), (end, high)) if edge[0] < edge[1]}
    head = [edges[low, begin][0]] if low < begin else []
    tail = [edges[end, high][0]] if end < high else []
    middle = merge(inner, np.arange(0, len(inner), size // unit))
    return bounds, join([*head, middle, *tail]), len(inner) + sum(read for _, read in edges.values())


def _exact(levels: Levels, low: int, high: int) -> tuple[Cells, int]:
    """One cell of rows ``low..high``: whole cells of high levels in the middle, lower ones and rows at the ends."""
    low, high, unit = int(low), int(high), 1
    left: list[Cells] = []
    right: list[Cells] = []
    read = 0
    for level in range(levels.height + 1):
        above = unit * levels.factor
        begin, end = -(-low // above) * above, high // above * above
        if level == levels.height or begin >= end:
            left.append(_take(levels, level, low // unit, high // unit))
            read += (high - low) // unit
            break
        for side, start, stop in ((left, low, begin), (right, end, high)):
            if start < stop:
                side.append(_take(levels, level, start // unit, stop // unit))
                read += (stop - start) // unit
        low, high, unit = begin, end, above
    return merge(join([*left, *reversed(right)]), np.zeros(1, np.int64)), read


def _take(levels: Levels, level: int, low: int, high: int) -> Cells:
    """One cell of the cells ``low..high`` of a level; level 0 is the rows."""
    start = np.zeros(1, np.int64)
    if level == 0:
        return reduce_values(*levels.values(low, high), start)
    return merge(levels.cells(level, low, high), start)
