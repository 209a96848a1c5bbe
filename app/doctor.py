"""The doctor in a process of its own: a long diagnosis neither holds up the pages nor takes the training's turn.

One line with a path goes in, one line of JSON comes out. The process ends with the app that started it.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from monitor.errors import GradiometerError, RunError

if TYPE_CHECKING:
    from monitor.diagnosis.view import Kept
    from monitor.runfile.reader import Run

ROOT = Path(__file__).resolve().parents[1]
KEPT_OPEN = 8
"""Live runs whose readers and detectors are kept between two questions, so that they are read on and not anew."""
NICE = 10
"""The training and the page go first."""

ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
}
"""The last one is for glibc: what a long run took goes back to the system, and half of it does not stay with us."""

Report = dict[str, Any]
"""The doctor's JSON."""
Opened: TypeAlias = "OrderedDict[str, tuple[Run, Kept]]"
"""Readers and what detectors have seen, by the runs' paths."""


class Doctor:
    """The asking side; one question at a time, from whatever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, path: Path) -> Report:
        """The report on the run at ``path``.

        Raises:
            RunError: it cannot be read, a rule failed, or the process was ended from outside.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(str(path)) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except (BrokenPipeError, ValueError):
                line = ""
        if not line:
            code = process.wait(timeout=10)
            raise RunError(f"The diagnosis process ended with code {code}. It is started again with the next question.")
        answer = json.loads(line)
        if "error" in answer:
            raise RunError(str(answer["error"]))
        return answer["report"]

    def close(self) -> None:
        """End the process, whatever it is at."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(timeout=10)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            atexit.register(self.close)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "app.doctor"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env={**os.environ, **ENVIRONMENT},
            )
        return self._process


def serve() -> None:
    """The answering side: until there is nobody to answer."""
    os.nice(NICE)
    import signal

    from monitor.runfile.format import dump_json

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the app's terminal: the closed pipe is the way to end
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may print between the answers
    kept: Opened = OrderedDict()
    for line in sys.stdin:
        path = json.loads(line)
        try:
            answer: dict[str, Any] = {"report": report_on(path, kept)}
        except GradiometerError as error:
            kept.pop(path, None)
            answer = {"error": str(error)}
        except Exception as error:  # said on the page; the next run is answered all the same
            kept.pop(path, None)
            answer = {"error": f"The diagnosis failed: {type(error).__name__}: {error}"}
        try:
            print(dump_json(answer), file=answers, flush=True)
        except BrokenPipeError:
            os._exit(0)  # who asked has ended; a flush on the way out would fail once more, with a traceback


def report_on(path: str, kept: Opened) -> Report:
    """The report on the run at ``path``; ``kept`` gets its reader, unless it has ended."""
    from monitor.diagnosis.engine import diagnose
    from monitor.diagnosis.view import Signals
    from monitor.runfile.reader import open_run

    if path in kept:
        kept[path][0].refresh()
    else:
        kept[path] = open_run(path), {}
    kept.move_to_end(path)
    run, detectors = kept[path]
    report = diagnose(Signals.from_run(run, kept=detectors)).to_dict()
    if run.state.ended:
        del kept[path]  # hardly ever asked about again, and of a long run it is half a gigabyte
    while len(kept) > KEPT_OPEN:
        kept.popitem(last=False)
    return report


if __name__ == "__main__":
    serve()
