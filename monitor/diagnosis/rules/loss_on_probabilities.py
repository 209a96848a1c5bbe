"""The model's output is a softmax already, and the loss takes another one."""

from __future__ import annotations

import math

import numpy as np

from monitor.diagnosis.lasting import first_run
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number


def loss_on_probabilities(signals: Signals, *, share: float = 0.99, rows: int = 3, slack: float = 0.98) -> Verdict:
    """The output rows are probabilities, and the loss behaves as if they were taken for logits.

    Why it matters: cross-entropy of probabilities cannot fall below log(e + C - 1) - 1 for C classes (1.46 for ten),
    and its gradients are ten to a hundred times too small: the run learns slowly, to a floor, and looks healthy.

    Stays silent: where a loss has ever been below that floor, since then it takes the logarithm of the probabilities
    as it should; on outputs that sum to one now and then. Abstains while the loss is above the uniform guess.

    Thresholds: ``share`` of output rows that are non-negative and sum to one, in ``rows`` measurements running;
    ``slack``, multiple of the floor below which the loss clears the model. The floor is exact.

    Source: design notes F23; UMLAUT (Schoop et al. 2021), NeuraLint (Nikanjam et al. 2021).
    """
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


RULE = Rule(
    id="loss-on-probabilities",
    severity=Severity.WARNING,
    needs=("output_softmax_share",),
    check=loss_on_probabilities,
    remedy="Give cross_entropy the logits.",
)
