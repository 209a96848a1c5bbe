"""One step took so long that something hung."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.timing import step_times
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, times
from monitor.signals import TIME_PARTS

LEAST_ROWS = 30
MOST = 5


def stall(
    signals: Signals, *, ratio: float = 20.0, record: float = 5.0, least_s: float = 0.3, computing_s: float = 2.0
) -> Verdict:
    """A step took many times as long as any before: a hang that ended, or nearly one.

    Why it matters: storage, a worker or a collective hung; next time it may not come back. BLOOM hung for three hours
    in a fork of its data loader.

    Stays silent: on evaluation and checkpoints, on the first steps after a start or a resume, on jitter, on time in
    which other processes had the processor, where the kernel counts it. Information where one process that waits for
    neither data nor another one lost less than ``computing_s``: computing does not hang, but a host takes the processor
    away for as long.

    Thresholds: ``ratio`` to the median of the steps before, ``record``, to the 99th percentile of them, ``least_s``
    seconds, and ``computing_s`` seconds. A busy machine shows up to 14 times the median at steps of 3 ms, 7 times at
    20 ms, and once 47 times at 14 ms.

    Source: design notes F36; SageMaker Debugger's StalledTrainingRule.
    """
    clean = step_times(signals)
    own = clean.own  # a step is told by all that it took
    if len(clean.step) <= LEAST_ROWS:
        return Abstained(f"{count(len(clean.step), 'training step')} timed, more than {LEAST_ROWS} are needed")
    found = []
    for row in np.flatnonzero(own > max(least_s, ratio * float(np.median(own)))).tolist():
        before = own[max(0, row - 500) : row]
        if len(before) < LEAST_ROWS:
            continue
        if own[row] > max(ratio * float(np.median(before)), record * float(np.quantile(before, 0.99))):
            usual = float(np.median(before))
            short = float(own[row]) < computing_s
            found.append(_finding(signals, int(clean.step[row]), float(clean.seconds[row]), usual, short))
    return found[:MOST]


def _finding(signals: Signals, step: int, seconds: float, usual: float, short: bool) -> Finding:
    parts = {name: signals[name].between(step, step).value for name in TIME_PARTS}
    longest = max((float(v[0]), name) for name, v in parts.items() if len(v)) if any(map(len, parts.values())) else None
    where = f", {number(longest[0])} s of them in {longest[1].removesuffix('_s').replace('_', ' ')}" if longest else ""
    cause = {"data_wait_s": "slow-input", "backward_s": "slow-collective-or-device"}.get(
        longest[1] if longest else "", "hang"
    )
    computing = longest is not None and longest[1] != "data_wait_s" and len(signals.ranks) < 2
    return Finding(
        summary=f"Step {step} took {number(seconds)} s, {times(seconds / usual)} the usual {number(usual)} s{where}",
        onset_step=step,
        first_step=step,
        last_step=step,
        severity=Severity.INFO if computing and short else Severity.WARNING,
        evidence={"seconds": seconds, "usual_s": usual, "part": longest[1] if longest else None},
        causes=(Cause(cause, 0.5, supports=(f"most of it passed in {longest[1]}",) if longest else ()),),
        remedy=Remedy(
            "Find what it waited for: py-spy dump while it hangs, a timeout on the loader (timeout=60) and on the "
            "process "
            "group, so that the next one ends with an error instead of silence.",
            {},
            "torch.distributed.init_process_group(backend, timeout=timedelta(minutes=2))",
        ),
    )


RULE = Rule(
    id="stall",
    severity=Severity.WARNING,
    needs=("step_time_s",),
    check=stall,
    remedy="Find what the step waited for.",
)
