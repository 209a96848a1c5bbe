"""Findings while the training goes on: a process beside it asks the rules, and here its answers arrive.

The process is started when the training has run for a while, so that one which is over in seconds costs nothing. It is
read from the monitor's thread, without waiting.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

START_AFTER_S = 5.0
"""Of training, before the process is started: it takes a second of a processor. Our judgement."""
MOST_LINE_BYTES = 1 << 18
ROOT = Path(__file__).resolve().parents[2]

Told = Mapping[str, Any]
"""A finding as ``monitor.diagnosis.follow.said`` gives it."""


class Findings:
    """The process beside the training, and what it says. All of it in one thread, but ``close``.

    Args:
        run_dir: the run that is being written.
        since: step that the attempt goes on from; what was found up to there is no news.
        take: called with each finding that is new or worse than before.
        problem: called with a sentence when there will be no more.
    """

    def __init__(self, run_dir: Path, since: int, take: Callable[[Told], None], problem: Callable[[str], None]) -> None:
        self._run_dir, self._since, self._take, self._problem = run_dir, since, take, problem
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False
        self._start_at = time.monotonic() + START_AFTER_S
        self._rest = b""

    def tend(self) -> None:
        """Start the process when it is time, and take what it has said since the last call."""
        if self._over:
            return
        if self._process is None:
            if time.monotonic() >= self._start_at:
                self._process = self._start()
            return
        assert self._process.stdout is not None
        try:
            while piece := os.read(self._process.stdout.fileno(), 1 << 16):
                *lines, self._rest = (self._rest + piece).split(b"\n")
                for line in lines:
                    self._line(line)
                if len(self._rest) > MOST_LINE_BYTES:
                    self._rest = b""
        except BlockingIOError:
            return
        self._over = True  # the end of what it says

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._over = True
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "monitor.diagnosis.follow", str(self._run_dir), str(self._since)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def _line(self, line: bytes) -> None:
        said = json.loads(line)
        if "problem" in said:
            self._problem(f"the rules are no longer asked while the training goes on: {said['problem']}")
        else:
            self._take(said)
