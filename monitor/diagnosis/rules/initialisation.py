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

EXPLAINED = 2.0
"""Multiple of what the first outputs lose against unrelated targets above which the loss is not their mean
cross-entropy: a sum, or another loss. Our judgement; labels that are not unrelated or not balanced move it a little."""


def initialisation(signals: Signals, *, off: float = 0.25, far: float = 1.0) -> Verdict:
    """The first loss of a classifier or language model is well above that of a uniform guess, log of the classes.

    Why it matters: a model that starts out confidently wrong spends its first hundreds of steps unlearning, with the
    largest gradients of the run.

    Stays silent: on a first loss near or below the guess (a pretrained model is below); on runs that begin with a
    resume; where the loss is not the mean cross-entropy of the output, which the output itself shows, so that its first
    value is no multiple of anything, unless the validation loss is.

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
    excess, causes = first / expected - 1, _causes(signals, first, expected)
    if not causes:
        return None
    return Finding(
        summary=f"The first loss is {number(first)}, {times(first / expected)} that of a uniform guess, "
        f"{number(expected)}",
        onset_step=1,
        first_step=1,
        last_step=1,
        severity=Severity.WARNING if excess > far else Severity.INFO,
        evidence={"first_loss": first, "uniform_guess": expected},
        causes=causes,
        remedy=Remedy(
            "Start the output layer from small weights, scale residual projections by 1/sqrt(2 x layers), and use He "
            "or Xavier elsewhere.",
            {},
            "nn.init.normal_(model.head.weight, std=0.02)",
        ),
    )


def _causes(signals: Signals, first: float, expected: float) -> tuple[Cause, ...]:
    """None at all where the loss is another one than the outputs' mean cross-entropy, and that is as it should be."""
    unlike = _unlike_losses(signals, expected)
    unrelated = signals["unrelated_loss"].value
    if len(unrelated) and np.isfinite(unrelated[0]) and first > EXPLAINED * unrelated[0]:
        return unlike
    poor = Cause(
        "poor-initialisation",
        0.7,
        supports=(f"the untrained model is worse than a guess by {number(first - expected)} nats",),
    )
    return (*unlike, replace(poor, confidence=0.1)) if unlike else (poor,)


def _unlike_losses(signals: Signals, expected: float) -> tuple[Cause, ...]:
    loss, val = signals["train_loss"], signals["val_loss"]
    near = loss.between(None, int(val.step[0])).tail(ROWS).value if len(val) else loss.value[:0]
    if len(near) == 0 or not 0 < val.value[0] <= expected < float(np.median(near)) / UNLIKE:
        return ()
    told = f"validation is at {number(float(val.value[0]))} where training is at {number(float(np.median(near)))}"
    return (Cause("unlike-losses", 0.8, (told, "a sum over tokens or examples, or another scale")),)


RULE = Rule(
    id="initialisation",
    severity=Severity.WARNING,
    needs=("train_loss", "log_classes"),
    check=initialisation,
    remedy="Start the output layer from small weights.",
)
