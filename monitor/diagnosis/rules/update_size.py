"""The optimizer changes the weights far too much, or not at all."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.lasting import first_run
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number
from monitor.signals import Signal

SETTLING_STEPS = 20
"""Weights that start near zero change by much of themselves in the first steps."""


def update_size(
    signals: Signals,
    *,
    large: float = 0.1,
    small: float = 1e-5,
    nothing: float = 1e-7,
    rows: int = 3,
    of_peak: float = 0.2,
) -> Verdict:
    """The norm of a step's change over the norm of the weights leaves the range in which trainings learn.

    Why it matters: about 1e-3 a step is usual. At a tenth the weights are thrown about and what was learnt is lost; at
    1e-5 the run learns nothing in its lifetime; below 1e-7 float32 rounds the change away.

    Stays silent: in the first 20 steps; while the learning rate is below ``of_peak`` of its highest, in warm-up or at
    the end of a decay; on single layers, whose ratio may be anything. Information where the ratio is small but not
    lost in rounding: fine-tuning large models is like that.

    Thresholds: ``large``, ``small`` and ``nothing``, dimensionless, per step, over all weights together, in ``rows``
    measurements running; ``of_peak``, share of the highest learning rate. Ten healthy trainings of ours lie between
    1e-4 and 3e-2 there. Our judgement.

    Source: CS231n notes (Karpathy), ratio of weights to updates about 1e-3; TheDeepChecker (Ben Braiek and Khomh 2023)
    accepts 1e-4 to 1e-1.
    """
    ratio = signals["update_to_weight_ratio"].between(SETTLING_STEPS + 1, None)
    if len(ratio) < rows:
        return Abstained(
            f"{count(len(ratio), 'update')} measured after step {SETTLING_STEPS}, at least {rows} are needed"
        )
    high = first_run(ratio.value > large, rows)
    low = first_run((ratio.value < small) & _full_rate(signals["lr"], ratio, of_peak), rows)
    found = [] if high is None else [_too_large(ratio, high)]
    return found if low is None else [*found, _too_small(ratio, low, nothing)]


def _full_rate(lr: Signal, ratio: Signal, of_peak: float) -> np.ndarray:
    """bool[T]: rows of ``ratio`` at which the learning rate is near its highest so far; all without one recorded."""
    if len(lr) == 0:
        return np.ones(len(ratio), bool)
    highest = np.fmax.accumulate(lr.value)
    row = np.clip(np.searchsorted(lr.step, ratio.step, side="right") - 1, 0, None)
    return lr.value[row] > of_peak * highest[row]


def _too_large(ratio: Signal, row: int) -> Finding:
    finite = ratio.value[row:][np.isfinite(ratio.value[row:])]
    highest = float(finite.max()) if len(finite) else float("nan")
    return Finding(
        summary=f"Each step changes the weights by up to {number(highest)} of their norm, "
        "a hundred times what is usual",
        onset_step=int(ratio.step[row]),
        first_step=int(ratio.step[min(row + 2, len(ratio) - 1)]),
        last_step=int(ratio.step[-1]),
        severity=Severity.WARNING,
        evidence={"update_to_weight_ratio": highest},
        causes=(Cause("lr-too-high", 0.8, supports=(f"the updates are {number(highest)} of the weights",)),),
        remedy=Remedy(
            f"Go back to the last checkpoint before step {int(ratio.step[row])} and lower the learning rate tenfold.",
            {},
            'for group in optimizer.param_groups:\n    group["lr"] *= 0.1',
        ),
    )


def _too_small(ratio: Signal, row: int, nothing: float) -> Finding:
    level = float(np.median(ratio.value[row:]))
    lost = level < nothing
    return Finding(
        summary=f"Each step changes the weights by {number(level)} of their norm"
        + (", which float32 rounds away" if lost else ", a hundredth of what is usual"),
        onset_step=int(ratio.step[row]),
        first_step=int(ratio.step[min(row + 2, len(ratio) - 1)]),
        last_step=int(ratio.step[-1]),
        severity=Severity.WARNING if lost else Severity.INFO,
        evidence={"update_to_weight_ratio": level},
        causes=(Cause("lr-too-low", 0.7, supports=(f"the updates are {number(level)} of the weights",)),),
        remedy=Remedy(
            "Raise the learning rate by a factor of three to ten, and look whether the loss falls faster.",
            {},
            'for group in optimizer.param_groups:\n    group["lr"] *= 3',
        ),
    )


RULE = Rule(
    id="update-size",
    severity=Severity.WARNING,
    needs=("update_to_weight_ratio",),
    check=update_size,
    remedy="Change the learning rate until a step changes the weights by about a thousandth of their norm.",
)
