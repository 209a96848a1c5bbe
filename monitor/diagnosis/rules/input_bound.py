"""The training waits for its data."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.lasting import first_run
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.timing import block_medians, step_times
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count

BLOCK_ROWS = 20


def input_bound(
    signals: Signals, *, share: float = 0.1, worrying: float = 0.25, blocks: int = 3, least_s: float = 0.002
) -> Verdict:
    """A good part of each step is spent waiting for the next batch.

    Why it matters: the device is idle meanwhile; it is the cheapest speed there is to gain.

    Stays silent: on single slow batches; on steps so short that taking any batch is a good part of them; as far as
    other processes had the processor meanwhile, whichever part of the step they held up.

    Thresholds: ``share`` and ``worrying``, median share of the step over blocks of 20 steps: information and warning,
    in ``blocks`` blocks running; ``least_s``, median wait in seconds. TraceML tells of 10 and 20 %, pytscope of 25 and
    40 %.

    Source: design notes F38; PyTorch performance tuning guide (DataLoader workers).
    """
    times = step_times(signals)
    wait = np.maximum(times.part(signals, "data_wait_s") - np.nan_to_num(times.waited), 0.0)
    if len(times.step) < BLOCK_ROWS * blocks:
        return Abstained(f"{count(len(times.step), 'training step')} timed, at least {BLOCK_ROWS * blocks} are needed")
    shares, seconds = block_medians(wait / times.own, BLOCK_ROWS), block_medians(wait, BLOCK_ROWS)
    for bar, severity in ((worrying, Severity.WARNING), (share, Severity.INFO)):
        first = first_run((shares > bar) & (seconds > least_s), blocks)
        if first is not None:
            return _finding(signals, times.step, shares[first:], seconds[first:], first, blocks, severity)
    return None


def _finding(
    signals: Signals,
    step: np.ndarray,
    shares: np.ndarray,
    seconds: np.ndarray,
    first: int,
    blocks: int,
    severity: Severity,
) -> Finding:
    level, wait = float(np.median(shares)), float(np.median(seconds))
    cpu = signals.system("cpu_pct").value
    busy = f"the process used {float(np.median(cpu)):.0f} % of a core" if len(cpu) else ""
    return Finding(
        summary=f"{100 * level:.0f} % of each step, {1000 * wait:.0f} ms, is spent waiting for data",
        onset_step=int(step[first * BLOCK_ROWS]),
        first_step=int(step[(first + blocks) * BLOCK_ROWS - 1]),
        last_step=int(step[-1]),
        severity=severity,
        evidence={"wait_share": level, "wait_s": wait},
        causes=(
            Cause(
                "slow-input",
                0.8,
                supports=tuple(filter(None, (f"the median wait is {100 * level:.0f} % of the step", busy))),
                against=("not recorded: time inside the loader's workers",),
            ),
        ),
        remedy=Remedy(
            "Load in parallel and ahead: more workers that persist, pinned memory, a larger prefetch; move decoding "
            "and "
            "augmentation out of the training process.",
            {},
            "DataLoader(data, batch_size, num_workers=4, persistent_workers=True, pin_memory=True, prefetch_factor=4)",
        ),
    )


RULE = Rule(
    id="input-bound",
    severity=Severity.WARNING,
    needs=("step_time_s", "data_wait_s"),
    check=input_bound,
    remedy="Load data in parallel and ahead of the training.",
)
