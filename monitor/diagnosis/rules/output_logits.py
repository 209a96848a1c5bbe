"""The output logits drift away."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.lasting import first_run
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number
from monitor.signals import Signal

LEAST_ROWS = 6


def output_logits(signals: Signals, *, away: float = 10.0, worrying: float = 30.0, rows: int = 3) -> Verdict:
    """log Z of the output, the logarithm of the sum of exponentials of the logits, drifts without bound.

    Why it matters: softmax does not care about a common shift of its inputs, but half precision does: far from zero
    the loss is rounded, and the training diverges late and slowly.

    Stays silent: on the values around the logarithm of the number of classes that an untrained output has, and on a
    distance that has stopped growing.

    Thresholds: ``away``, distance of the mean log Z from that logarithm, in nats, in ``rows`` measurements running,
    still growing: information; ``worrying``, the same for a warning. Ten healthy trainings of ours stay within 2.

    Source: Chowdhery et al. 2022 (PaLM), https://arxiv.org/abs/2204.02311 (z-loss 1e-4); Wortsman et al. 2023,
    https://arxiv.org/abs/2309.14322 (output logit divergence).
    """
    series = signals["log_z_mean"]
    keep = np.isfinite(series.value)
    log_z = Signal(series.name, series.step[keep], series.value[keep], series.unit)
    if len(log_z) < LEAST_ROWS:
        return Abstained(f"{len(log_z)} measurements of log Z, at least {LEAST_ROWS} are needed")
    guess = signals["log_classes"].value
    centre = float(np.median(guess)) if len(guess) else 0.0
    distance = np.abs(log_z.value - centre)
    growing = distance >= np.maximum.accumulate(distance) - 0.5
    for bar, severity in ((worrying, Severity.WARNING), (away, Severity.INFO)):
        row = first_run((distance > bar) & growing, rows)
        if row is not None:
            return _finding(log_z, row, rows, severity)
    return None


def _finding(log_z: Signal, row: int, rows: int, severity: Severity) -> Finding:
    now = float(log_z.value[row + rows - 1])
    return Finding(
        summary=f"Mean log Z of the output logits drifted from {number(float(log_z.value[0]))} to {number(now)}",
        onset_step=int(log_z.step[row]),
        first_step=int(log_z.step[row + rows - 1]),
        last_step=int(log_z.step[-1]),
        severity=severity,
        evidence={"log_z": now, "log_z_first": float(log_z.value[0])},
        causes=(Cause("output-logit-divergence", 0.7, supports=(f"log Z went to {number(now)}",)),),
        remedy=Remedy(
            "Add a z-loss of 1e-4 times log Z squared, and weight decay on the output layer.",
            {"loss.z_loss": 1e-4},
            "loss = loss + 1e-4 * logits.logsumexp(-1).pow(2).mean()",
        ),
    )


RULE = Rule(
    id="output-logits",
    severity=Severity.WARNING,
    needs=("log_z_mean",),
    check=output_logits,
    remedy="Add a z-loss.",
)
