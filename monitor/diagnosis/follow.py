"""A process beside the training that asks the rules while it goes on: ``python -m monitor.diagnosis.follow RUN STEP``.

Why a process and not a thread: a look takes up to seconds of Python on a long run, and a thread would take them from
the training with the interpreter's lock. A process of low priority takes what the training leaves. It reads the
run directory, as the page does, writes nothing there, and dies with the training that started it.

Each line that it prints is a JSON object: a finding (:func:`said`), or ``{"problem": "..."}`` before it gives up.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from monitor.diagnosis.live import LiveDiagnosis
from monitor.diagnosis.report import Report
from monitor.diagnosis.rule import Finding
from monitor.runfile.format import dump_json
from monitor.runfile.reader import open_run

NICE = 10
"""On a machine whose processors are all busy about a tenth of one is left for this process; at 19 it would be a
sixtieth, and a finding would come minutes late."""
POLL_S = 1.0
"""As often as the writer puts rows on disk."""


def said(finding: Finding, report: Report | None = None) -> dict[str, Any]:
    """What the training's process is told of a finding; the names are those of the event that it writes.

    Causes and remedy are those of its incident in ``report``, which explains the finding.
    """
    incident = next((one for one in report.incidents if finding in one.findings), None) if report else None
    told = incident or finding
    causes = [{"id": cause.id, "confidence": cause.confidence} for cause in told.causes[:3]]
    return {
        "id": finding.id,
        "severity": finding.severity,
        "text": finding.summary,
        "onset_step": finding.onset_step,
        "first_step": finding.first_step,
        "last_step": finding.last_step,
        "incident_step": told.onset_step,
        "layer": finding.layer,
        "of_rank": finding.rank,
        "causes": causes,
        "remedy": told.remedy.text if told.remedy else None,
        "config_patch": dict(told.remedy.config_patch) if told.remedy else {},
    }


def follow(path: str, since: int) -> None:
    """Print what is found in the run at ``path`` after step ``since``, until the process that started this is gone."""
    parent = os.getppid()
    try:
        live = LiveDiagnosis(open_run(path), since=since)
        while os.getppid() == parent:
            for finding in live.poll():
                print(dump_json(said(finding, live.report)), flush=True)
            time.sleep(POLL_S)
    except BrokenPipeError:  # nobody listens any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # said in the run; the training goes on without
        print(dump_json({"problem": f"{type(error).__name__}: {error}"[:600]}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training, which ends this process when it ends
    if hasattr(os, "nice"):
        os.nice(NICE)
    follow(sys.argv[1], int(sys.argv[2]))
