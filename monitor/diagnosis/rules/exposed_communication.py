"""Steps wait for communication."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count

LEAST_ROWS = 10
SETTLING_STEPS = 20
"""Processes begin at different times and wait for each other, DDP lays its buckets out anew. Our judgement."""


def exposed_communication(signals: Signals, *, share: float = 0.15, worrying: float = 0.35) -> Verdict:
    """A good part of each step is communication that backward does not hide.

    Why it matters: more processes then buy little speed.

    Stays silent: on communication that overlaps with backward; with one process; in the first 20 steps. A straggler
    looks like this on all other ranks; where one was found, that is the cause.

    Thresholds: ``share`` and ``worrying``, median share of the step after backward's last gradient: information and
    warning. pytscope tells of 5 and 15 %.

    Source: design notes F37; Li et al. 2020, PyTorch Distributed, https://arxiv.org/abs/2006.15704.
    """
    if len(signals.ranks) < 2:
        return None
    exposed, time = signals["comm_exposed_s"], signals["step_time_s"]
    step = np.intersect1d(exposed.step, time.step)
    step = step[step > SETTLING_STEPS]
    if len(step) < LEAST_ROWS:
        return Abstained(
            f"{count(len(step), 'measurement')} of exposed communication after step {SETTLING_STEPS}, {LEAST_ROWS} are "
            "needed",
            ("comm_exposed_s",),
        )
    part = exposed.value[np.searchsorted(exposed.step, step)] / time.value[np.searchsorted(time.step, step)]
    level = float(np.nanmedian(part))
    if not level > share:
        return None
    return Finding(
        summary=f"{100 * level:.0f} % of each step is communication that backward does not hide",
        onset_step=int(step[0]),
        first_step=int(step[LEAST_ROWS - 1]),
        last_step=int(step[-1]),
        severity=Severity.WARNING if level > worrying else Severity.INFO,
        evidence={"exposed_share": level},
        causes=(
            Cause("communication-bound", 0.6, supports=(f"{100 * level:.0f} % of the step is exposed communication",)),
        ),
        remedy=Remedy(
            "Accumulate over more micro-batches with no_sync, make buckets larger (bucket_cap_mb), reduce in bf16, "
            "or use "
            "a faster network.",
            {},
            "ddp.register_comm_hook(None, "
            "torch.distributed.algorithms.ddp_comm_hooks.default_hooks.bf16_compress_hook)",
        ),
    )


RULE = Rule(
    id="exposed-communication",
    severity=Severity.WARNING,
    needs=(),
    check=exposed_communication,
    remedy="Communicate less often, or hide it behind backward.",
)
