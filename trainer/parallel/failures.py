"""Why a group of processes failed: the earliest error of any of them, not the broken connections that follow it.

Each process that fails leaves a record beside its measurements. One whose peer has gone looks at the records of the
others: the first that is no broken connection itself is the cause; without one, a process that left no record was
killed, or hangs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from monitor.errors import RunError
from monitor.runfile.format import exclusive_write_json, rank_dir
from trainer.parallel.group import Parallel

FILE = "failure.json"
WAIT_S = 3.0
"""How long a process that lost its peers waits for their records: they fail within milliseconds of each other, and the
agent gives them half a minute to leave (our judgement)."""
LONGEST_RECORD = 1 << 16
_BROKEN = (
    "Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe", "Timed out waiting",
    "Application timeout", "Socket Timeout", "remote process has exited", "NCCL communicator was aborted",
)  # fmt: skip
"""How gloo and NCCL say that another process does not answer."""


@contextmanager
def named_failures(run_dir: Path, attempt: int, parallel: Parallel) -> Iterator[None]:
    """Leave a record when this process fails; raise the group's cause in place of a broken connection.

    Raises:
        RunError: another process failed, was killed or hangs; the message names it.
    """
    try:
        yield
    except Exception as error:
        if parallel.world_size == 1:
            raise
        broken = any(words in str(error) for words in _BROKEN)
        with suppress(OSError, RunError):  # a full disk must not hide the error itself
            own = {"time": time.time(), "error": f"{type(error).__name__}: {error}"[:2000], "broken": broken}
            exclusive_write_json(rank_dir(run_dir, attempt, parallel.rank) / FILE, own)
        if not broken:
            raise
        raise RunError(_cause(run_dir, attempt, parallel, error)) from error


def _cause(run_dir: Path, attempt: int, parallel: Parallel, error: Exception) -> str:
    until = time.monotonic() + WAIT_S
    while True:
        records = {rank: _read(rank_dir(run_dir, attempt, rank) / FILE) for rank in range(parallel.world_size)}
        causes = {rank: record for rank, record in records.items() if record and not record.get("broken")}
        if causes:
            first = min(causes, key=lambda rank: causes[rank].get("time", 0.0))
            return f"process {first} failed first: {causes[first].get('error')}"
        silent = [rank for rank, record in records.items() if not record]
        if not silent or time.monotonic() > until:
            break
        time.sleep(0.05)
    seen = f"Process {parallel.rank} saw: {' '.join(str(error).split())[:200]}"
    if not silent:
        return f"the connection between the processes broke and none of them failed by itself. {seen}"
    which = f"process {silent[0]}" if len(silent) == 1 else f"processes {', '.join(map(str, silent))}"
    how = "does not answer: it hangs" if "Timed out" in str(error) else "ended without a word: killed (out of memory?)"
    return f"{which} of {parallel.world_size} {how}, or its host is gone. {seen}"


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            record = json.loads(file.read(LONGEST_RECORD))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
