"""Each rank's lines in a log of its own, where a launcher of several hosts asks for it. Standard library only."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

LOGS_VARIABLE = "GRADIOMETER_RANK_LOGS"
"""An attempt folder; see ``trainer.launch.local``."""


def print_into(attempt: Path | None = None) -> None:
    """Send stdout and stderr of this process to the log of its rank in the attempt folder from now on.

    Nothing happens unless the launcher asked for logs by rank, and none of it may stop a training: a log that cannot
    be opened leaves the output where it went.

    Args:
        attempt: None for the folder that the launcher named, which is the newest there was when it began.
    """
    named = os.environ.get(LOGS_VARIABLE)
    if not named:
        return
    folder = (attempt or Path(named)) / f"rank-{int(os.environ.get('RANK', '0')):05d}"
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log, stream.fileno())
        os.close(log)
