"""The rewards of a policy fall back to where they began, and stay there."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.context import gate_steps, returns_of
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number
from monitor.signals import Signal

BLOCKS = 20
"""Into which the run is parted; each must have ``LEAST_ROWS``."""
LEAST_ROWS = 8
SPREAD = 10
"""Percentiles of the best block's rows and of those at the end that must not overlap, from below and from above."""


def returns_collapse(signals: Signals, *, lost: float = 0.7, blocks: int = 3) -> Verdict:
    """The reward or return that a policy had gained is lost again, for good.

    Why it matters: the loss of a policy says nothing about it, and a policy that has collapsed makes the data it would
    have to learn from; it seldom comes back by itself.

    Stays silent: on rewards that never rose; on dips that come back; on rewards as scattered at the best as at the end;
    on logged changes of the data or the task after the best; without a reward. Abstains on
    fewer than forty.

    Thresholds: ``lost``, share of what was gained, from the first to the best of twenty parts of the run, that is
    missing in each of the last ``blocks`` parts or more; nine tenths of the rows there lie below nine tenths of those
    of the best part. Our judgement.

    Source: Dohare et al. 2024, https://doi.org/10.1038/s41586-024-07711-7 (policies that collapse in long PPO runs);
    Igl et al. 2021, https://arxiv.org/abs/2006.05826.
    """
    returns = returns_of(signals)
    if returns is None:
        return None
    keep = np.isfinite(returns.value)
    step, value = returns.step[keep], returns.value[keep]
    rows = max(LEAST_ROWS, len(value) // BLOCKS)
    parts = len(value) // rows
    if parts < blocks + 2:
        return Abstained(f"{count(len(value), 'reward')} recorded, at least {(blocks + 2) * rows} are needed")
    first = len(value) - parts * rows  # the parts end where the run does
    part = value[first:].reshape(parts, rows)
    level = np.median(part, axis=1)
    best = int(np.argmax(level[:-blocks]))
    gained = float(level[best] - level[0])
    if gained <= 0:
        return None
    after = int(np.flatnonzero(level > level[best] - lost * gained)[-1]) + 1
    if parts - after < blocks:
        return None
    if np.percentile(part[after:], 100 - SPREAD) >= np.percentile(part[best], SPREAD):
        return None
    onset = int(step[first + after * rows])
    if any(int(step[first + best * rows]) <= gate <= onset for gate in gate_steps(signals)):
        return None
    told = int(step[first + (after + blocks) * rows - 1])
    return _finding(signals, returns, onset, told, float(level[best]), float(np.median(part[after:])))


def _finding(signals: Signals, returns: Signal, onset: int, told: int, best: float, now: float) -> Finding:
    return Finding(
        summary=f"{returns.name} fell from {number(best)} at its best to {number(now)} from step {onset} on and is not "
        "back",
        onset_step=onset,
        first_step=told,
        last_step=int(returns.step[-1]),
        severity=Severity.WARNING,
        evidence={"signal": returns.name, "best_level": best, "last_level": now},
        causes=(Cause("policy-collapse", 0.7, (f"{returns.name} is lost, and the run goes on", *_entropy(signals))),),
        remedy=Remedy(
            f"Go back to a checkpoint before step {onset}. Let the policy take smaller steps (learning rate, clip "
            "range) and keep its entropy up.",
            {},
            'for group in optimizer.param_groups:\n    group["lr"] *= 0.5',
        ),
    )


def _entropy(signals: Signals) -> tuple[str, ...]:
    """What the policy's entropy says, where it was recorded."""
    for name in signals.names:
        if name.rpartition("/")[2] not in ("entropy", "policy_entropy"):
            continue
        value = signals[name].value
        if len(value) and 0 <= value[-1] < 0.1 * value[0]:
            return (f"{name} fell from {number(float(value[0]))} to {number(float(value[-1]))}",)
    return ()


RULE = Rule(
    id="returns-collapse",
    severity=Severity.WARNING,
    needs=(),
    check=returns_collapse,
    remedy="Go back to a checkpoint before the fall, with smaller steps of the policy.",
)
