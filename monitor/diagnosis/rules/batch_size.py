"""The batch is far from where gradients stop being noise."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number

LEAST_ROWS = 10


def batch_size(signals: Signals, *, noisy: float = 30.0, wasteful: float = 0.03) -> Verdict:
    """The gradient noise scale, in batches of a step, is far above or far below one.

    Why it matters: at thirty, a step is mostly noise and a larger batch would allow larger, better steps; at a
    thirtieth, the same progress could be had from a smaller batch, for less compute.

    Stays silent: in between, which is a matter of taste. Always information.

    Thresholds: ``noisy`` and ``wasteful``, median of the noise scale over the second half of the run, in batches of a
    step. Our judgement; the source puts the best trade-off at one.

    Source: McCandlish et al. 2018, An empirical model of large-batch training, https://arxiv.org/abs/1812.06162.
    """
    scale = signals["gradient_noise_scale"].value
    scale = scale[np.isfinite(scale) & (scale > 0)]
    if len(scale) < LEAST_ROWS:
        return Abstained(f"{count(len(scale), 'noise scale')} measured, at least {LEAST_ROWS} are needed")
    level = float(np.median(scale[len(scale) // 2 :]))
    if wasteful <= level <= noisy:
        return None
    large = level > noisy
    step = signals["gradient_noise_scale"].step
    side = "below" if large else "above"
    return Finding(
        summary=f"The gradient noise scale is {number(level)} batches: the batch is far {side} what would use the "
        "compute best",
        onset_step=int(step[0]),
        first_step=int(step[-1]),
        last_step=int(step[-1]),
        severity=Severity.INFO,
        evidence={"noise_scale": level},
        causes=(
            Cause(
                "batch-too-small" if large else "batch-too-large",
                0.6,
                supports=(f"the noise scale is {number(level)} batches",),
            ),
        ),
        remedy=Remedy(
            "Double the batch, with accumulation if memory is short, and raise the learning rate."
            if large
            else "Halve the batch and take twice as many steps for the same tokens.",
        ),
    )


RULE = Rule(
    id="batch-size",
    severity=Severity.INFO,
    needs=("gradient_noise_scale",),
    check=batch_size,
    remedy="Try another batch size.",
)
