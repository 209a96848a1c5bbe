"""The rewards of a policy fall back to where they began, or below, and stay there."""

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
    """The reward or return that a policy had gained is lost again, for good, or falls below where it began.

    Why it matters: the loss of a policy says nothing about it, and a policy that has collapsed makes the data it would
    have to learn from; it seldom comes back by itself. One that ends below the untrained one learns to avoid what pays.

    Stays silent: on rewards that never rose, unless they fell; on dips that come back; on rewards as scattered at the
    best, or in the beginning, as at the end; on logged changes of the data or the task after the best; without a
    reward. Abstains on fewer than forty.

    Thresholds: ``lost``, share of what was gained, from the first to the best of twenty parts of the run, that is
    missing in each of the last ``blocks`` parts or more; nine tenths of the rows there lie below nine tenths of those
    of the best part. Below the beginning: the same against the first part, in half of the run or more and to its end,
    without a turn for the better: a policy may well begin by getting worse. Our judgement.

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
    if (below := _below_the_first(part, level, blocks)) is not None:
        onset, told = (int(step[first + row]) for row in (below * rows, (below + blocks) * rows - 1))
        told = max(told, int(step[first + 2 * below * rows - 1]))
        if any(int(step[first]) < gate <= onset for gate in gate_steps(signals)):
            return None
        return _worse_than_untrained(returns, onset, told, float(level[0]), float(np.median(part[below:])))
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


def _below_the_first(part: np.ndarray, level: np.ndarray, blocks: int) -> int | None:
    """The part from which on rewards lie below those of the first one to the end, if they are half of all or more."""
    low = np.percentile(part, 100 - SPREAD, axis=1) < np.percentile(part[0], SPREAD)
    after = int(np.flatnonzero(~low)[-1]) + 1
    if len(part) - after < max(blocks, after):
        return None
    return after if np.percentile(part[-1], SPREAD) <= np.median(level[after:]) else None


def _worse_than_untrained(returns: Signal, onset: int, told: int, began: float, now: float) -> Finding:
    return Finding(
        summary=f"{returns.name} fell from {number(began)} in the beginning to {number(now)} from step {onset} on, "
        "worse than untrained",
        onset_step=onset,
        first_step=told,
        last_step=int(returns.step[-1]),
        severity=Severity.WARNING,
        evidence={"signal": returns.name, "first_level": began, "last_level": now},
        causes=(
            Cause("wrong-sign", 0.5, ("chance alone would have kept it where it began: it is trained away from it",)),
            Cause("policy-collapse", 0.2, ("a first step may have been too large",)),
        ),
        remedy=Remedy(
            "Look at the signs: of the loss of the policy (minus log probability times advantage), of the advantage "
            "(return minus baseline), and of a reward that is a cost.",
            {},
            "loss = -(policy.log_prob(actions) * advantages.detach()).mean()",
        ),
    )


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
