"""A row on its way from the training thread to the disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Row:
    """What the training thread queues. ``values`` is as the stream's batch builder wants it."""

    step: int | None
    time: float
    values: Any
    layout: Any = None
    """layers, modules: the (names, shapes) in force."""
    stands_for: int = 1
    """Queued rows that are dealt with when this one is on disk: itself and those that were left out before it."""


@dataclass(frozen=True, slots=True)
class KeepDense:
    """In a row's place in the queue: what came shortly before it and what comes up to ``until`` is written in full."""

    until: int
