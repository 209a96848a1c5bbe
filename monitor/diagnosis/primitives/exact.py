"""Primitive E: exact checks on single values."""

from __future__ import annotations

import math

import numpy as np


def nonfinite_rows(value: np.ndarray) -> np.ndarray:
    """int64[N]: rows at which ``value`` (float[T] or float[T, L]) holds a NaN or an infinity. Zero tolerance."""
    bad = ~np.isfinite(value)
    return np.flatnonzero(bad if bad.ndim == 1 else bad.any(axis=1))


def word_for(value: float) -> str:
    """``NaN``, ``+Inf`` or ``-Inf``, for a sentence."""
    if math.isnan(value):
        return "NaN"
    return "+Inf" if value > 0 else "-Inf"


def episodes(rows: np.ndarray, gap: int) -> list[tuple[int, int]]:
    """(first, last) of each group of ascending ``rows`` whose neighbours are at most ``gap`` apart."""
    if len(rows) == 0:
        return []
    cuts = np.flatnonzero(np.diff(rows) > gap)
    starts = np.concatenate([[0], cuts + 1])
    stops = np.concatenate([cuts, [len(rows) - 1]])
    return [(int(rows[a]), int(rows[b])) for a, b in zip(starts, stops, strict=True)]
