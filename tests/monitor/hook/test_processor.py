"""Waiting for a processor: against the kernel's own file, with a process that takes the processor away."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from monitor.hook.processor import ProcessorWait

COUNTS = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
COMPETITOR = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\nwhile True: pass"


def test_a_thread_that_shares_its_processor_waits_for_as_long_as_the_kernel_says() -> None:
    if not COUNTS.exists():
        pytest.skip("this kernel does not count it")
    allowed = os.sched_getaffinity(0)
    one = min(allowed)
    wait = ProcessorWait()
    assert wait.taken_s() is None
    with subprocess.Popen([sys.executable, "-c", COMPETITOR, str(one)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "\n"
            os.sched_setaffinity(0, {one})
            wait.taken_s()
            before, until = int(COUNTS.read_text().split()[1]), time.thread_time() + 0.2
            while time.thread_time() < until:
                pass
            after = int(COUNTS.read_text().split()[1])
            first, second = wait.taken_s(), wait.taken_s()
        finally:
            os.sched_setaffinity(0, allowed)
            other.kill()
    assert first is not None and second is not None
    assert first + second >= (after - before) * 1e-9 > 0.05, "two that never sleep share a processor"
    assert second < first
    wait.close()
    assert wait.taken_s() is None


def test_another_thread_is_counted_by_itself() -> None:
    wait = ProcessorWait()
    wait.taken_s()
    answers: list[float | None] = []
    other = threading.Thread(target=lambda: answers.extend([wait.taken_s(), wait.taken_s()]))
    other.start()
    other.join()
    assert answers[0] is None
    assert wait.taken_s() is None
    wait.close()
