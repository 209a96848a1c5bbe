"""The machine is short of memory, too hot, or its memory is failing."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.lasting import first_run
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import EventLike, Signals
from monitor.diagnosis.wording import number


def machine_trouble(
    signals: Signals, *, memory: float = 92.0, critical: float = 97.0, samples: int = 3, reserved: float = 2.0
) -> Verdict:
    """Main memory is nearly full, a GPU is throttled for heat or power, its memory has errors, or is fragmented.

    Why it matters: the next thing to happen is a killed process, a slow run or a wrong number.

    Stays silent: on short peaks; on clocks lowered because the device is idle.

    Thresholds: ``memory`` and ``critical``, percent of main memory in use: information and warning, in ``samples``
    running; ``reserved``, multiple of the allocated device memory that the allocator holds, from 1 GiB on:
    information.

    Source: design notes F40, F33 (Llama 3: 72 of 419 interruptions were HBM3 memory); NVML documentation; TraceML.
    """
    told = [_told(event) for event in signals.events("ecc", "throttle") if _harmful(event)]
    ram = signals.system("ram_used_pct")
    if not told and len(ram) < samples and len(signals.system("gpu_memory_reserved_gib")) < samples:
        return Abstained("the machine was sampled fewer than three times", ("ram_used_pct",))
    found = told[:1]
    for bar, severity in ((critical, Severity.WARNING), (memory, Severity.INFO)):
        row = first_run(ram.value > bar, samples)
        if row is not None:
            found.append(_full(int(ram.step[row]), int(ram.step[row + samples - 1]), float(ram.value.max()), severity))
            break
    return [*found, *_fragmented(signals, reserved, samples)]


def _harmful(event: EventLike) -> bool:
    return event.step is not None and (event.kind == "ecc" or bool(event.fields.get("harmful")))


def _told(event: EventLike) -> Finding:
    step = event.step or 0
    text = str(event.fields.get("text", event.kind))[:300]
    hot = event.kind == "throttle"
    return Finding(
        summary=text[:1].upper() + text[1:],
        onset_step=step,
        first_step=step,
        last_step=step,
        severity=Severity.WARNING,
        evidence={"device": event.fields.get("device"), "kind": event.kind},
        causes=(Cause("throttled-device" if hot else "failing-memory", 0.9, supports=(text,)),),
        remedy=Remedy(
            "Look at cooling and power limits: nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER."
            if hot
            else "Take the device out of service and go back to a checkpoint from before: its numbers cannot be "
            "trusted.",
        ),
    )


def _full(onset: int, told: int, highest: float, severity: Severity) -> Finding:
    return Finding(
        summary=f"Main memory was {number(highest)} % full from step {onset} on",
        onset_step=onset,
        first_step=told,
        last_step=told,
        severity=severity,
        evidence={"ram_used_pct": highest},
        causes=(Cause("memory-pressure", 0.7, supports=(f"{number(highest)} % of main memory is in use",)),),
        remedy=Remedy("Free memory on the host: fewer loader workers, smaller caches, other processes elsewhere."),
    )


def _fragmented(signals: Signals, ratio: float, samples: int) -> list[Finding]:
    held, used = signals.system("gpu_memory_reserved_gib"), signals.system("gpu_memory_allocated_gib")
    if len(held) != len(used) or len(held) < samples:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        row = first_run((held.value > ratio * used.value) & (held.value > 1.0), samples)
    if row is None:
        return []
    kept, allocated = float(held.value[row]), float(used.value[row])
    return [
        Finding(
            summary=f"The allocator holds {number(kept)} GiB of device memory for {number(allocated)} GiB of tensors",
            onset_step=int(held.step[row]),
            first_step=int(held.step[row + samples - 1]),
            last_step=int(held.step[-1]),
            severity=Severity.INFO,
            evidence={"reserved_gib": kept, "allocated_gib": allocated},
            causes=(Cause("fragmentation", 0.6, supports=("reserved memory is a multiple of what is allocated",)),),
            remedy=Remedy("Let the allocator grow its segments: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."),
        )
    ]


RULE = Rule(
    id="machine-trouble",
    severity=Severity.WARNING,
    needs=(),
    check=machine_trouble,
    remedy="Look at the machine.",
)
