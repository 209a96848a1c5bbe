"""Signs that nothing is learnt, each of which no healthy run shows: what the rule not-learning looks for one by one."""

from __future__ import annotations

import re

import numpy as np

from monitor.diagnosis.context import is_reinforcement, loss_follows_policy, loss_is_signed, returns_change
from monitor.diagnosis.rule import Cause, Finding, Remedy, Severity
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number

_GROUP_SPREAD = re.compile(r"(?:[\w.-]+/)?reward_std")
"""As trl and what is built on it name the standard deviation of rewards within a group of answers."""
_ERROR_RATE = re.compile(r"(^|[/_])(wer|cer)$", re.I)
LEVEL_ROWS = 20
"""Rows of one short-term level."""
LEAST_ZEROS = 3
"""Losses, all exactly 0, or learning rates and gradient norms, from which on a run is said to learn nothing."""
LEAST_SAME_REWARDS = 10
"""Rows, and all there are, in which no reward differs from its group's: a few prompts in a row may be too easy or too
hard. Our judgement."""
SMALLEST = (1.1754944e-38, 1e-7, 1.1920929e-7, 1e-12)
"""Float32's smallest number, as Caffe has it; Keras' epsilon, above 0 and, rounded to float32, below 1; and another
usual one: the loss of a batch whose targets all got no probability at all."""
LEAST_LARGEST, LARGEST_TOLERANCE = 2, 2e-6
LEAST_RECOGNITIONS, ERRED, LEVEL = 3, 0.99, 0.98
"""Evaluations, the error rate in each, and the ratio of the loss of the last third to that of the middle one from which
on it has stopped to fall. Our judgement."""
GONE_ROWS, GONE_FALL = 30, 0.02
"""Rows from which on a gradient is told to be gone; the relative fall of the loss that it may have led to, and the
least standard deviation of its last rows."""
LEAST_EPOCHS = 2.0
LEAST_GUESS_STEPS = 100
CONVERGED = 0.01
"""Of its first level, the gradient norm below which a loss that does not change is at its minimum. Our judgement."""


def best_level(value: np.ndarray) -> float:
    """The lowest median of 20 losses, windows half overlapping."""
    starts = range(0, max(1, len(value) - LEVEL_ROWS + 1), LEVEL_ROWS // 2)
    return min(float(np.median(value[start : start + LEVEL_ROWS])) for start in starts)


def epochs(signals: Signals) -> float:
    """Passes over the data that the log spans; 0 where it does not say."""
    epoch = signals["epoch"].value
    epoch = epoch[np.isfinite(epoch)]
    return float(epoch.max() - epoch.min()) if len(epoch) else 0.0


def spans_epochs(signals: Signals, step: np.ndarray) -> bool:
    """Whether rows at these steps are of epochs apart, or a hundred steps where the log does not count epochs."""
    return epochs(signals) >= LEAST_EPOCHS or bool(step[-1] - step[0] >= LEAST_GUESS_STEPS)


def no_advantage(signals: Signals) -> Finding | None:
    """Reinforcement learning on groups of answers whose rewards never differ, or without any gradient at all. A loss
    of 0 alone is that of a healthy first step: the advantages of a group add up to 0."""
    spread = next((signals[name] for name in signals.names if _GROUP_SPREAD.fullmatch(name)), None)
    norm = signals["grad_norm_preclip"]
    if spread is not None and len(spread) >= LEAST_SAME_REWARDS and not spread.value.any():
        rows, told = spread, f"{spread.name} is exactly 0 in all {count(len(spread), 'row')}"
    elif loss_follows_policy(signals) and len(norm) >= LEAST_SAME_REWARDS and not norm.value.any():
        half = int(norm.step[len(norm) // 2])
        if signals["train_loss"].value.any() or returns_change(signals, half) > 0:  # a norm that is not measured
            return None
        rows, told = norm, f"loss and gradient norm are exactly 0 in all {count(len(norm), 'row')}"
    else:
        return None
    return Finding(
        summary=f"Nothing is learnt from the rewards: {told}",
        onset_step=int(rows.step[0]),
        first_step=int(rows.step[LEAST_SAME_REWARDS - 1]),
        last_step=int(rows.step[-1]),
        severity=Severity.WARNING,
        evidence={"signal": rows.name, "zero_rows": len(rows)},
        causes=(
            Cause(
                "no-gradient",
                0.8,
                supports=("answers that are all worth the same have advantages of 0, and those no gradient",),
            ),
        ),
        remedy=Remedy(
            "Print the reward of each answer in a group: a pattern that never matches gives all of them 0. Begin with "
            "prompts that the model answers sometimes, reward parts of an answer, sample more of them, hotter.",
            {},
            "print(rewards.view(-1, num_generations))  # each row must hold different numbers",
        ),
    )


def no_step(signals: Signals, step: np.ndarray, value: np.ndarray) -> Finding | None:
    """Learning rate and gradient norm exactly 0 in every row. A norm of 0 alone may be one that nobody measured."""
    norm, lr = signals["grad_norm_preclip"].value, signals["lr"].value
    if min(len(norm), len(lr), len(value)) < LEAST_ZEROS or norm.any() or lr.any() or not value.any():
        return None
    return Finding(
        summary=f"Learning rate and gradient norm are exactly 0 in all {count(len(value), 'row')}: no step was taken",
        onset_step=int(step[0]),
        first_step=int(step[LEAST_ZEROS - 1]),
        last_step=int(step[-1]),
        severity=Severity.WARNING,
        evidence={"zero_rows": len(value)},
        causes=(
            Cause("no-gradient", 0.6, supports=("the gradient norm is exactly 0",)),
            Cause("scheduler-never-stepped", 0.4, supports=("the learning rate is 0, as when every step is skipped",)),
        ),
    )


def at_the_largest(signals: Signals, step: np.ndarray, value: np.ndarray) -> Finding | None:
    """The loss of a probability of 0 that was replaced by the smallest number, in the last rows."""
    for smallest in SMALLEST:
        largest = -float(np.log(smallest))
        off = np.flatnonzero(np.abs(value - largest) > LARGEST_TOLERANCE * largest)
        first = int(off[-1]) + 1 if len(off) else 0
        if len(value) - first >= LEAST_LARGEST:
            return Finding(
                summary=f"Training loss is {largest:.6g} from step {int(step[first])} to the last step recorded: that "
                f"of targets with a probability of 0, minus the log of {smallest:.3g}",
                onset_step=int(step[first]),
                first_step=int(step[first + LEAST_LARGEST - 1]),
                last_step=int(step[-1]),
                severity=Severity.CRITICAL,
                evidence={"loss": largest, "rows": len(value) - first},
                causes=(
                    Cause("lr-too-high", 0.6, supports=("the outputs are so large that the softmax is 0 or 1",)),
                    Cause("non-finite", 0.3, supports=("a NaN among them gives the same",)),
                ),
            )
    return None


def nothing_recognised(signals: Signals, step: np.ndarray, value: np.ndarray) -> Finding | None:
    """Speech or text that is never recognised: every word or letter wrong in all evaluations, and a loss that has
    stopped to fall, as of blanks alone."""
    for name in signals.names:
        rate = signals[name]
        if not _ERROR_RATE.search(name) or len(rate) < LEAST_RECOGNITIONS or not spans_epochs(signals, rate.step):
            continue
        share = rate.value / 100 if rate.value.min() > 10 * ERRED else rate.value
        third = len(value) // 3
        if third < LEAST_RECOGNITIONS or not (share >= ERRED).all():
            continue
        if float(np.median(value[-third:])) < LEVEL * float(np.median(value[third : 2 * third])):
            continue
        return Finding(
            summary=f"{name} is {number(float(rate.value[-1]))} in all {count(len(rate), 'evaluation')}, and the loss "
            f"stays at {number(float(np.median(value[-third:])))}: nothing is recognised",
            onset_step=int(rate.step[0]),
            first_step=int(rate.step[LEAST_RECOGNITIONS - 1]),
            last_step=int(step[-1]),
            severity=Severity.WARNING,
            evidence={"signal": name, "evaluations": len(rate)},
            causes=(Cause("labels-without-signal", 0.5, supports=("the outputs may be blanks alone",)),),
        )
    return None


def gradient_gone(signals: Signals, step: np.ndarray, value: np.ndarray) -> Finding | None:
    """A loss as high as at the start whose gradient has come down to a hundredth: what is left to learn reaches no
    weight. Batches that differ in their losses still have gradients, one against another, where all there is has been
    learnt; one batch of all the data has none."""
    norm = signals["grad_norm_preclip"]
    if min(len(value), len(norm)) < GONE_ROWS or loss_is_signed(signals) or is_reinforcement(signals):
        return None
    start, end = float(np.median(norm.value[:10])), float(np.median(norm.value[-10:]))
    first, last = float(np.median(value[:10])), float(np.median(value[-10:]))
    if not 0 < end < CONVERGED * start or best_level(value) < (1 - GONE_FALL) * first or last > 1.5 * first:
        return None
    if float(np.std(value[-10:])) < GONE_FALL * last:
        return None
    return Finding(
        summary=f"Training loss has not improved ({number(first)} at the start, {number(last)} at the end) while the "
        f"gradient norm fell from {number(start)} to {number(end)}",
        onset_step=int(step[0]),
        first_step=int(step[GONE_ROWS - 1]),
        last_step=int(step[-1]),
        severity=Severity.WARNING,
        evidence={"first_level": first, "last_level": last, "first_norm": start, "last_norm": end},
        causes=(
            Cause(
                "no-gradient",
                0.7,
                supports=(
                    f"the gradient norm is {100 * end / start:.2g} % of what it was",
                    "as of outputs that are constant",
                ),
            ),
        ),
    )
