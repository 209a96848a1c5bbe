"""The device is idle for much of the time."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.rules import exposed_communication, input_bound, straggler
from monitor.diagnosis.timing import PARTS, step_times
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count

LEAST_SAMPLES = 30
WARM_UP_SAMPLES = 5
"""Samples at the start, about ten seconds, in which a process compiles and fills caches."""


def low_device_use(signals: Signals, *, usual: float = 30.0, highest: float = 70.0) -> Verdict:
    """In the typical sample a kernel was running for little of the time, or it never runs for most of it.

    Why it matters: the device waits for something, and each step could be as much shorter.

    Stays silent: in evaluations and checkpoints that are short beside training; abstains without a device or with less
    than a minute of samples. Always information: it is a symptom, told together with what explains it (waiting for
    data, a slow rank, exposed communication, the host), and a small model on a large device is not a mistake.

    Thresholds: ``usual``, per cent of time with a kernel running in the median sample; ``highest``, the same for the
    95th percentile. TraceML and SageMaker Debugger.

    Source: NVML documentation (utilization); SageMaker Debugger's LowGPUUtilization; design notes F43.
    """
    sampled = signals.system("gpu_util_pct")
    keep = np.isfinite(sampled.value)
    step, use = sampled.step[keep][WARM_UP_SAMPLES:], sampled.value[keep][WARM_UP_SAMPLES:]
    if len(use) < LEAST_SAMPLES:
        return Abstained(f"{count(len(use), 'sample')} of gpu_util_pct, at least {LEAST_SAMPLES} are needed")
    typical, top = float(np.median(use)), float(np.quantile(use, 0.95))
    if typical >= usual and top >= highest:
        return None
    causes = _explained(signals)
    return Finding(
        summary=f"The device is busy for {typical:.0f} % of the time in the typical sample and {top:.0f} % in the "
        f"busiest ones: {causes[0].supports[0]}",
        onset_step=int(step[0]),
        first_step=int(step[LEAST_SAMPLES - 1]),
        last_step=int(step[-1]),
        severity=Severity.INFO,
        evidence={"median_pct": typical, "p95_pct": top},
        causes=causes,
        remedy=Remedy(
            "Follow the first cause. Where it is the host: larger batches, torch.compile or CUDA graphs, no .item() in "
            "the loop.",
            {"compile.enabled": True} if causes[0].id == "busy-host" else {},
            "model = torch.compile(model)",
        ),
    )


def _explained(signals: Signals) -> tuple[Cause, ...]:
    """What other rules found that keeps a device waiting; without, the largest part of the step."""
    checks = (
        (input_bound.input_bound, ("step_time_s", "data_wait_s"), "slow-input"),
        (straggler.straggler, (), "slow-rank"),
        (exposed_communication.exposed_communication, exposed_communication.RULE.needs, "exposed-communication"),
    )
    causes = []
    for check, needs, cause in checks:
        found = check(signals) if all(need in signals for need in needs) else None
        if isinstance(found, Finding):
            causes.append(Cause(cause, 0.7, (found.summary,)))
    if causes:
        return tuple(causes)
    times = step_times(signals)
    shares = {
        part: float(np.nanmedian(times.part(signals, part) / times.seconds))
        for part in PARTS
        if part in signals and np.isfinite(times.part(signals, part)).any()
    }
    if not shares:
        return (Cause("unknown", 1.0, ("nothing that was recorded explains it",), ("not recorded: step_time_s",)),)
    part = max(shares, key=lambda name: shares[name])
    told = f"{part.removesuffix('_s')} is the longest part of a step, {100 * shares[part]:.0f} %"
    return (
        Cause("busy-host", 0.5, (told, "neither data, another rank nor communication keeps it waiting")),
        Cause("small-work", 0.4, ("kernels of a small model or batch end before the next one is launched",)),
    )


RULE = Rule(
    id="low-device-use",
    severity=Severity.INFO,
    needs=(),
    check=low_device_use,
    remedy="Find what the device waits for.",
)
