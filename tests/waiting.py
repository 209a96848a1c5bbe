"""Waiting in tests for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 240.0
"""A bound on waiting, not an expectation: the machine may be busy."""


def until(look: Callable[[], T], what: str, *, every_s: float = 0.02, patience_s: float = PATIENCE_S) -> T:
    """The first true result of ``look``.

    Raises:
        AssertionError: there was none in time; it says ``what`` was waited for.
    """
    deadline = time.monotonic() + patience_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"waited {patience_s:g} s in vain for: {what}"
        time.sleep(every_s)
    return seen
