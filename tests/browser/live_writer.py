"""Writes a run step by step, as a training would: ``python -m tests.browser.live_writer RUNS RUN_ID SECONDS_PER_STEP``.

Ends when its input is closed.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np

from tests.app.runs_for_tests import Recorded, layer_norms


def main() -> None:
    runs, run_id, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    run = Recorded(runs, "live", run_id=run_id, planned=100_000, start=time.time())
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    rng, step = np.random.default_rng(0), 0
    while not ended.is_set():
        step += 1
        loss = 1.5 + 4 * float(np.exp(-step / 300)) + float(rng.normal(0, 0.03))
        run.row(step, loss, norm=float(0.7 + rng.gamma(2.0, 0.1)), layers=layer_norms(step, rng))
        run.writer.heartbeat(step=step, state="training", step_time_s=pause, planned_steps=100_000)
        if step > 100:  # the first ones at once, so that there is something to look at
            time.sleep(pause)
    run.end("stopped", step, "the test is over")


main()
