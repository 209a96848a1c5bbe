"""The one boundary that keeps an error of the monitor out of the training loop."""

from __future__ import annotations

import os
import warnings
from types import TracebackType

from monitor.errors import MonitorWarning

STRICT = os.environ.get("GRADIOMETER_STRICT") == "1"
"""Raise instead of warning. On in our own tests, through the environment so that child processes inherit it."""

_reported: set[str] = set()


class contained:
    """Turn an error inside the block into one warning per ``part`` and process.

    KeyboardInterrupt and SystemExit pass through. Never put a collective operation in the block: one rank leaving
    early would hang the others.

    A class and not a generator, because it is entered several times in every training step.
    """

    __slots__ = ("_part",)

    def __init__(self, part: str) -> None:
        self._part = part

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or STRICT:
            return False
        report(self._part, error)
        return True


def report(part: str, error: BaseException) -> None:
    """Warn once per ``part`` that it is no longer recorded because of ``error``."""
    if part in _reported:
        return
    _reported.add(part)
    warnings.warn(
        f"{part} is no longer recorded: {type(error).__name__}: {error}. The training goes on.",
        MonitorWarning,
        stacklevel=3,
    )


def forget_reports() -> None:
    """Let every part warn again; for a new attempt in the same process, and for tests."""
    _reported.clear()
