"""Events that are found out about a run later, such as by a replay: a file each, beside what the run itself wrote.

The streams of an attempt have one writer each, which may still be writing or is long gone; so what anybody adds
afterwards never touches them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.runfile import format as fmt
from monitor.runfile.records import Event

MOST_FILES = 1000
MOST_BYTES = 1 << 16
"""Of one file."""
NOT_FIELDS = ("step", "time", "kind", "attempt")


def add_afterwards(
    run_dir: Path, kind: str, *, step: int, attempt: int, now: Callable[[], float] = time.time, **fields: Any
) -> Path:
    """Add an event about ``step`` as ``attempt`` made it, whether the run goes on or has ended; gives back its file.

    Raises:
        RunError: it cannot be written, or the run has as many as are read.
    """
    folder = run_dir / fmt.AFTERWARDS_DIR
    record = {"step": step, "time": now(), "kind": kind, "attempt": attempt, **fields}
    try:
        folder.mkdir(exist_ok=True)
        if not fmt.is_real_folder(run_dir, folder):
            raise RunError(f"{folder} is a symbolic link, which is not followed; nothing was written.")
        for number in range(MOST_FILES):
            with suppress(FileExistsError):  # somebody else was first
                fmt.exclusive_write_json(_file(folder, number), record)
                return _file(folder, number)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}.") from None
    raise RunError(f"{folder} holds {MOST_FILES} events already; delete it if they no longer matter.")


class Afterwards:
    """The events of a run's folder ``afterwards``, as far as they have been read."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._read = 0
        self.events: list[Event] = []

    def refresh(self, complain: Callable[[str], None]) -> bool:
        """Read the files that are new; True if there were any."""
        folder, before = self._run_dir / fmt.AFTERWARDS_DIR, self._read
        while self._read < MOST_FILES and (path := _file(folder, self._read)).exists():
            self._read += 1
            try:
                if not fmt.is_real_folder(self._run_dir, folder):
                    raise RunError(f"{folder}: a symbolic link, which is not followed.")
                self.events.append(_event(fmt.load_json(path, MOST_BYTES), path))
            except RunError as error:
                complain(str(error))
        return self._read > before


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _event(record: dict[str, Any], path: Path) -> Event:
    moment, step, attempt = fmt.as_number(record.get("time")), record.get("step"), record.get("attempt")
    whole = all(type(number) is int and 0 <= number < fmt.MAX_STEP for number in (step, attempt))
    if moment is None or not whole or not isinstance(record.get("kind"), str):
        raise RunError(f"{path}: an event without time, kind, step or attempt; left out.")
    fields = {key: value for key, value in record.items() if key not in NOT_FIELDS}
    return Event(record["step"], moment, record["kind"], fields, record["attempt"], 0)
