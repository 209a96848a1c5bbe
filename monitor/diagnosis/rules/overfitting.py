"""The validation loss rises from its best while the training loss goes on falling."""

from __future__ import annotations

import re

import numpy as np

from monitor.diagnosis.context import loss_is_signed
from monitor.diagnosis.lasting import first_run
from monitor.diagnosis.primitives.medians import MAD_TO_SD, running_median, window_medians
from monitor.diagnosis.primitives.trend import level_around, rises
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, percent
from monitor.signals import Signal

TRAIN_ROWS = 20
"""Training losses before an evaluation whose median is compared; fewer where the log is sparser."""
SCORE = re.compile(
    r"^(val|valid|validation|eval|test|dev)[/_. -].*?"
    r"(acc(uracy)?|f1|auc|auroc|map(50)?(-95)?|bleu|rouge\w*|em|exact_match|top[15]|dice|iou)($|[/_(])",
    re.IGNORECASE,
)
"""Names of validation scores of which more is better."""
SHARPLY = 0.25
"""Relative rise at which two evaluations above the best are enough, each above the one before: a short fine-tuning has
no third. Our judgement."""
TREND_MOST = 1000
"""Of more evaluations about as many at even distances are taken, since each is held against each."""
GAP_EVALUATIONS = 4
NO_USE_EVALUATIONS = 2
GUESS_TOLERANCE = 0.02
"""Relative distance below a blind guess that is no better than it, since a model that gives each input much the same
comes that far by what it knows of the classes' shares. Our judgement."""
ABOVE_ALL = 1.5
"""Multiple of the highest evaluation before, as in slow-divergence."""
LEARNT = 0.2
"""Share of its first level to which the training loss must have fallen while the validation loss has not moved."""


def overfitting(
    signals: Signals,
    *,
    evaluations: int = 3,
    rise: float = 0.02,
    worrying: float = 0.1,
    train_fall: float = 0.01,
    noise: float = 3.0,
) -> Verdict:
    """The validation loss has left its best value upward while the training loss kept falling.

    Why it matters: from the best evaluation on, compute makes the model worse on data it has not seen; the checkpoint
    to keep is an earlier one.

    Stays silent: while either loss is often zero or negative; on a validation loss that rises together with the
    training loss (that is a divergence); within the scatter between evaluations; after a new best. Information only: a
    rise below ``worrying``, and a larger one while a validation score such as accuracy still improves, since a
    classifier's loss then grows by over-confidence alone. A validation loss that never falls while the training loss
    goes to a fifth is told as well; one whose evaluations after the lowest rise as a whole; one that was never better
    than a blind guess by more than 2 %, twice running, where the training loss is below half of it; and one whose last
    four or more evaluations all lie above 1.5 times every one before.

    Thresholds: ``evaluations`` in a row above the best by the relative ``rise``, or the last two where each is above
    the one before and the last by a quarter; ``worrying``, relative rise that is a warning; ``train_fall``, relative
    fall of the training loss since the best evaluation (median of 20 losses); ``noise``, standard deviations of one
    evaluation by which the rise must exceed what the lowest of so many is below the level by chance. Our judgement;
    three evaluations as in losslint, a tenth as in SageMaker Debugger's Overfit rule.

    Source: Prechelt 1998, Early stopping - but when?, https://doi.org/10.1007/3-540-49430-8_3.
    """
    loss, val = _finite(signals["train_loss"]), _finite(signals["val_loss"])
    if loss_is_signed(signals) or (len(val) and float(val.value.min()) <= 0):
        return Abstained("a loss that is zero or negative has no relative rise")
    if no_use := _of_no_use(signals, loss, val):
        return no_use
    if len(val) < evaluations:
        return Abstained(f"{count(len(val), 'evaluation')} recorded, at least {evaluations} are needed")
    found = []
    bars, levels = np.maximum(rise, _beyond_chance(val.value, noise)), _train_levels(loss, val)
    for best, stop in _stretches(val.value):
        since = slice(best + 1, stop)
        raised = val.value[since] > val.value[best] * (1 + bars[since])
        fell = levels[since] < (1 - train_fall) * levels[best]
        first = first_run(raised & fell, evaluations)
        if first is not None:
            found.append(_finding(signals, levels, val, best, best + first + evaluations, stop - 1, worrying))
        elif _sharp(val.value[best:stop], raised & fell):
            found.append(_finding(signals, levels, val, best, stop - 1, stop - 1, worrying))
    return (
        found
        or _by_heart(signals, levels, val, rise)
        or _above_all(signals, levels, val, worrying, train_fall)
        or _trend(signals, levels, val, rise, worrying, train_fall)
    )


def _of_no_use(signals: Signals, loss: Signal, val: Signal) -> Finding | None:
    """What training has learnt helps nowhere else, from the first evaluation on: the answer is among its inputs, or
    evaluation asks something else."""
    classes = signals["log_classes"]
    if len(classes) == 0 or len(val) < NO_USE_EVALUATIONS:
        return None
    guess = float(classes.value[-1])
    train = _train_levels(loss, val)
    least = (1 - GUESS_TOLERANCE) * guess
    first = first_run((train < 0.5 * guess) & (val.value > least), NO_USE_EVALUATIONS)
    if first is None or float(val.value[: first + NO_USE_EVALUATIONS].min()) < least:
        return None
    fired = first + NO_USE_EVALUATIONS - 1
    return Finding(
        summary=f"Validation loss is {number(float(val.value[fired]))}, that of a blind guess {number(guess)}, while "
        f"training is at {number(float(train[fired]))}: what it learns helps nowhere else",
        onset_step=int(val.step[first]),
        first_step=int(val.step[fired]),
        last_step=int(val.step[-1]),
        severity=Severity.WARNING,
        evidence={"validation_loss": float(val.value[fired]), "blind_guess": guess, "train_loss": float(train[fired])},
        causes=(
            Cause("leak", 0.5, ("training is far better than a guess, and nothing of it holds on other data",)),
            Cause("unlike-losses", 0.3, ("evaluation may be given other inputs or targets than training",)),
        ),
        remedy=Remedy(
            "Look for the answer among the training inputs (targets that are not shifted, labels among the features), "
            "and evaluate on a training batch: a loss near the training's says that the data differ, a high one that "
            "the two losses do.",
        ),
    )


def _sharp(value: np.ndarray, counts: np.ndarray) -> bool:
    """Whether exactly two evaluations follow the best, each higher than the one before, the last by a quarter."""
    return (
        len(value) == 3 and bool(counts[-1]) and value[2] > (1 + SHARPLY) * value[0] and value[2] > value[1] > value[0]
    )


def _by_heart(signals: Signals, levels: np.ndarray, val: Signal, rise: float) -> list[Finding]:
    """The training loss is nearly nothing and the validation loss has not moved: learnt by heart."""
    if len(val) < GAP_EVALUATIONS or float(val.value.min()) < (1 - rise) * float(val.value[0]):
        return []
    start, end = float(levels[0]), float(levels[-1])
    if not end < LEARNT * start or not end < 0.5 * float(val.value[-1]):
        return []
    return [_finding(signals, levels, val, 0, len(val) - 1, len(val) - 1, worrying=0.0)]


def _above_all(signals: Signals, levels: np.ndarray, val: Signal, worrying: float, train_fall: float) -> list[Finding]:
    """The last evaluations, four or more, all lie far above every one before: whatever they scatter, validation is
    lost."""
    highest = np.maximum.accumulate(val.value)[:-1]
    lowest_ahead = np.minimum.accumulate(val.value[::-1])[::-1][1:]
    starts = np.flatnonzero(lowest_ahead > ABOVE_ALL * highest) + 1
    starts = starts[(starts >= GAP_EVALUATIONS) & (len(val) - starts >= GAP_EVALUATIONS)]
    if len(starts) == 0:
        return []
    first, last = int(starts[0]), len(val) - 1
    best = int(np.argmin(val.value[:first]))
    if not levels[last] < (1 - train_fall) * levels[best]:
        return []
    return [_finding(signals, levels, val, best, first + GAP_EVALUATIONS - 1, last, worrying)]


def _trend(
    signals: Signals, levels: np.ndarray, val: Signal, rise: float, worrying: float, train_fall: float
) -> list[Finding]:
    """The evaluations after the lowest scatter too much for any one to prove it, but together they rise, away from the
    median of the five around the lowest."""
    best = int(np.argmin(val.value))
    after = val.value[best + 1 :]
    after = after[:: max(1, -(-len(after) // TREND_MOST))]
    if not rises(after):
        return []
    level = float(np.median(after[-(len(after) // 3) :]) / level_around(val.value, best) - 1)
    last = len(val) - 1
    if level < rise or not levels[last] < (1 - train_fall) * levels[best]:
        return []
    return [_finding(signals, levels, val, best, last, last, worrying if level >= worrying else np.inf)]


def _finite(series: Signal) -> Signal:
    keep = np.isfinite(series.value)
    return Signal(series.name, series.step[keep], series.value[keep], series.unit)


def _stretches(value: np.ndarray) -> list[tuple[int, int]]:
    """(best, stop) rows: each best value so far, up to the next one."""
    lowest = np.minimum.accumulate(value)
    best = np.flatnonzero(np.concatenate([[True], value[1:] < lowest[:-1]]))
    return list(zip(best.tolist(), [*best[1:].tolist(), len(value)], strict=True))


def _beyond_chance(value: np.ndarray, noise: float) -> np.ndarray:
    """Relative rise over the lowest of the evaluations up to each one that their scatter does not explain; 0 with fewer
    than five.

    The lowest of n lies about sqrt(2 ln n) standard deviations below the level, ``noise`` more are asked for. One
    standard deviation is taken from second differences, which a steady fall and a steady rise leave alone.
    """
    bars = np.zeros(len(value))
    sd = MAD_TO_SD * running_median(np.abs(np.diff(np.log(value), n=2)))[2:] / np.sqrt(6)
    bars[4:] = np.expm1((noise + np.sqrt(2 * np.log(np.arange(5, len(value) + 1)))) * sd)
    return bars


def _train_levels(loss: Signal, val: Signal) -> np.ndarray:
    """float64[V]: median training loss between the evaluation before and each one; of at most 20, NaN without."""
    stop = np.searchsorted(loss.step, val.step, side="right")
    return window_medians(loss.value, np.maximum(stop - TRAIN_ROWS, np.append(0, stop[:-1])), stop)


def _finding(
    signals: Signals, levels: np.ndarray, val: Signal, best: int, fired: int, last: int, worrying: float
) -> Finding:
    worst = best + int(np.argmax(val.value[best : last + 1]))
    rose = float(val.value[worst] / val.value[best] - 1)
    level = float(np.median(val.value[max(fired, last - 2) : last + 1]) / val.value[best] - 1)
    score = _improving_score(signals, int(val.step[best]), int(val.step[last]))
    over = last < len(val) - 1
    severity = Severity.WARNING if level >= worrying and score is None and not over else Severity.INFO
    improving = f"; {score} still improves, so that the loss grows by over-confidence" if score else ""
    before, after = float(levels[best]), float(levels[last])
    best_step = int(val.step[best])
    return Finding(
        summary=f"Validation loss rose from its best, {number(float(val.value[best]))} at step {best_step}, to "
        f"{number(float(val.value[worst]))} ({percent(rose)}) while the training loss fell from {number(before)} to "
        f"{number(after)}{improving}",
        onset_step=best_step,
        first_step=int(val.step[fired]),
        last_step=int(val.step[last]),
        severity=severity,
        evidence={
            "best_validation_loss": float(val.value[best]),
            "worst_validation_loss": float(val.value[worst]),
            "rise": rose,
            "train_loss_at_best": before,
            "train_loss_at_last": after,
            "improving_score": score,
            "new_best_later": over,
        },
        causes=(Cause("overfitting", 0.9, supports=("the training loss falls and the validation loss rises",)),),
        remedy=Remedy(
            f"Keep the checkpoint nearest to step {best_step}. Stop there, or regularise: more or augmented data, "
            "dropout, weight decay, fewer epochs, a smaller model.",
            {"model.dropout": 0.1},
            "if val_loss < best:\n    best = val_loss; torch.save(model.state_dict(), 'best.pt')  # and stop after "
            "3 evaluations without a new best",
        ),
    )


def _improving_score(signals: Signals, best: int, last: int) -> str | None:
    """A validation score that is higher at step ``last`` than at the best validation loss; None without one."""
    for name in signals.names:
        if SCORE.search(name):
            score = _finite(signals[name])
            then, now = score.between(None, best).tail(1).value, score.between(best + 1, last).tail(3).value
            if len(then) and len(now) and _notably_better(float(then[0]), float(np.median(now))):
                return name
    return None


def _notably_better(then: float, now: float) -> bool:
    """Whether a score rose by more than rounding: what is missing to 1 (or 100) shrank by a twentieth."""
    best = next((top for top in (1.0, 100.0) if max(then, now) <= top), None)
    return now > 1.02 * then if best is None else best - now < 0.95 * (best - then)


RULE = Rule(
    id="overfitting",
    severity=Severity.WARNING,
    needs=("train_loss", "val_loss"),
    check=overfitting,
    remedy="Keep the checkpoint with the best validation loss.",
)
