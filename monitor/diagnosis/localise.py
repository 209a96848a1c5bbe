"""Which layer moved first: per-layer robust z of the gradient norm around an event, or the first non-finite layers."""

from __future__ import annotations

from dataclasses import dataclass

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
        return Moved(None, None, 0.0, 1.0, 0, int(usable.sum()), 1.0, "no layer left its own baseline")
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
    start, stop = np.searchsorted(matrix.step, [first_step, last_step + 1])
    bad = ~np.isfinite(matrix.value[start:stop]) & matrix.present[start:stop]
    rows = np.flatnonzero(bad.any(axis=1))
    if len(rows) == 0:
        return None
    row = int(rows[0])
    present = matrix.present[start + row]
    names = np.array(matrix.names, dtype=object)
    hit, clean = names[bad[row]], names[present & ~bad[row]]
    step = int(matrix.step[start + row])
    if len(clean) == 0 and len(hit) > 1:
        reason = "every layer became non-finite in the same step, so gradients cannot tell where it began"
        return NonfiniteLayers(step, None, tuple(hit), (), reason)
    reason = (
        f"{len(hit)} of {len(hit) + len(clean)} layers are non-finite; the backward pass reaches this one first"
        if len(hit) > 1
        else "it alone is non-finite in that step"
    )
    return NonfiniteLayers(step, str(hit[-1]), tuple(hit), tuple(clean), reason)


# ------------------------------------------------------------------------------------- one layer on its own, whole run


@dataclass(frozen=True, slots=True)
class LayerJump:
    """One layer that jumped while the others did not."""

    step: int
    last_step: int
    layer: str
    ratio: float
    z: float


def lone_jumps(
    matrix: LayerMatrix | None, *, z: float = 12.0, ratio: float = 20.0, others: float = 2.0, block: int = 32
) -> list[LayerJump]:
    """Steps at which one layer's norm jumps by ``ratio`` while the median layer rises less than ``others``.

    The global norm does not show it when the layer is small. The baseline of a row is the block of ``block`` rows
    before the row's own block: it looks only backwards, and a block in which no layer exceeds ``ratio`` times its
    minimum of the block before needs no closer look, which keeps the scan of 100 000 x 200 norms below a second.
    A layer must also stand above three times the highest minimum of its earlier blocks, which is about twice its
    highest level so far, so that one whose gradient has nearly vanished is not alarmed by its return.
    """
    if matrix is None or len(matrix.step) < 2 * block:
        return []
    lowest, highest = _block_extremes(matrix, block)
    with np.errstate(invalid="ignore", over="ignore"):
        once = np.float32(3) * np.fmax.accumulate(lowest, axis=0)
        suspicious = (highest[1:] > ratio * lowest[:-1]) & (highest[1:] > once[:-1])
    found: list[LayerJump] = []
    for index in np.flatnonzero(suspicious.any(axis=1)) + 1:
        found.extend(_jumps_in(matrix, int(index) * block, block, np.log(once[index - 1]), z, ratio, others))
    return _together(found)


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


def _jumps_in(
    matrix: LayerMatrix, start: int, block: int, once: np.ndarray, z: float, ratio: float, others: float
) -> list[LayerJump]:
    level, scale, usable = baseline_of(log_norms(matrix, start - block, start))
    norms = log_norms(matrix, start, start + block)
    rise = norms - level
    high = usable & (rise > np.log(ratio)) & (rise / scale > z) & (norms > once)
    jumps = []
    for row in np.flatnonzero(high.any(axis=1)):
        if np.nanmedian(rise[row][usable]) > np.log(others):
            continue
        layer = int(np.argmax(np.where(high[row], rise[row], -np.inf)))
        step = int(matrix.step[start + row])
        ratio_here = float(np.exp(rise[row, layer]))
        jumps.append(LayerJump(step, step, matrix.names[layer], ratio_here, float(rise[row, layer] / scale[layer])))
    return jumps


def _together(jumps: list[LayerJump], gap: int = 20) -> list[LayerJump]:
    """Jumps of the same layer at most ``gap`` steps apart become one."""
    merged: list[LayerJump] = []
    for jump in jumps:
        last = merged[-1] if merged else None
        if last is not None and last.layer == jump.layer and jump.step - last.last_step <= gap:
            merged[-1] = LayerJump(last.step, jump.step, last.layer, max(last.ratio, jump.ratio), max(last.z, jump.z))
        else:
            merged.append(jump)
    return merged


def has_nonfinite(matrix: LayerMatrix | None) -> np.ndarray:
    """int64[N]: steps at which any measured layer is non-finite."""
    if matrix is None:
        return np.zeros(0, np.int64)
    return matrix.step[nonfinite_rows(np.where(matrix.present, matrix.value, 0.0))]
