"""Compaction that nobody asked for: a long run that has ended is merged once it is looked at, in a process of its own.

It yields to everything else on the machine, keeps the segments, and leaves alone whatever is live, damaged, not ours,
too large for the memory or for the disk. ``GRADIOMETER_COMPACT=0`` turns it off; ``gradiometer compact`` is the same by
hand.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

from app.data import READERS, is_sample
from monitor.errors import RunError
from monitor.runfile.compact import unmerged_bytes
from monitor.runfile.reader import Run

ROOT = Path(__file__).resolve().parents[1]
LEAST_BYTES = 32 << 20
"""A smaller run opens within a tenth of a second as it is."""
MEMORY_SHARE = 0.25
"""Compaction holds the columns of a run in memory; of what is free it may take this much (our judgement)."""
MOST_RANKS = 32
"""Ranks of all attempts together. A mapped file keeps a descriptor, and a process has a thousand by default."""
DISK_FACTOR = 4
"""Free space on the disk, in sizes of what is merged, below which nothing is written that need not be."""


def worth_it(run: Run) -> bool:
    """Whether the run has ended, would open noticeably faster, and can be compacted without harm."""
    if os.environ.get("GRADIOMETER_COMPACT") == "0" or not run.state.ended or run.problems or is_sample(run.path):
        return False
    if sum(len(run.ranks(attempt.number)) for attempt in run.attempts) > MOST_RANKS:
        return False
    size = unmerged_bytes(run)
    if size < LEAST_BYTES or size > MEMORY_SHARE * psutil.virtual_memory().available:
        return False
    try:
        ours = run.path.stat().st_uid == os.geteuid() and os.access(run.path, os.W_OK)
        return ours and shutil.disk_usage(run.path).free > DISK_FACTOR * size
    except OSError:
        return False


class Tidy:
    """Compacts one run at a time, each at most once as it stands.

    Args:
        done: called with the path of a run that has been compacted.
    """

    def __init__(self, done: Callable[[Path], None]) -> None:
        self._done = done
        self._lock = threading.Lock()
        self._seen: set[tuple[Path, int]] = set()
        self._thread: threading.Thread | None = None

    def consider(self, run: Run) -> None:
        """Begin to compact ``run`` if that is worth it; returns at once. The caller holds the run still."""
        if not run.state.ended:
            return
        key = (run.path, len(run.attempts))
        with self._lock:
            if key in self._seen or (self._thread is not None and self._thread.is_alive()):
                return
            self._seen.add(key)
            if not worth_it(run):
                return
            self._thread = threading.Thread(target=self._compact, args=(run.path,), name="compaction", daemon=True)
            self._thread.start()

    def join(self, timeout: float) -> bool:
        """Wait for what is at work; False when it takes longer."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _compact(self, path: Path) -> None:
        # No pipe: when the app ends, the work goes on to its end, and an unfinished file counts for nothing.
        with contextlib.suppress(OSError):
            finished = subprocess.run(
                [sys.executable, "-P", "-m", "app.tidy", str(path)],
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                check=False,
                start_new_session=True,
            )
            if finished.returncode == 0:
                self._done(path)


TIDY = Tidy(READERS.forget)
"""Shared by all pages."""


def yield_to_everything() -> None:
    """Run only when no other process wants the processor."""
    os.nice(19)
    # Where Linux shares the processor out by session first, a session of one's own would have a whole share of it.
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text("19", encoding="ascii")
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main(path: str) -> int:
    """Compact the run at ``path`` and keep its segments; 1 when that cannot be done, which is no news to anybody."""
    from monitor.runfile.compact import compact_run

    yield_to_everything()
    try:
        compact_run(path)
    except RunError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
