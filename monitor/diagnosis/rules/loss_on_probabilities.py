"""The model's output is a softmax or a sigmoid already and the loss takes another one, or it is one over the batch."""

from __future__ import annotations

import math

import numpy as np

from monitor.diagnosis.lasting import first_run
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number

TOLERANCE = 0.02
"""Relative: the loss is that of the whole batch, the output's mean that of a sample."""
SURE = 0.15
"""Distance of the output's mean from 0 or 1 within which the two losses of a sigmoid lie apart: there the right one is
below 0.42, the entropy, and that of logits in [0, 1] above 0.62. Our judgement."""


def loss_on_probabilities(signals: Signals, *, share: float = 0.99, rows: int = 3, slack: float = 0.98) -> Verdict:
    """The output is probabilities, and the loss behaves as if they were taken for logits; or they are probabilities
    over the samples of a batch, ``softmax(dim=0)``.

    Why it matters: cross-entropy of probabilities cannot fall below log(e + C - 1) - 1 for C classes (1.46 for ten),
    and its gradients are ten to a hundred times too small: the run learns slowly, to a floor, and looks healthy. So
    with two sigmoids: what should be 0 costs log 2. Over the batch each sample's answer depends on the others.

    Stays silent: where a loss has ever been below that floor, since then it takes the logarithm of the probabilities
    as it should; on outputs that sum to one now and then, or over rows and columns. Abstains while the loss is above
    the uniform guess. Two sigmoids are not seen while the mean output is far from 0 and 1, as of two balanced classes.

    Thresholds: ``share`` of output rows that are non-negative and sum to one, or of columns, in ``rows`` measurements
    running; ``slack``, multiple of the floor below which the loss clears the model. The floor is exact. Two sigmoids:
    outputs always in [0, 1], and a loss that is never outside of what logits with such a mean can cost.

    Source: design notes F23; UMLAUT (Schoop et al. 2021), NeuraLint (Nikanjam et al. 2021).
    """
    if (found := _over_the_batch(signals, share, rows) or _sigmoid_twice(signals, rows)) is not None:
        return found
    outputs = signals["output_softmax_share"]
    row = first_run(outputs.value >= share, rows)
    if row is None:
        return None
    guess = signals["log_classes"].value
    guess = guess[np.isfinite(guess)]
    loss = signals["train_loss"].value
    loss = loss[np.isfinite(loss)]
    if len(guess) == 0 or len(loss) < rows:
        return Abstained("the number of classes or the loss is not known", ("log_classes", "train_loss"))
    classes = math.exp(min(float(np.median(guess)), 30.0))
    floor = math.log(math.e + classes - 1) - 1
    if float(loss.min()) < slack * floor:
        return None
    if float(np.median(loss[-20:])) > 1.05 * float(np.median(guess)):
        return Abstained("the loss is above that of a uniform guess, so it does not tell what it is computed from")
    return Finding(
        summary=f"The model's output is a softmax already and the loss never falls below {number(floor)}, the lowest "
        f"cross-entropy that probabilities of {number(classes)} classes can have when taken for logits",
        onset_step=int(outputs.step[row]),
        first_step=int(outputs.step[row + rows - 1]),
        last_step=int(outputs.step[-1]),
        severity=Severity.WARNING,
        evidence={"floor": floor, "lowest_loss": float(loss.min()), "classes": classes},
        causes=(
            Cause(
                "double-softmax",
                0.9,
                supports=(
                    "the output rows are non-negative and sum to 1",
                    f"the lowest loss is {number(float(loss.min()))}",
                ),
            ),
        ),
        remedy=Remedy(
            "Take the softmax out of the model: cross_entropy applies it itself. For predictions apply it afterwards.",
            {},
            "loss = F.cross_entropy(logits, targets)  # logits, not logits.softmax(-1)",
        ),
    )


def _over_the_batch(signals: Signals, share: float, rows: int) -> Finding | None:
    columns = signals["output_batch_softmax_share"]
    along = signals["output_softmax_share"].value[np.isin(signals["output_softmax_share"].step, columns.step)]
    if len(along) != len(columns):
        return None
    row = first_run((columns.value >= share) & (along < share), rows)
    if row is None:
        return None
    return Finding(
        summary="The model's output is normalised over the samples of the batch: each column is probabilities that sum "
        "to 1, and not each row",
        onset_step=int(columns.step[row]),
        first_step=int(columns.step[row + rows - 1]),
        last_step=int(columns.step[-1]),
        severity=Severity.WARNING,
        evidence={"share": float(columns.value[row])},
        causes=(Cause("normalised-over-batch", 0.9, ("each class's probabilities sum to 1 over the batch",)),),
        remedy=Remedy(
            "Take the softmax over the classes, the last dimension: with dim=0 a sample's answer depends on the others "
            "of its batch, and means nothing alone.",
            {},
            "log_probabilities = logits.log_softmax(dim=-1)",
        ),
    )


def _sigmoid_twice(signals: Signals, rows: int) -> Finding | None:
    """A loss that lies where binary cross-entropy puts outputs in [0, 1] that are taken for logits, with any targets.

    A logit p costs softplus(p) less p times its target. By Jensen's inequality the mean is softplus(-m) or more for
    outputs of mean m, and at most on the chord of softplus from 0 to 1.
    """
    mean, loss = signals["output_mean"], signals["train_loss"]
    low, high = signals["output_min"].value, signals["output_max"].value
    if len(mean) < rows or not len(low) == len(high) == len(mean) or (low < 0).any() or (high > 1).any():
        return None
    both, at, of_loss = np.intersect1d(mean.step, loss.step, return_indices=True)
    m, value = mean.value[at], loss.value[of_loss]
    least = np.logaddexp(0, -m) * (1 - TOLERANCE)
    most = (math.log(2) + m * (math.log(1 + math.e) - math.log(2))) * (1 + TOLERANCE)
    if not ((value >= least) & (value <= most)).all():
        return None
    row = first_run((m < SURE) | (m > 1 - SURE), rows)
    if row is None:
        return None
    told = f"the loss was never outside of what outputs in [0, 1] cost as logits, {number(float(least[-1]))} at least"
    return Finding(
        summary=f"The model's output lies between 0 and 1 and the loss, {number(float(value[-1]))}, is that of "
        "another sigmoid over it",
        onset_step=int(both[0]),
        first_step=int(both[row + rows - 1]),
        last_step=int(both[-1]),
        severity=Severity.WARNING,
        evidence={"output_mean": float(m[-1]), "loss": float(value[-1]), "least": float(least[-1])},
        causes=(Cause("double-sigmoid", 0.8, (told,)),),
        remedy=Remedy(
            "Take the sigmoid out of the model: binary_cross_entropy_with_logits applies it itself.",
            {},
            "loss = F.binary_cross_entropy_with_logits(logits, targets)  # logits, not logits.sigmoid()",
        ),
    )


RULE = Rule(
    id="loss-on-probabilities",
    severity=Severity.WARNING,
    needs=("output_softmax_share|output_mean",),
    check=loss_on_probabilities,
    remedy="Give cross_entropy the logits.",
)
