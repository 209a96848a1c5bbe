"""How long the training's thread was ready to run and had to wait for a processor.

Steps on a host that others use take longer although the training does nothing else than before. The kernel counts that
time for each thread (``/proc/.../schedstat``, its second number, in nanoseconds), so that it can be told exactly from a
step that became longer by itself. One read costs some 2 us. Threads that torch computes on are not counted: the
training's thread waits for them as if it were computing.
"""

from __future__ import annotations

import os
import threading

_READ = 128


class ProcessorWait:
    """The waiting time of the thread that asks, from one question to the next."""

    def __init__(self) -> None:
        self._file = -1
        self._thread = -1
        self._known = 0

    def taken_s(self) -> float | None:
        """Seconds since the last question; None at the first one of a thread, and where the kernel does not say."""
        thread = threading.get_native_id()
        if thread != self._thread:
            self._open(thread)
            return None
        if self._file < 0:
            return None
        before, self._known = self._known, self._count()
        return max(0, self._known - before) * 1e-9

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _open(self, thread: int) -> None:
        self.close()
        self._thread = thread
        try:
            self._file = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            self._known = self._count()
        except (OSError, ValueError, IndexError):  # not Linux, or a kernel without these counts
            self.close()

    def _count(self) -> int:
        return int(os.pread(self._file, _READ, 0).split()[1])
