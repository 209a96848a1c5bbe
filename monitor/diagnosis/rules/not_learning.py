"""The training loss is no better than at the start."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.context import first_level, is_reinforcement, loss_is_signed
from monitor.diagnosis.idle import (
    CONVERGED,
    LEAST_EPOCHS,
    LEAST_GUESS_STEPS,
    LEAST_ZEROS,
    at_the_largest,
    best_level,
    epochs,
    gradient_gone,
    no_advantage,
    no_step,
    nothing_recognised,
    spans_epochs,
)
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, percent
from monitor.signals import Signal

FEW_CLASSES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 100, 1000)
"""Numbers of classes whose uniform guess is recognised where the number is not recorded."""
GUESS_TOLERANCE = 0.005
LEAST_GUESSES = 3
CLOSE, LEAST_CLOSE = 0.001, 5
"""Tolerance, and rows, of a log that shows too little to span epochs but tells of a time long after the start: batches
that differ less than that have outputs that depend on no input. Our judgement."""
BAD_START = 1.5
"""Multiple of a guess that no row but the first is above where the loss comes down to it: outputs of a usual size.
Our judgement."""
TRAIN_BELOW = 0.02
"""Relative distance below the guess of the best level of the training loss, from which on something is learnt, if only
by heart. Our judgement."""
LEAST_EPOCHS_FLAT = 6
HARDLY = 0.05
"""Relative improvement over six epochs or more below which the loss has hardly moved. Our judgement."""
USUAL_UPDATE = 1e-4
"""Update-to-weight ratio that healthy trainings stay above, as in update-size."""
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
    if (same := no_advantage(signals)) is not None:
        return same
    if len(value) >= LEAST_ZEROS and not value.any() and not is_reinforcement(signals):
        return _nothing_to_learn(signals, step)
    for look in (no_step, _at_a_guess, at_the_largest, nothing_recognised, gradient_gone):
        if (found := look(signals, step, value)) is not None:
            return found
    if (found := _validation_at_a_guess(signals, value)) is not None:
        return found
    if len(value) < min(rows, frozen_rows):
        if epochs(signals) >= LEAST_EPOCHS_FLAT and len(value) >= LEAST_EPOCHS_FLAT:
            return _hardly(step, value)
        return Abstained(f"{count(len(value), 'loss')} recorded, at least {min(rows, frozen_rows)} are needed")
    if loss_is_signed(signals):
        return Abstained("the loss is often zero or negative, so no improvement of its level can be told")
    frozen = _frozen(step, value, frozen_rows)
    if frozen is not None:
        return None if _has_converged(signals, frozen) else frozen
    start, best = first_level(loss), best_level(value)
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
    if not spans_epochs(signals, step):
        late = step[0] >= LEAST_GUESS_STEPS or float(np.max(signals["epoch"].value, initial=0.0)) > LEAST_EPOCHS
        if len(value) < LEAST_CLOSE or not late:
            return None
        tolerance = CLOSE
    tail = value[1:] if len(value) > LEAST_GUESSES else value  # the first mean may hold a bad start
    classes = _guessed(tail, tolerance)
    if classes is None and len(value) >= 2 * LEAST_CLOSE and spans_epochs(signals, step):
        classes = _guessed(value[len(value) // 2 :], CLOSE)  # came down to it from a bad start, never below
        guess = np.log(classes) if classes else np.nan
        if not (tail.min() > (1 - CLOSE) * guess and tail.max() < BAD_START * guess):
            classes = None
    return None if classes is None else _guess(signals, "Training loss", step, classes, LEAST_GUESSES)


def _validation_at_a_guess(signals: Signals, train: np.ndarray) -> Finding | None:
    """Every validation loss within a tenth of a percent of a uniform guess, over epochs or a hundred steps, while the
    training loss, whose batches or dropout may scatter more, was at no time clearly below that guess."""
    val = signals["val_loss"]
    if len(val) < LEAST_CLOSE or not spans_epochs(signals, val.step):
        return None
    classes = _guessed(val.value, CLOSE)
    if classes is None or (len(train) and best_level(train) < (1 - TRAIN_BELOW) * np.log(classes)):
        return None
    return _guess(signals, "Validation loss", val.step, classes, LEAST_CLOSE)


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
