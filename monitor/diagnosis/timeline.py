"""Who moved, and when: every signal that left its own baseline around an incident, in order.

Unlike the rules this asks "what else happened?" once something is known to have happened, so it needs less evidence
and raises no alarm by itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from monitor.diagnosis.context import span
from monitor.diagnosis.primitives import MAD_TO_SD
from monitor.diagnosis.view import Signals
from monitor.signals import CATALOGUE, LAYER_CATALOGUE, MODULE_CATALOGUE, TIME_PARTS

BASELINE_ROWS = 96
LEAST_ROWS = 8
BEFORE_STEPS = 20
"""Steps before the onset from which on a departure belongs to the incident."""
AFTER_STEPS = 50
"""Steps after the onset; what moves later is a consequence."""
Z = 6.0
"""Robust standard deviations from the baseline's trend, in two measurements running; 9 in one."""
Z_SINGLE = 9.0
LEAST_CHANGE = math.log(1.1)
"""Smallest change that counts, in log units; of a signal that is not positive, relative to its magnitude."""
SCALE_FLOOR = 0.03
MOST_LAYERS = 3
"""Layers told of each per-layer statistic, the first and strongest."""
MOST = 40

BOOKKEEPING = {
    "tokens", "batch_id", "input_hash", "skipped_steps", "parameter_checksum", "clip_max_norm", "log_classes",
    "clip_coef", "lr", "grad_cosine", "update_cosine", *TIME_PARTS,
}  # fmt: skip
"""Signals that count or name, follow another one, or jitter by nature. The learning rate is looked at on its own."""
FALL_TOO = {
    "loss_scale", "tokens_per_s", "weight_norm", "update_norm", "update_to_weight_ratio",
    "attention_entropy_min", "attention_entropy_mean", "input_mean", "input_std",
    "input_unique_share", "activation_mean", "activation_rms", "gpu_util_pct", "log_z_mean", "grad_norm_preclip",
}  # fmt: skip
"""Catalogue signals of which a fall is told as well as a rise; of a loss or a duration it is good news."""


SIGNED = {"activation_mean", "input_mean", "log_z_mean"}
"""Signals that may have either sign in health, so that a ratio of theirs means nothing."""


@dataclass(frozen=True, slots=True)
class Departure:
    """One signal that left its own baseline."""

    signal: str
    step: int
    """First step outside the baseline."""
    layer: str | None
    """Parameter or module, for a per-layer statistic."""
    before: float
    """The value expected there."""
    value: float
    """The furthest value within the incident; NaN or infinite when it became so."""
    z: float
    """Robust standard deviations at the furthest value; infinite for a non-finite one."""
    z_first: float
    """The same at ``step``."""


def departures(signals: Signals, onset: int, last: int) -> tuple[Departure, ...]:
    """Every signal that left its baseline between 20 steps before ``onset`` and ``last`` (50 steps after at most).

    Earliest first, of the same step the one first that was strongest in that step: in the end all may be non-finite. At
    most 40. A signal with fewer than eight measurements
    before is not judged.
    """
    start = onset - span(signals, BEFORE_STEPS)
    stop = min(max(last, onset), onset + span(signals, AFTER_STEPS))
    found = [*_of_lr(signals, start, stop), *_of_scalars(signals, start, stop), *_of_matrices(signals, start, stop)]
    found.sort(key=lambda d: (d.step, -d.z_first, -d.z, d.signal, d.layer or ""))
    return tuple(found[:MOST])


def _of_lr(signals: Signals, start: int, stop: int) -> Iterator[Departure]:
    """The first change of the learning rate by more than twofold from one row to the next; schedules move smoothly."""
    lr = signals["lr"].between(start - 1, stop)
    before, after = lr.value[:-1], lr.value[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.abs(np.log2(after / before))
    rows = np.flatnonzero(ratio > 1)
    if len(rows):
        row = int(rows[0])
        yield Departure("lr", int(lr.step[row + 1]), None, float(before[row]), float(after[row]), math.inf, math.inf)


def _of_scalars(signals: Signals, start: int, stop: int) -> Iterator[Departure]:
    for name in signals.names:
        spec = CATALOGUE.get(name.split("/", 1)[0])
        if name.split("/", 1)[0] in BOOKKEEPING or (spec is not None and spec.stream == "landscape"):
            continue
        series = signals[name]
        rows = _Rows.cut(series.step, start, stop)
        if rows is None:
            continue
        value = _measured(series.value[rows.begin : rows.stop])[:, None]
        crossing = _crossing(value, rows.split - rows.begin, spec is None or name in FALL_TOO, name in SIGNED)
        if crossing.row[0] >= 0:
            yield _departure(crossing, 0, name, None, series.step[rows.begin :], series.value[rows.begin :])


def _of_matrices(signals: Signals, start: int, stop: int) -> Iterator[Departure]:
    pairs = [(stat, signals.layers(stat)) for stat in LAYER_CATALOGUE if stat not in BOOKKEEPING]
    pairs += [(stat, signals.modules(stat)) for stat in MODULE_CATALOGUE]
    for stat, matrix in pairs:
        rows = _Rows.cut(matrix.step, start, stop) if matrix is not None else None
        if matrix is None or rows is None:
            continue
        part = slice(rows.begin, rows.stop)
        value = _measured(matrix.value[part], matrix.present[part])
        crossing = _crossing(value, rows.split - rows.begin, stat in FALL_TOO, stat in SIGNED)
        moved = np.flatnonzero(crossing.row >= 0)
        order = moved[np.lexsort((-crossing.z[moved], -crossing.z_first[moved], crossing.row[moved]))]
        for column in order[:MOST_LAYERS].tolist():
            name, values = matrix.names[column], matrix.value[part, column]
            yield _departure(crossing, column, stat, name, matrix.step[part], values)


def _departure(
    crossing: _Crossing, column: int, signal: str, layer: str | None, step: np.ndarray, value: np.ndarray
) -> Departure:
    return Departure(
        signal=signal,
        step=int(step[crossing.row[column]]),
        layer=layer,
        before=float(crossing.expected[column]),
        value=float(value[crossing.furthest[column]]),
        z=float(crossing.z[column]),
        z_first=float(crossing.z_first[column]),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows [begin, split) are the baseline and [split, stop) the incident."""

    begin: int
    split: int
    stop: int

    @classmethod
    def cut(cls, step: np.ndarray, start: int, stop: int) -> _Rows | None:
        split = int(np.searchsorted(step, start))
        end = int(np.searchsorted(step, stop, side="right"))
        if split < LEAST_ROWS or end <= split:
            return None
        return cls(max(0, split - BASELINE_ROWS), split, end)


def _measured(value: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
    """float64: an absent value is NaN and a measured NaN infinite, so that the two are told apart."""
    measured = np.where(np.isnan(value), np.inf, value.astype(np.float64))
    return measured if present is None else np.where(present, measured, np.nan)


@dataclass(frozen=True, slots=True)
class _Crossing:
    """For each of L columns: row of the first departure (-1: none), what was expected, the furthest row, z there and at
    the first one."""

    row: np.ndarray
    expected: np.ndarray
    furthest: np.ndarray
    z: np.ndarray
    z_first: np.ndarray


def _crossing(value: np.ndarray, split: int, falls: bool, signed: bool) -> _Crossing:
    """Where each column of float64[R, L] leaves the level and trend of its first ``split`` rows.

    In logarithms where those are all positive, else relative to their typical magnitude. What is expected is the line
    through four block medians, or the median of the last 16 rows where that is further out: a curve that flattens
    leaves its own trend and nothing has happened.
    """
    logarithmic, unit, x = _scaled(value, split, signed)
    base = np.where(np.isfinite(x[:split]), x[:split], np.nan)
    enough = np.isfinite(base).sum(axis=0) >= LEAST_ROWS
    base = np.where(enough, base, 0.0)
    slope = _slope(base)
    rows = np.arange(len(x))[:, None]
    level = np.nanmedian(base - slope * rows[:split], axis=0)
    scale = MAD_TO_SD * np.nanmedian(np.abs(base - slope * rows[:split] - level), axis=0)
    trend, recent = level + slope * rows[split:], np.nanmedian(base, axis=0) if split < 16 else _recent(base)
    up, down = x[split:] - np.maximum(trend, recent), np.minimum(trend, recent) - x[split:]
    away = np.where(enough, np.maximum(up, down) if falls else np.where(np.isneginf(x[split:]), -np.inf, up), -np.inf)
    away = np.where(np.isnan(away), -np.inf, away)
    z = away / np.maximum(scale, SCALE_FLOOR)
    above = (z > Z) & (away > LEAST_CHANGE)
    sure = above & ((z > Z_SINGLE) | np.vstack([above[1:], np.zeros((1, above.shape[1]), bool)]))
    found = sure.any(axis=0)
    first = np.where(found, sure.argmax(axis=0), -1)
    later = np.where(np.arange(len(z))[:, None] >= first, z, -np.inf)
    columns = np.arange(z.shape[1])
    far = later.argmax(axis=0)
    begin = np.maximum(first, 0)
    expected = np.maximum(trend, recent)[begin, columns]
    expected = np.where(logarithmic, np.exp(np.minimum(expected, 700.0)), expected * unit)
    return _Crossing(np.where(found, first + split, -1), expected, far + split, later[far, columns], z[begin, columns])


def _scaled(value: np.ndarray, split: int, signed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logarithmic bool[L], unit float64[L], x float64[R, L]): logarithms, or values in units of their magnitude."""
    base = np.where(np.isfinite(value[:split]), value[:split], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without any value
        logarithmic = np.nanmin(base, axis=0) > (np.inf if signed else 0)
        unit = np.nanmedian(np.abs(base), axis=0)
        unit = np.where(np.isfinite(unit) & (unit > 0), unit, 1.0)
        return logarithmic, unit, np.where(logarithmic, np.log(np.maximum(value, 0.0)), value / unit)


def _slope(base: np.ndarray) -> np.ndarray:
    """float64[L] per row: median of the pairwise slopes of four block medians, Theil and Sen's on blocks."""
    blocks = np.array_split(np.arange(len(base)), 4)
    medians = np.stack([np.nanmedian(base[block], axis=0) for block in blocks])
    centres = np.array([block.mean() for block in blocks])
    pairs = [(medians[b] - medians[a]) / (centres[b] - centres[a]) for a, b in combinations(range(4), 2)]
    slope = np.nanmedian(np.stack(pairs), axis=0)
    return np.where(np.isfinite(slope), slope, 0.0)


def _recent(base: np.ndarray) -> np.ndarray:
    recent = np.nanmedian(base[-16:], axis=0)
    return np.where(np.isfinite(recent), recent, np.nanmedian(base, axis=0))
