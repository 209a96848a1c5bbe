"""The training loss is no better than at the start."""

from __future__ import annotations

import re

import numpy as np

from monitor.diagnosis.context import first_level, is_reinforcement, loss_follows_policy, loss_is_signed, returns_change
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, percent
from monitor.signals import Signal

_GROUP_SPREAD = re.compile(r"(?:[\w.-]+/)?reward_std")
"""As trl and what is built on it name the standard deviation of rewards within a group of answers."""
_ERROR_RATE = re.compile(r"(^|[/_])(wer|cer)$", re.I)
LEVEL_ROWS = 20
"""Rows of one short-term level."""
LEAST_ZEROS = 3
"""Losses, all exactly 0, from which on a run is said to have nothing to learn."""
FEW_CLASSES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 100, 1000)
"""Numbers of classes whose uniform guess is recognised where the number is not recorded."""
GUESS_TOLERANCE = 0.005
LEAST_GUESSES = 3
CLOSE, LEAST_CLOSE = 0.001, 5
"""Tolerance, and rows, of a log that shows too little to span epochs but tells of a time long after the start: batches
that differ less than that have outputs that depend on no input. Our judgement."""
LEAST_SAME_REWARDS = 10
"""Rows, and all there are, in which no reward differs from its group's: a few prompts in a row may be too easy or too
hard. Our judgement."""
BAD_START = 1.5
"""Multiple of a guess that no row but the first is above where the loss comes down to it: outputs of a usual size.
Our judgement."""
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
TRAIN_BELOW = 0.02
"""Relative distance below the guess of the best level of the training loss, from which on something is learnt, if only
by heart. Our judgement."""
LEAST_EPOCHS = 2.0
LEAST_GUESS_STEPS = 100
LEAST_EPOCHS_FLAT = 6
HARDLY = 0.05
"""Relative improvement over six epochs or more below which the loss has hardly moved. Our judgement."""
USUAL_UPDATE = 1e-4
"""Update-to-weight ratio that healthy trainings stay above, as in update-size."""
CONVERGED = 0.01
"""Of its first level, the gradient norm below which a loss that does not change is at its minimum. Our judgement."""
LEAST_DIGITS = 4
"""Significant digits that a log must show before equal numbers mean equal losses."""


def not_learning(
    signals: Signals,
    *,
    rows: int = 100,
    planned: float = 0.05,
    improvement: float = 0.01,
    frozen_rows: int = 15,
    chance: float = 0.02,
    chance_steps: int = 300,
) -> Verdict:
    """The training loss has not improved on its first level, or does not change at all.

    Why it matters: whatever the run costs, it buys nothing; the reason is nearly always a bug that takes minutes to
    find once looked for.

    Stays silent: on a loss that stands still because it has converged; before ``rows`` losses and the share ``planned``
    of the planned steps; once the best level was lower than the first by ``improvement``. Abstains on a loss that is
    often zero or negative (reinforcement learning).
    Information only, because fine-tuning a good model, adversarial pairs and denoising look alike, except in cases
    that no healthy run shows: the loss is exactly 0 from the start, without a gradient; it is the same number at
    every step, to all digits logged, though batches differ; it has stayed within ``chance`` of a uniform guess, log of
    the number of classes, for ``chance_steps`` steps; every validation loss is such a guess to a thousandth, and the
    training loss never was below it; the rewards of every group are the same from the first row to the last, so that
    no advantage differs from 0; learning rate and gradient norm are exactly 0; the loss rests at minus the log of the
    smallest number that it can take the log of; no word is recognised and the loss has stopped to fall; the loss has
    not fallen and the gradient norm has, to a hundredth.

    Thresholds: ``rows``, losses; ``planned``, share of the planned steps; ``improvement``, relative fall of the best
    median of 20 losses below the median of the first ten; ``frozen_rows``, equal losses in a row; ``chance``, relative
    distance from a uniform guess; ``chance_steps``, steps it must last. From the design notes (F27, F19) and our
    judgement.

    Source: Zhang et al. 2021, AutoTrainer, https://arxiv.org/abs/2103.01681 (slow convergence); a uniform guess:
    Karpathy 2019, A recipe for training neural networks.
    """
    loss = signals["train_loss"]
    keep = np.isfinite(loss.value)
    step, value = loss.step[keep], loss.value[keep]
    if (same := _no_advantage(signals)) is not None:
        return same
    if len(value) >= LEAST_ZEROS and not value.any() and not is_reinforcement(signals):
        return _nothing_to_learn(signals, step)
    for look in (_no_step, _at_a_guess, _at_the_largest, _nothing_recognised, _gradient_gone):
        if (found := look(signals, step, value)) is not None:
            return found
    if (found := _validation_at_a_guess(signals, value)) is not None:
        return found
    if len(value) < min(rows, frozen_rows):
        if _epochs(signals) >= LEAST_EPOCHS_FLAT and len(value) >= LEAST_EPOCHS_FLAT:
            return _hardly(step, value)
        return Abstained(f"{count(len(value), 'loss')} recorded, at least {min(rows, frozen_rows)} are needed")
    if loss_is_signed(signals):
        return Abstained("the loss is often zero or negative, so no improvement of its level can be told")
    frozen = _frozen(step, value, frozen_rows)
    if frozen is not None:
        return None if _has_converged(signals, frozen) else frozen
    start, best = first_level(loss), _best_level(value)
    if len(value) < rows or step[-1] < planned * (signals.facts.planned_steps or 0):
        return None
    if best < (1 - improvement) * start:
        return None
    return _flat(signals, step, start, best, chance, chance_steps)


def _nothing_to_learn(signals: Signals, step: np.ndarray) -> Finding | None:
    """A loss of exactly 0 from the first step on, unless there are gradients: non-finite ones are another rule's."""
    if signals["grad_norm_preclip"].value.any():
        return None
    return Finding(
        summary=f"Training loss is exactly 0 at every step from {int(step[0])} to {int(step[-1])}",
        onset_step=int(step[0]),
        first_step=int(step[LEAST_ZEROS - 1]),
        last_step=int(step[-1]),
        severity=Severity.WARNING,
        evidence={"zero_rows": len(step)},
        causes=(
            Cause(
                "no-targets",
                0.6,
                supports=(
                    "a loss of exactly 0 without any gradient: no target is left, or the loss was NaN and logged as 0",
                ),
            ),
            Cause("non-finite", 0.3, supports=("some trainers log NaN as 0",)),
        ),
        remedy=Remedy(
            "Print the targets of one batch: when all of them are masked (-100), the prompt template or the maximum "
            "length has cut the answers off. If the loss itself is NaN, train in bf16 or fp32 instead of fp16.",
            {},
            "print((labels != -100).sum(dim=1), loss)  # targets left in each sequence",
        ),
    )


def _no_advantage(signals: Signals) -> Finding | None:
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


def _no_step(signals: Signals, step: np.ndarray, value: np.ndarray) -> Finding | None:
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


def _at_the_largest(signals: Signals, step: np.ndarray, value: np.ndarray) -> Finding | None:
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


def _nothing_recognised(signals: Signals, step: np.ndarray, value: np.ndarray) -> Finding | None:
    """Speech or text that is never recognised: every word or letter wrong in all evaluations, and a loss that has
    stopped to fall, as of blanks alone."""
    for name in signals.names:
        rate = signals[name]
        if not _ERROR_RATE.search(name) or len(rate) < LEAST_RECOGNITIONS or not _spans_epochs(signals, rate.step):
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


def _gradient_gone(signals: Signals, step: np.ndarray, value: np.ndarray) -> Finding | None:
    """A loss as high as at the start whose gradient has come down to a hundredth: what is left to learn reaches no
    weight. Batches that differ in their losses still have gradients, one against another, where all there is has been
    learnt; one batch of all the data has none."""
    norm = signals["grad_norm_preclip"]
    if min(len(value), len(norm)) < GONE_ROWS or loss_is_signed(signals) or is_reinforcement(signals):
        return None
    start, end = float(np.median(norm.value[:10])), float(np.median(norm.value[-10:]))
    first, last = float(np.median(value[:10])), float(np.median(value[-10:]))
    if not 0 < end < CONVERGED * start or _best_level(value) < (1 - GONE_FALL) * first or last > 1.5 * first:
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
                    f"the gradient norm is {percent(end / start)} of what it was",
                    "as of outputs that are constant",
                ),
            ),
        ),
    )


def _frozen(step: np.ndarray, value: np.ndarray, rows: int) -> Finding | None:
    """The same loss to all digits, to the end of what was recorded."""
    changes = np.flatnonzero(value[1:] != value[:-1])
    first = int(changes[-1]) + 1 if len(changes) else 0
    if len(value) - first < rows or value[-1] == 0 or _digits(value) < LEAST_DIGITS:
        return None
    return Finding(
        summary=f"Training loss is {number(float(value[-1]))} at every step from {int(step[first])} on, to all digits "
        "that were logged",
        onset_step=int(step[first]),
        first_step=int(step[first + rows - 1]),
        last_step=int(step[-1]),
        severity=Severity.WARNING,
        evidence={"loss": float(value[-1]), "equal_rows": len(value) - first},
        causes=(
            Cause(
                "loss-independent-of-data",
                0.8,
                supports=("batches differ and the loss does not: it depends on neither data nor weights",),
            ),
        ),
        remedy=Remedy(
            "Look at what the loss is computed from: outputs saturated or constant, a mask that covers every target, a "
            "value that is logged but never renewed, weights that are all NaN or zero.",
            {},
            "print(outputs.std(), targets.unique(return_counts=True), loss)  # for two batches",
        ),
    )


def _has_converged(signals: Signals, frozen: Finding) -> bool:
    """Whether the loss stands still at a minimum: it came down to where it is, and so did the gradient, to a hundredth
    of what it was and not to 0, which would be a loss that nothing leads back from."""
    norm = signals["grad_norm_preclip"]
    start, end = first_level(norm), norm.between(frozen.onset_step, None).value
    if len(end) == 0 or not float(frozen.evidence["loss"]) < first_level(signals["train_loss"], 1):
        return False
    return bool(0 < np.median(end) < CONVERGED * start)


def _epochs(signals: Signals) -> float:
    """Passes over the data that the log spans; 0 where it does not say."""
    epoch = signals["epoch"].value
    epoch = epoch[np.isfinite(epoch)]
    return float(epoch.max() - epoch.min()) if len(epoch) else 0.0


def _hardly(step: np.ndarray, value: np.ndarray) -> Finding | None:
    """A mean loss per epoch that has hardly moved in several of them."""
    start, best = float(value[0]), float(value.min())
    if best < (1 - HARDLY) * start:
        return None
    return Finding(
        summary=f"Training loss went from {number(start)} to {number(best)} ({percent(best / start - 1)}) in "
        f"{count(len(value), 'epoch')}",
        onset_step=int(step[0]),
        first_step=int(step[-1]),
        last_step=int(step[-1]),
        severity=Severity.INFO,
        evidence={"first_level": start, "best_level": best},
        causes=(Cause("unknown", 1.0, against=("too few rows to tell a cause",)),),
    )


def _at_a_guess(signals: Signals, step: np.ndarray, value: np.ndarray) -> Finding | None:
    """Every loss within half a percent of a uniform guess among a few classes, over epochs or a hundred steps; within a
    tenth of one in a shorter piece of a log, epochs or a hundred steps after the start."""
    if len(value) < LEAST_GUESSES:
        return None
    tolerance = GUESS_TOLERANCE
    if not _spans_epochs(signals, step):
        late = step[0] >= LEAST_GUESS_STEPS or float(np.max(signals["epoch"].value, initial=0.0)) > LEAST_EPOCHS
        if len(value) < LEAST_CLOSE or not late:
            return None
        tolerance = CLOSE
    tail = value[1:] if len(value) > LEAST_GUESSES else value  # the first mean may hold a bad start
    classes = _guessed(tail, tolerance)
    if classes is None and len(value) >= 2 * LEAST_CLOSE and _spans_epochs(signals, step):
        classes = _guessed(value[len(value) // 2 :], CLOSE)  # came down to it from a bad start, never below
        guess = np.log(classes) if classes else np.nan
        if not (tail.min() > (1 - CLOSE) * guess and tail.max() < BAD_START * guess):
            classes = None
    return None if classes is None else _guess(signals, "Training loss", step, classes, LEAST_GUESSES)


def _validation_at_a_guess(signals: Signals, train: np.ndarray) -> Finding | None:
    """Every validation loss within a tenth of a percent of a uniform guess, over epochs or a hundred steps, while the
    training loss, whose batches or dropout may scatter more, was at no time clearly below that guess."""
    val = signals["val_loss"]
    if len(val) < LEAST_CLOSE or not _spans_epochs(signals, val.step):
        return None
    classes = _guessed(val.value, CLOSE)
    if classes is None or (len(train) and _best_level(train) < (1 - TRAIN_BELOW) * np.log(classes)):
        return None
    return _guess(signals, "Validation loss", val.step, classes, LEAST_CLOSE)


def _spans_epochs(signals: Signals, step: np.ndarray) -> bool:
    return _epochs(signals) >= LEAST_EPOCHS or bool(step[-1] - step[0] >= LEAST_GUESS_STEPS)


def _guessed(value: np.ndarray, tolerance: float) -> int | None:
    """The number of classes a uniform guess among which all losses are, to a relative ``tolerance``."""
    for classes in FEW_CLASSES:
        guess = float(np.log(classes))
        if (np.abs(value - guess) < tolerance * guess).all():
            return classes
    return None


def _guess(signals: Signals, what: str, step: np.ndarray, classes: int, least: int) -> Finding:
    guess = float(np.log(classes))
    return Finding(
        summary=f"{what} stays at {number(guess)}, that of a uniform guess between {classes} classes, "
        f"in all {count(len(step), 'row')}",
        onset_step=int(step[0]),
        first_step=int(step[least - 1]),
        last_step=int(step[-1]),
        severity=Severity.WARNING,
        evidence={"uniform_guess": guess, "classes": classes, "rows": len(step)},
        causes=_causes(signals, True),
    )


def _digits(value: np.ndarray) -> int:
    """Significant digits that most of the distinct values show; 17 for unrounded floats."""
    shown = [
        len(f"{x!r}".replace(".", "").replace("-", "").lstrip("0").split("e")[0])
        for x in np.unique(value)[:200].tolist()
    ]
    return int(np.median(shown)) if shown else 0


def _best_level(value: np.ndarray) -> float:
    """The lowest median of 20 losses, windows half overlapping."""
    starts = range(0, max(1, len(value) - LEVEL_ROWS + 1), LEVEL_ROWS // 2)
    return min(float(np.median(value[start : start + LEVEL_ROWS])) for start in starts)


def _flat(signals: Signals, step: np.ndarray, start: float, best: float, chance: float, chance_steps: int) -> Finding:
    guess = _uniform_guess(signals["log_classes"])
    at_chance = guess is not None and abs(best - guess) < chance * guess and step[-1] - step[0] >= chance_steps
    what = f", that of a uniform guess ({number(guess)})" if at_chance and guess is not None else ""
    return Finding(
        summary=f"Training loss has not improved in {int(step[-1] - step[0]) + 1} steps: {number(start)} at the start, "
        f"{number(best)} at best ({percent(best / start - 1)}){what}",
        onset_step=int(step[0]),
        first_step=int(step[-1]),
        last_step=int(step[-1]),
        severity=Severity.WARNING if at_chance else Severity.INFO,
        evidence={"first_level": start, "best_level": best, "uniform_guess": guess},
        causes=_causes(signals, at_chance),
    )


def _uniform_guess(log_classes: Signal) -> float | None:
    value = log_classes.value[np.isfinite(log_classes.value) & (log_classes.value > 0)]
    return float(np.median(value)) if len(value) else None


def _causes(signals: Signals, at_chance: bool) -> tuple[Cause, ...]:
    ratio = signals["update_to_weight_ratio"].tail(50).value
    ratio = ratio[np.isfinite(ratio)]
    norm = signals["grad_norm_preclip"].tail(50).value
    norm = norm[np.isfinite(norm)]
    causes = []
    if len(norm) and float(np.median(norm)) == 0:
        causes.append(Cause("no-gradient", 0.8, supports=("the gradient norm is exactly 0",)))
    if len(ratio) and float(np.median(ratio)) < USUAL_UPDATE:
        causes.append(
            Cause("lr-too-low", 0.7, supports=(f"an update changes the weights by {number(float(np.median(ratio)))}",))
        )
    if at_chance and not causes:
        causes.append(
            Cause(
                "labels-without-signal",
                0.6,
                supports=("gradients flow and updates are of a normal size, and the loss stays that of a guess",),
                against=("not recorded: whether the model can learn one batch by heart, which would settle it",),
            )
        )
    return tuple(causes) or (Cause("unknown", 1.0, against=("no cause has evidence for it",)),)


RULE = Rule(
    id="not-learning",
    severity=Severity.INFO,
    needs=("train_loss",),
    check=not_learning,
    remedy="Try to learn one batch by heart. If that works, look at how inputs and labels are paired; if not, at the "
    "loss, the parameters given to the optimizer and the learning rate.",
)
