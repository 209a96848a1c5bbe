"""Other detectors on the scalars of runs, in a process of its own: ``python peer.py``, JSON in and JSON out.

Standard input is a list of runs, each ``{"steps": [...], "loss": [...], "grad_norm": [...], "lr": [...], "step_time":
[...]}``; the answer has the alarm steps of each run by detector, or a sentence for a detector that is not installed.
Needs numpy and the peers, nothing of Gradiometer, so that it runs in the peers' own environment. Each gets its defaults
and sees the run in order; rules that look at a whole log see it again every ``STRIDE`` steps, and an alarm counts from
the step at which it is first told. Alarms that a peer calls information are left out, as ours are.
"""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

Run = dict[str, list[float]]
Detector = Callable[[Run], list[int]]
STRIDE = 10


def _finite(value: float) -> bool:
    return math.isfinite(value)


# Rules of a few lines, written from their sources --------------------------------------------------------------------


def _sigmas(run: Run, sigmas: float, window: int, names: tuple[str, ...]) -> list[int]:
    """Values above mean plus so many standard deviations of the ``window`` before; half of it must be there."""
    alarms = []
    for name in names:
        seen: deque[float] = deque(maxlen=window)
        for step, value in zip(run["steps"], run[name], strict=True):
            enough = len(seen) >= min(window // 2, 64)
            if not _finite(value) or (enough and value > np.mean(seen) + sigmas * np.std(seen)):
                alarms.append(int(step))
            if _finite(value):
                seen.append(value)
    return sorted(set(alarms))


def six_sigma(run: Run) -> list[int]:
    """OLMo-core's SkipStepOptimizer: loss or gradient norm over mean + 6 sd of the last 128."""
    return _sigmas(run, 6.0, 128, ("loss", "grad_norm"))


def seven_sigma(run: Run) -> list[int]:
    """OLMo 2's spike score: 7 sd from the mean of the last 1 000."""
    return _sigmas(run, 7.0, 1000, ("loss", "grad_norm"))


def robust_z(run: Run, bar: float = 8.0, window: int = 100) -> list[int]:
    """log loss or log gradient norm over median + 8 scaled MAD of the last 100."""
    alarms = []
    for name in ("loss", "grad_norm"):
        seen: deque[float] = deque(maxlen=window)
        for step, value in zip(run["steps"], run[name], strict=True):
            logged = math.log(value) if _finite(value) and value > 0 else math.nan
            if len(seen) >= window // 2:
                middle = np.median(seen)
                scale = 1.4826 * np.median(np.abs(np.array(seen) - middle))
                if not _finite(logged) or logged > middle + bar * max(scale, 1e-9):
                    alarms.append(int(step))
            if _finite(logged):
                seen.append(logged)
    return sorted(set(alarms))


def megatron(run: Run) -> list[int]:
    """Megatron's rerun state machine: not finite, or ten times the largest of the first 100."""
    alarms = []
    for name in ("loss", "grad_norm"):
        value = np.array(run[name], float)
        first = value[:100][np.isfinite(value[:100])]
        bar = 10 * first.max() if len(first) else math.inf
        late = np.arange(len(value)) >= 100
        alarms += [int(run["steps"][row]) for row in np.flatnonzero(~np.isfinite(value) | (late & (value > bar)))]
    return sorted(set(alarms))


# Packages ------------------------------------------------------------------------------------------------------------


def losslint(run: Run) -> list[int]:
    from pathlib import Path

    from losslint.checks import ALL_CHECKS
    from losslint.parsing import RunLog

    told: dict[str, int] = {}
    for stop in range(STRIDE, len(run["steps"]) + STRIDE, STRIDE):
        steps = [int(step) for step in run["steps"][:stop]]
        log = RunLog(steps, {name: list(run[name][:stop]) for name in ("loss", "grad_norm", "lr")}, Path("log"))
        for check in ALL_CHECKS:
            for finding in check(log, None):
                if finding.severity != "info":
                    told.setdefault(
                        f"{finding.check} {finding.details.get('series')} {finding.details.get('steps')}", steps[-1]
                    )
    return sorted(set(told.values()))


def trainpulse(run: Run) -> list[int]:
    from trainpulse import Monitor

    monitor = Monitor()
    for row, step in enumerate(run["steps"]):
        for name, key in (("loss", "loss"), ("grad_norm", "grad_norm"), ("lr", "lr"), ("step_time", "step_time")):
            if run[key]:
                monitor.log(name, int(step), run[key][row])
    return sorted({alert.step for alert in monitor.alerts if str(alert.severity.value) != "info"})


def _trainscope(name: str) -> Detector:
    def detect(run: Run) -> list[int]:
        from trainscope.core.detectors import make_detector

        detector = make_detector({"name": name})
        return [int(s) for s, loss in zip(run["steps"], run["loss"], strict=True) if detector.update(loss) is not None]

    return detect


def pytscope(run: Run) -> list[int]:
    import re

    from pytscope.analyzers.convergence import analyze_convergence
    from pytscope.core.events import StepRecord
    from pytscope.diagnosis.engine import DiagnosisContext, run_diagnosis

    times = run["step_time"] or [0.0] * len(run["steps"])
    rows = zip(run["steps"], run["loss"], run["grad_norm"], times, strict=True)
    records = [
        StepRecord(int(s), {"compute": t}, {"loss": loss, "grad_norm": norm}, timestamp=0.0)
        for s, loss, norm, t in rows
    ]
    told: dict[str, int] = {}
    for stop in range(STRIDE, len(records) + STRIDE, STRIDE):
        seen = records[:stop]
        context = DiagnosisContext(steps=seen, convergence=analyze_convergence(seen))
        for finding in run_diagnosis(context):
            if finding.severity in ("high", "med"):
                began = re.search(r"steps? (\d+)", finding.title)
                told.setdefault(f"{finding.code} {began and began.group(1)}", seen[-1].step)
    return sorted(set(told.values()))


DETECTORS: dict[str, Detector] = {
    "6 sigma / 128": six_sigma,
    "7 sigma / 1000": seven_sigma,
    "robust z > 8 / 100": robust_z,
    "Megatron 10x max(100)": megatron,
    "losslint": losslint,
    "trainpulse": trainpulse,
    "trainscope changepoint": _trainscope("changepoint"),
    "trainscope z_score": _trainscope("z_score"),
    "pytscope": pytscope,
}


def answer(runs: list[Run]) -> dict[str, Any]:
    """Alarm steps of each run by detector; a sentence instead where the detector cannot be imported."""
    found: dict[str, Any] = {}
    for name, detector in DETECTORS.items():
        try:
            found[name] = [detector(run) for run in runs]
        except ImportError as error:
            found[name] = f"absent: {error}"
    return found


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
