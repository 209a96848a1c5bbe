"""A detector over a series that grows: rows that are as they were are not looked at again.

A detector takes one row after the other and never looks back, so what it said of the first rows stands as long as
these rows stand. They are compared, not assumed: where anything about an earlier row has changed, it begins anew. A
diagnosis of a live run is spared most of its time by that, and no answer is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

D = TypeVar("D")
CHUNK = 1 << 14
"""Rows that are turned into Python's numbers at once."""


class Continued(Generic[D]):
    """What one detector has been given and has said so far."""

    def __init__(self) -> None:
        self._given = np.empty((0, 0))
        self._said = np.empty((0, 2))
        self._detector: D | None = None

    def over(
        self,
        make: Callable[[], D],
        push: Callable[[D, list[float]], tuple[float, float]],
        *columns: np.ndarray,
    ) -> tuple[np.ndarray, D]:
        """What the detector says of each row of ``columns``, float64[T] each, and the detector after the last.

        Args:
            make: gives a detector that has seen nothing.
            push: gives it the next row.

        Returns:
            float64[T, 2], one pair a row, which is nobody's to write to, and the detector.
        """
        given = np.column_stack(columns).astype(np.float64, copy=False)
        seen = len(self._given)
        detector = self._detector
        if detector is None or not np.array_equal(self._given, given[:seen], equal_nan=True):
            detector, seen = make(), 0
        self._detector = None  # an error in the middle leaves it neither here nor there
        said = np.empty((len(given), 2))
        said[:seen] = self._said[:seen]
        for start in range(seen, len(given), CHUNK):
            rows = given[start : start + CHUNK].tolist()  # as objects a row is ten times as large
            said[start : start + CHUNK] = [push(detector, row) for row in rows]
        self._said = said
        self._given, self._detector = given, detector
        return self._said, detector
