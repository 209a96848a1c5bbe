"""The monitor's one thread: takes rows that have been open for long, samples the machine, says that the loop lives.

It wakes four times a second for some ten microseconds. Nothing heavier belongs here: a Python thread that holds the
interpreter for a millisecond takes that millisecond from the training.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from monitor.guard import contained
from monitor.hook.findings import Findings
from monitor.hook.rows import Rows
from monitor.hook.system import SystemSampler
from monitor.runfile.control import Inbox

WAKE_S = 0.25
SYSTEM_S = 2.0
SYSTEM_AT_FIRST_S = 0.5
"""For the first ``AT_FIRST_S``: a leak that a short trial would show is seen before the long training begins."""
AT_FIRST_S = 60.0
BEAT_S = 0.5
LOOK_S = 1.0
"""Between two looks for requests: one listing of a small folder, which over a network file system is a round trip."""
FLUSH_S = 1.0 - WAKE_S
"""Between two writes of the writer. Rows are in its hands after ``WAKE_S`` at most, and on disk after a second."""


class Background:
    """Runs until ``stop``; a daemon, so that it never keeps a process alive."""

    def __init__(
        self,
        rows: Rows,
        sampler: SystemSampler,
        beat: Callable[[], None],
        findings: Findings | None = None,
        inbox: Inbox | None = None,
    ) -> None:
        self._rows = rows
        self._sampler = sampler
        self._beat = beat
        self._findings = findings
        self._inbox = inbox
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gradiometer-monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        began = next_sample = next_beat = next_look = time.monotonic()
        while not self._stop.wait(WAKE_S):
            now = time.monotonic()
            self._rows.tend()
            if self._findings is not None:
                with contained("findings while training"):
                    self._findings.tend()
            if now >= next_beat:
                self._beat()
                next_beat = now + BEAT_S
            if self._inbox is not None and now >= next_look:
                with contained("requests to the training"):
                    self._inbox.look()
                next_look = now + LOOK_S
            if now >= next_sample:
                with contained("samples of the machine"):
                    self._sampler.sample()
                next_sample = now + (SYSTEM_AT_FIRST_S if now - began < AT_FIRST_S else SYSTEM_S)
        if self._findings is not None:
            with contained("findings while training"):
                self._findings.close()
        with contained("samples of the machine"):
            self._sampler.close()
