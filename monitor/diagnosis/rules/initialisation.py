"""The first loss is not that of a guess."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number, times

ROWS = 20
"""Training losses before the first evaluation that it is held against."""
UNLIKE = 5.0
"""Multiple of a guess at which training still is while validation is below the guess. Our judgement."""


def initialisation(signals: Signals, *, off: float = 0.25, far: float = 1.0) -> Verdict:
    """The first loss of a classifier or language model is well above that of a uniform guess, log of the classes.

    Why it matters: a model that starts out confidently wrong spends its first hundreds of steps unlearning, with the
    largest gradients of the run.

    Stays silent: on a first loss near or below the guess (a pretrained model is below); on runs that begin with a
    resume; where the loss is not a cross-entropy of the output, so that its first value is no multiple of anything.

    Thresholds: ``off`` and ``far``, relative excess of the first loss over log C: information and warning.

    Source: Karpathy 2019, A recipe for training neural networks ("verify loss @ init"); TheDeepChecker (initial loss,
    deviation 1.0); BLOOM's chronicles, a start at 64 nats against 12.
    """
    loss, guess = signals["train_loss"], signals["log_classes"].value
    if len(loss) == 0 or len(guess) == 0 or loss.step[0] > 1 or signals["log_classes"].step[0] > 1:
        return Abstained("the first step was not recorded")
    first, expected = float(loss.value[0]), float(guess[0])
    if not np.isfinite(first) or expected <= 0 or first <= (1 + off) * expected:
        return None
    excess = first / expected - 1
    return Finding(
        summary=f"The first loss is {number(first)}, {times(first / expected)} that of a uniform guess, "
        f"{number(expected)}",
        onset_step=1,
        first_step=1,
        last_step=1,
        severity=Severity.WARNING if excess > far else Severity.INFO,
        evidence={"first_loss": first, "uniform_guess": expected},
        causes=_causes(signals, first, expected),
        remedy=Remedy(
            "Start the output layer from small weights, scale residual projections by 1/sqrt(2 x layers), and use He "
            "or Xavier elsewhere.",
            {},
            "nn.init.normal_(model.head.weight, std=0.02)",
        ),
    )


def _causes(signals: Signals, first: float, expected: float) -> tuple[Cause, ...]:
    poor = Cause(
        "poor-initialisation",
        0.7,
        supports=(f"the untrained model is worse than a guess by {number(first - expected)} nats",),
    )
    loss, val = signals["train_loss"], signals["val_loss"]
    near = loss.between(None, int(val.step[0])).tail(ROWS).value if len(val) else loss.value[:0]
    if len(near) == 0 or not 0 < val.value[0] <= expected < float(np.median(near)) / UNLIKE:
        return (poor,)
    told = f"validation is at {number(float(val.value[0]))} where training is at {number(float(np.median(near)))}"
    return (
        Cause("unlike-losses", 0.8, (told, "a sum over tokens or examples, or another scale")),
        replace(poor, confidence=0.1),
    )


RULE = Rule(
    id="initialisation",
    severity=Severity.WARNING,
    needs=("train_loss", "log_classes"),
    check=initialisation,
    remedy="Start the output layer from small weights.",
)
