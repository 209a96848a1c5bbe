"""Validation is far better than training ever gets: it may hold what was trained on, or the answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from monitor.diagnosis.context import LOSS_NEAR_ZERO, first_level, loss_is_signed
from monitor.diagnosis.lasting import first_run
from monitor.diagnosis.primitives.medians import window_medians
from monitor.diagnosis.remedies import configured
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number
from monitor.signals import Signal

ROWS = 20
"""Training losses after an evaluation that it is held against."""
HARDER: tuple[tuple[str, str, float], ...] = (
    ("model", "dropout", 0.0), ("loss", "label_smoothing", 0.0), ("loss", "z_loss", 0.0), ("task", "noise_std", 0.0),
    ("task", "shift_px", 0.0), ("adversarial", "epsilon", 0.0),
)  # fmt: skip
"""Values of a configuration that make the loss of training larger than that of validation."""


def validation_too_good(signals: Signals, *, share: float = 0.7, evaluations: int = 3) -> Verdict:
    """The validation loss is well below the training losses that come after it, evaluation after evaluation.

    Why it matters: a model does not do better on data it has never seen. Either validation holds the training data or
    the answer itself (a leak), so that its figure says nothing, or the two losses are not the same quantity.

    Stays silent: where training is made harder on purpose and the configuration says so (dropout, smoothed labels,
    noise, moved inputs); on losses near zero. A loss that falls fast is no reason: an evaluation is held against what
    training reaches after it. Always information.

    Thresholds: ``share`` of the median of the 20 training losses after it that an evaluation stays below, in
    ``evaluations`` running. Our judgement; UMLAUT warns at five points of accuracy.

    Source: Kapoor and Narayanan 2023, https://arxiv.org/abs/2207.07048 (leakage); UMLAUT (Schoop et al. 2021).
    """
    loss, val = signals["train_loss"], signals["val_loss"]
    if loss_is_signed(signals) or (len(val) and not (val.value > 0).all()):
        return Abstained("a loss that is zero or negative, or not finite, has no ratio")
    levels = _levels_after(loss, val)
    rows = np.flatnonzero(~np.isnan(levels))
    if len(rows) < evaluations:
        return Abstained(f"{count(len(rows), 'evaluation')} with {ROWS} training losses after it, not {evaluations}")
    levels = levels[rows]
    too_good = (val.value[rows] < share * levels) & (levels > LOSS_NEAR_ZERO * first_level(loss))
    first = first_run(too_good, evaluations)
    if first is None or _harder(signals):
        return None
    fired = first + evaluations - 1
    # The rule speaks when the last training loss that it needs has come.
    told = int(loss.step[np.searchsorted(loss.step, val.step[rows[fired]], side="right") + ROWS - 1])
    ratio = float(val.value[rows[fired]] / levels[fired])
    return Finding(
        summary=f"Validation loss is {number(float(val.value[rows[fired]]))} where training is at "
        f"{number(float(levels[fired]))} just after, in {evaluations} evaluations running",
        onset_step=int(val.step[rows[first]]),
        first_step=told,
        last_step=told,
        severity=Severity.INFO,
        evidence={"ratio": ratio, "evaluations": int(too_good.sum())},
        causes=(
            Cause("leak", 0.4, ("validation is better than training on what was seen already",)),
            Cause("unlike-losses", 0.4, ("dropout, augmentation or another reduction make training's loss larger",)),
        ),
        remedy=Remedy(
            "Evaluate on a part of the training data, in evaluation mode: near the validation loss, the two losses are "
            "unlike; near the training loss, look for duplicates and for the answer among the inputs.",
            {},
            "model.eval()\nprint(loss_of(training_batches), loss_of(validation_batches))",
        ),
    )


def _levels_after(loss: Signal, val: Signal) -> np.ndarray:
    """float64[V]: median of the first training losses after each evaluation; NaN without enough finite ones."""
    begin = np.searchsorted(loss.step, val.step, side="right")
    infinite = np.append(0, np.cumsum(~np.isfinite(loss.value)))
    levels = np.full(len(val), np.nan)
    full = np.flatnonzero(begin + ROWS <= len(loss))
    full = full[infinite[begin[full] + ROWS] == infinite[begin[full]]]
    levels[full] = window_medians(loss.value, begin[full], begin[full] + ROWS)
    return levels


def _harder(signals: Signals) -> bool:
    return any(_above(configured(signals, section, key), plain) for section, key, plain in HARDER)


def _above(value: Any, plain: float) -> bool:
    return isinstance(value, int | float) and value > plain


RULE = Rule(
    id="validation-too-good",
    severity=Severity.INFO,
    needs=("train_loss", "val_loss"),
    check=validation_too_good,
    remedy="Look for validation data among the training data.",
)
