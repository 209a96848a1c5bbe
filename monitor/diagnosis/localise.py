"""Which layer moved first: per-layer robust z of the gradient norm around an event, or the first non-finite layers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from monitor.diagnosis.primitives import MAD_TO_SD, nonfinite_rows
from monitor.signals import LayerMatrix

BASELINE_ROWS = 96
LEAST_BASELINE_ROWS = 8
LAYER_SCALE_FLOOR = 0.05
"""Log units, as for the global norm."""
NORM_FLOOR = 1e-4
"""Share of the median layer's norm. Below it a gradient is rounding noise: the key bias of softmax attention has a
mathematically zero gradient, as has a convolution's bias before batch normalisation. Our judgement."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What the layers did around an event."""

    layer: str | None
    """The layer that moved first; None when it cannot be told, see ``reason``."""
    step: int | None
    """Where the run is thinned: the last of the steps in which it may have been, ``since`` the first."""
    since: int | None
    z: float
    ratio: float
    """Of ``layer``'s norm to its own baseline at its peak in the event."""
    moved: int
    """Layers that left their baseline at the step where the first did."""
    total: int
    """Layers that were judged."""
    concentration: float
    """Rise of ``layer`` at the first step divided by the median layer's rise there; 1 when all move together."""
    reason: str
    also: tuple[str, ...] = ()
    """Other layers that left their baseline at the same step, strongest first, at most five."""


def log_norms(matrix: LayerMatrix, first_row: int, last_row: int) -> np.ndarray:
    """float64[R, L] of rows [first_row, last_row): log norm; NaN where absent, zero or non-finite."""
    value = matrix.value[first_row:last_row].astype(np.float64)
    usable = matrix.present[first_row:last_row] & np.isfinite(value) & (value > 0)
    return np.log(np.where(usable, value, 1.0)) + np.where(usable, 0.0, np.nan)


def baseline_of(norms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(level, scale, usable), each [L], of log norms float64[R, L].

    A layer is usable when at least three quarters of the rows hold a norm and its level is above the rounding floor.
    """
    enough = np.isfinite(norms).sum(axis=0) >= max(LEAST_BASELINE_ROWS, 0.75 * len(norms))
    level = np.full(norms.shape[1], np.nan)
    scale = np.full(norms.shape[1], np.nan)
    if enough.any():
        level[enough] = np.nanmedian(norms[:, enough], axis=0)
        scale[enough] = MAD_TO_SD * np.nanmedian(np.abs(norms[:, enough] - level[enough]), axis=0)
        floor = np.nanmedian(level[enough]) + np.log(NORM_FLOOR)
        enough &= np.nan_to_num(level, nan=-np.inf) > floor
    return level, np.maximum(scale, LAYER_SCALE_FLOOR), enough


def first_moved(
    matrix: LayerMatrix | None, onset_step: int, last_step: int, *, z: float = 6.0, ratio: float = 2.0, before: int = 20
) -> Moved | None:
    """The layer that left its baseline first around an event, None without enough per-layer history.

    For each layer: its peak within the event (up to ten rows after the onset), then back from the peak as long as it
    stays above ``z`` and ``ratio``. The earliest layer wins. Among several in the same step: where exactly the layers
    on the input side of one layer moved, that layer is the origin, because a disturbance travels backward from it;
    else the highest z; else the one nearer the input.
    """
    if matrix is None:
        return None
    onset = int(np.searchsorted(matrix.step, onset_step))
    stop = min(int(np.searchsorted(matrix.step, last_step, side="right")), onset + 11)
    start = max(onset - before, 0)
    if onset >= len(matrix.step) or start < LEAST_BASELINE_ROWS:
        return None
    level, scale, usable = baseline_of(log_norms(matrix, max(0, start - BASELINE_ROWS), start))
    if not usable.any():
        return None
    rise = log_norms(matrix, start, max(stop, onset + 1)) - level
    score = np.where(usable, rise / scale, np.nan)
    above = (score > z) & (rise > np.log(ratio))
    first = _first_crossings(above, np.nan_to_num(score, nan=-np.inf), onset - start)
    if (first < 0).all():
        return Moved(None, None, None, 0.0, 1.0, 0, int(usable.sum()), 1.0, "no layer left its own baseline")
    row = int(first[first >= 0].min())
    return _pick(matrix, row, start, first == row, score, rise, usable)


def _first_crossings(above: np.ndarray, score: np.ndarray, onset: int) -> np.ndarray:
    """int[L]: row at which each layer's run of raised rows up to its peak began; -1 for a layer that did not move."""
    first = np.full(above.shape[1], -1)
    for layer in np.flatnonzero(above[max(0, onset - 2) :].any(axis=0)):
        tail = score[max(0, onset - 2) :, layer]
        row = max(0, onset - 2) + int(np.argmax(np.where(above[max(0, onset - 2) :, layer], tail, -np.inf)))
        while row > 0 and above[row - 1, layer]:
            row -= 1
        first[layer] = row
    return first


def _pick(
    matrix: LayerMatrix,
    row: int,
    start: int,
    candidates: np.ndarray,
    score: np.ndarray,
    rise: np.ndarray,
    usable: np.ndarray,
) -> Moved:
    """The origin among ``candidates`` (bool[L]), which left their baselines at ``row`` of the arrays [R, L]."""
    layers = np.flatnonzero(candidates)
    here = np.nan_to_num(score[row], nan=-np.inf)
    order = layers[np.argsort(-here[layers], kind="stable")]
    deepest = int(layers.max())
    below, beyond = usable[: deepest + 1], usable[deepest + 1 :]
    upstream_only = (
        1 < len(layers) < usable.sum() and candidates[: deepest + 1][below].mean() >= 0.8 and beyond.sum() >= 2
    )
    layer = deepest if upstream_only else int(order[0])
    typical = float(np.nanmedian(rise[row][usable]))
    if upstream_only:
        reason = "every layer on its input side moved in the same step and none beyond it"
    elif len(layers) == 1:
        reason = "it alone left its baseline in that step"
    else:
        reason = f"{len(layers)} layers left their baseline in the same step; this one the furthest"
    return Moved(
        layer=matrix.names[layer],
        step=int(matrix.step[start + row]),
        since=int(matrix.begins[start + row]),
        z=float(here[layer]),
        ratio=float(np.exp(np.nanmax(rise[row:, layer]))),
        moved=len(layers),
        total=int(usable.sum()),
        concentration=float(np.exp(min(rise[row, layer] - typical, 700.0))),
        reason=reason,
        also=tuple(matrix.names[other] for other in order if other != layer)[:5],
    )


@dataclass(frozen=True, slots=True)
class NonfiniteLayers:
    """Layers at the first step at which any of them is non-finite."""

    step: int
    """Where the run is thinned: the last of the steps in which it may have been, ``since`` the first."""
    since: int
    layer: str | None
    """The origin, None when it cannot be told."""
    nonfinite: tuple[str, ...]
    finite: tuple[str, ...]
    reason: str


def nonfinite_layers(matrix: LayerMatrix | None, first_step: int, last_step: int) -> NonfiniteLayers | None:
    """The origin of a NaN or Inf within [first_step, last_step]; None when every layer is finite there.

    The backward pass runs from the output to the input and carries a NaN along, so of several layers the one nearest
    the output was first. When all of them are non-finite the order cannot be told from gradients.
    """
    if matrix is None:
        return None
    start = int(np.searchsorted(matrix.step, first_step))
    about = start + np.flatnonzero(matrix.begins[start:] <= last_step)
    bad = ~np.isfinite(matrix.value[about]) & matrix.present[about]
    rows = np.flatnonzero(bad.any(axis=1))
    if len(rows) == 0:
        return None
    hits, row = bad[rows[0]], int(about[rows[0]])
    names = np.array(matrix.names, dtype=object)
    hit, clean = names[hits], names[matrix.present[row] & ~hits]
    step, since = int(matrix.step[row]), int(matrix.begins[row])
    if len(clean) == 0 and len(hit) > 1:
        reason = "every layer became non-finite in the same step, so gradients cannot tell where it began"
        return NonfiniteLayers(step, since, None, tuple(hit), (), reason)
    reason = (
        f"{len(hit)} of {len(hit) + len(clean)} layers are non-finite; the backward pass reaches this one first"
        if len(hit) > 1
        else "it alone is non-finite in that step"
    )
    return NonfiniteLayers(step, since, str(hit[-1]), tuple(hit), tuple(clean), reason)


# ------------------------------------------------------------------------------------- one layer on its own, whole run

BLOCK = 32
"""Rows per block of the scan's memory of extremes."""
MEMORY_BLOCKS = 16
"""Blocks that a layer's own record goes back: half a thousand rows. Our judgement."""
SETTLING_ROWS = 64
"""Rows at the start that a layer's record leaves out (a third of them as long as there are fewer than three times as
many): norms fall tenfold there in healthy runs."""
LAG_ROWS = 4
"""The last rows before a row that its layer's record leaves out: a rise over a few steps must not hide itself."""


@dataclass(frozen=True, slots=True)
class LayerJump:
    """One layer that jumped while the others did not."""

    onset: int
    """Step at which the layer left all it had shown, at most four rows before ``step``."""
    since: int
    """``onset``; where the run is thinned the first of the steps in which it may have been, ``onset`` the last."""
    step: int
    """Step at which it could be told."""
    last_step: int
    layer: str
    ratio: float
    """Of the layer's norm to its own recent level."""
    z: float
    """Robust z of its log norm against its own recent rows."""
    share: float
    """Of the norm of the whole gradient in that step, in [0, 1]."""
    record: float
    """Ratio to the highest norm of the same layer in the last 500 steps or so."""
    moved: int
    """Layers that rose by a like factor, this one included."""
    total: int
    """Layers that were judged."""
    concentration: float
    """Rise of the layer divided by the median layer's rise."""
    proven: bool
    """The layer outweighs all others together, or has a long history and is of one module with all that rose alike;
    else it may just be seldom used, as an expert or an embedding is."""


@dataclass(frozen=True, slots=True)
class JumpSettings:
    """Thresholds of the scan for one layer on its own; our judgement, calibrated as the rule says."""

    z: float = 4.5
    ratio: float = 20.0
    share: float = 0.05
    """Smallest share of the whole gradient's norm. Rounding noise never gets there, whatever its ratio."""
    record: float = 4.0
    """Smallest ratio to the layer's own record."""
    tail: float = 4.0
    """Log of the ratio to the record, at least this multiple of the layer's tail: the mean distance of its ten highest
    log norms from the eleventh (Hill's estimator). With a power-law tail one record in exp(4) = 55 is broken
    by that much."""
    rise: float = 1.6
    """Smallest ratio of the rise to the record's own rise, both in log units: the same for a tail that is a power law
    in logarithms."""
    others: float = 2.0
    """The median layer must have risen less than this; else a layer that outweighs all others must have jumped beyond
    it as it would have to alone: a large batch and one layer's fault may fall on the same step."""
    history: int = 96
    """Rows after the start that a layer which does not outweigh the others must have been seen for."""


def lone_jumps(matrix: LayerMatrix | None, settings: JumpSettings | None = None) -> list[LayerJump]:
    """Events in which one layer's norm jumps while the typical layer stays at its level; the first step of each.

    The global norm does not show it when the layer is small or when the whole is noisy. A row is judged by the median
    and the scatter of its layer in the three whole blocks before the row's own, and by its layer's record. It looks
    only backwards. Only layers whose highest norm in a block exceeds ``ratio`` times their lowest of those three
    blocks, and their record, are looked at row by row; nothing that could pass is left out by that, and the scan of
    100 000 x 200 norms takes half a second. A layer must also stand above three times the highest minimum of its
    earlier blocks, which is about twice its highest level so far, so that one whose gradient has nearly vanished is
    not alarmed by its return.
    """
    if matrix is None or len(matrix.step) <= 2 * BLOCK:
        return []
    return _together(_Scan(matrix, settings or JumpSettings()).jumps())


class _Scan:
    """One pass over the blocks of a matrix, in order."""

    def __init__(self, matrix: LayerMatrix, settings: JumpSettings) -> None:
        self.matrix = matrix
        self.settings = settings
        self.lowest, self.highest = _block_extremes(matrix, BLOCK)
        with np.errstate(over="ignore"):
            self.once = np.float32(3) * np.fmax.accumulate(self.lowest, axis=0)
        self.forgotten: dict[int, list[int]] = {}
        """Rows of a layer that outweighed all others: they are events, and no part of the layer's own record."""

    def jumps(self) -> list[LayerJump]:
        found: list[LayerJump] = []
        for block in range(2, len(self.highest)):
            layers = np.flatnonzero(self._suspicious(block))
            if len(layers):
                found.extend(self._in_block(block, layers))
        return found

    def _suspicious(self, block: int) -> np.ndarray:
        """bool[L]: layers that may hold a jump within the block; True wherever one is."""
        settings, highest = self.settings, self.highest[block]
        with np.errstate(invalid="ignore", over="ignore"):
            lowest = np.fmin.reduce(self.lowest[max(0, block - 3) : block], axis=0)
            raised = (highest > 0.99 * settings.ratio * lowest) & (highest > 0.99 * self.once[block - 1])
            oldest = -(-_oldest(block * BLOCK + BLOCK - 1) // BLOCK)
            if oldest < block - 1 and raised.any():
                raised &= ~(highest < 0.99 * settings.record * np.fmax.reduce(self.highest[oldest : block - 1], axis=0))
        return raised

    def _in_block(self, block: int, layers: np.ndarray) -> list[LayerJump]:
        start = block * BLOCK
        stop = min(start + BLOCK, len(self.matrix.step))
        level, scale, usable = _level_and_scale(self._norms(max(0, start - 3 * BLOCK), start, layers))
        norms = self._norms(start, stop, layers)
        rise = norms - level
        with np.errstate(invalid="ignore", divide="ignore"):
            high = usable & (rise > np.log(self.settings.ratio)) & (rise > self.settings.z * scale)
            high &= norms > np.log(self.once[block - 1, layers])
        jumps = []
        for row in np.flatnonzero(high.any(axis=1)).tolist():
            columns = np.flatnonzero(high[row])
            for column in columns[np.argsort(-rise[row, columns], kind="stable")].tolist():
                z = float(rise[row, column] / scale[column])
                jump = self._judge(start + row, int(layers[column]), float(level[column]), z)
                if jump is not None:
                    jumps.append(jump)
                    break
        return jumps

    def _judge(self, row: int, layer: int, level: float, z: float) -> LayerJump | None:
        """The jump of ``layer`` at ``row``, or None when its own past or the other layers explain it."""
        settings, matrix = self.settings, self.matrix
        here = log_norms(matrix, row, row + 1)[0]
        rise = float(here[layer]) - level
        weight = np.exp(2 * (here - np.nanmax(here)))
        share = float(np.sqrt(weight[layer] / np.nansum(weight)))
        oldest = _oldest(row)
        past = self._past(oldest, row - LAG_ROWS, layer)
        record = float(past.max()) if len(past) else -np.inf
        above = float(here[layer]) - record
        if share < settings.share or above < np.log(settings.record):
            return None
        if above < settings.tail * min(
            _tail_of(past), _tail_of(self._past_beside_others(oldest, row - LAG_ROWS, layer))
        ):
            return None
        if rise < settings.rise * (record - level):
            return None
        others = self._rise_of_others(row, here)
        like = np.flatnonzero(others > 0.5 * rise)
        judged = int(np.isfinite(others).sum())
        typical = float(np.nanmedian(others)) if judged else 0.0
        if len(like) > max(2, judged // 4):
            return None
        outweighs = share**2 > 0.5
        if typical > np.log(settings.others) and not (outweighs and self._stands_out(row, here, layer, rise - typical)):
            return None
        one_module = len({matrix.names[index].rpartition(".")[0] for index in (layer, *like.tolist())}) == 1
        if outweighs:
            self._forget(row, layer)
        onset, bar = row, max(level + np.log(settings.ratio), record + np.log(2))
        while onset > row - LAG_ROWS and self._norm(onset - 1, layer) > bar:
            onset -= 1
        return LayerJump(
            onset=int(matrix.step[onset]),
            since=int(matrix.begins[onset]),
            step=int(matrix.step[row]),
            last_step=int(matrix.step[row]),
            layer=matrix.names[layer],
            ratio=float(np.exp(rise)),
            z=z,
            share=share,
            record=float(np.exp(min(above, 700.0))),
            moved=max(1, len(like)),
            total=max(1, judged),
            concentration=float(np.exp(rise - typical)),
            proven=outweighs or (one_module and len(past) >= settings.history),
        )

    def _stands_out(self, row: int, here: np.ndarray, layer: int, beyond: float) -> bool:
        """Whether ``layer`` jumped ``beyond`` (log) a batch that moved the others too, as it would have to alone."""
        settings = self.settings
        past = self._past_beside_others(_oldest(row), row - LAG_ROWS, layer)
        if beyond < np.log(settings.ratio) or not len(past):
            return False
        above = float(here[layer] - np.nanmedian(here)) - float(past.max())
        return above >= max(np.log(settings.record), settings.tail * _tail_of(past))

    def _rise_of_others(self, row: int, here: np.ndarray) -> np.ndarray:
        """float64[L]: rise of every layer at ``row`` above its level in the same three blocks; NaN where not judged."""
        start = row // BLOCK * BLOCK
        level, _, usable = baseline_of(log_norms(self.matrix, max(0, start - 3 * BLOCK), start))
        return np.where(usable, here - level, np.nan)

    def _norms(self, first: int, last: int, layers: np.ndarray) -> np.ndarray:
        """float64[R, N]: log norms of a few layers."""
        matrix = self.matrix
        step, value, present = matrix.step[first:last], matrix.value[first:last, layers], matrix.present[first:last]
        return log_norms(LayerMatrix(matrix.stat, step, (), value, present[:, layers]), 0, len(step))

    def _norm(self, row: int, layer: int) -> float:
        """Log norm, NaN where there is none."""
        return float(self._norms(row, row + 1, np.array([layer]))[0, 0])

    def _past(self, first: int, last: int, layer: int) -> np.ndarray:
        """float64[N]: finite log norms of one layer, without the forgotten rows."""
        norms = self._norms(first, last, np.array([layer]))[:, 0]
        norms[[row - first for row in self.forgotten.get(layer, ()) if first <= row < last]] = np.nan
        return norms[np.isfinite(norms)]

    def _past_beside_others(self, first: int, last: int, layer: int) -> np.ndarray:
        """float64[N]: as ``_past``, less the typical layer's log norm in the same row. What moves all layers at once,
        a batch or a falling loss, is no sign of how far this one strays alone."""
        norms = log_norms(self.matrix, first, last)
        norms[[row - first for row in self.forgotten.get(layer, ()) if first <= row < last]] = np.nan
        norms = norms[np.isfinite(norms[:, layer])]
        return norms[:, layer] - np.nanmedian(norms, axis=1)

    def _forget(self, row: int, layer: int) -> None:
        self.forgotten.setdefault(layer, []).append(row)
        start = row // BLOCK * BLOCK
        rest = self._past(start, min(start + BLOCK, len(self.matrix.step)), layer)
        self.highest[start // BLOCK, layer] = np.exp(rest.max()) if len(rest) else np.nan


def _tail_of(past: np.ndarray, highest: int = 10) -> float:
    """Mean distance of the ``highest`` largest of ``past`` (log norms) from the next one; 0 with too few."""
    if len(past) <= highest:
        return 0.0
    top = np.partition(past, -highest - 1)[-highest - 1 :]
    return float(np.mean(top[1:] - top[0]))


def _oldest(row: int) -> int:
    """First row of the record of ``row``."""
    return max(min(SETTLING_ROWS, row // 3), row - MEMORY_BLOCKS * BLOCK)


def _level_and_scale(norms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As ``baseline_of``, without its floor: the share of the whole norm takes its place."""
    enough = np.isfinite(norms).sum(axis=0) >= max(LEAST_BASELINE_ROWS, 0.75 * len(norms))
    level, scale = np.full(norms.shape[1], np.nan), np.full(norms.shape[1], np.nan)
    if enough.any():
        level[enough] = np.nanmedian(norms[:, enough], axis=0)
        scale[enough] = MAD_TO_SD * np.nanmedian(np.abs(norms[:, enough] - level[enough]), axis=0)
    return level, np.maximum(scale, LAYER_SCALE_FLOOR), enough


def _block_extremes(matrix: LayerMatrix, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(lowest, highest), each float32[B, L], of the usable norms per block of rows; NaN where a block has none."""
    lowest, highest = [], []
    for start in range(0, len(matrix.step), 64 * block):  # in portions, so that the copy stays small
        value = matrix.value[start : start + 64 * block]
        usable = matrix.present[start : start + 64 * block] & np.isfinite(value) & (value > 0)
        norms = np.where(usable, value, np.float32(np.nan))
        edges = np.arange(0, len(norms), block)
        lowest.append(np.fmin.reduceat(norms, edges, axis=0))
        highest.append(np.fmax.reduceat(norms, edges, axis=0))
    return np.concatenate(lowest), np.concatenate(highest)


def _together(jumps: list[LayerJump], gap: int = 20) -> list[LayerJump]:
    """Jumps at most ``gap`` steps apart become one event, named after the first of them."""
    merged: list[LayerJump] = []
    for jump in jumps:
        last = merged[-1] if merged else None
        if last is not None and jump.step - last.last_step <= gap:
            merged[-1] = replace(last, last_step=jump.step)
        else:
            merged.append(jump)
    return merged


def nonfinite_steps(matrix: LayerMatrix | None, known: np.ndarray) -> np.ndarray:
    """int64[N]: steps at which any measured layer is non-finite.

    Args:
        known: int64[M], increasing: other steps with a non-finite gradient. An interval of a thinned run that has one
            of them, or a step of its own rows, says nothing new; any other stands for itself by its last step.
    """
    if matrix is None:
        return np.zeros(0, np.int64)
    rows = nonfinite_rows(np.where(matrix.present, matrix.value, 0.0))
    step, since = matrix.step[rows], matrix.begins[rows]
    sure = step[since == step]
    known = np.union1d(known, sure)
    explained = np.searchsorted(known, since) < np.searchsorted(known, step, side="right")
    return np.union1d(sure, step[~explained])
