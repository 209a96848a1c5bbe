"""The input of a step is unlike all before."""

from __future__ import annotations

import math

import numpy as np

from monitor.diagnosis.context import loss_follows_policy, loss_is_signed
from monitor.diagnosis.inputs import CHANGE, LEAST_ROWS, WATCHED, Z, odd_rows, usual
from monitor.diagnosis.primitives import episodes
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, steps

MOST = 5
GAP = 10
"""Calm batches between odd ones of one finding."""
LEAST_VALUES = 64
"""Of an input that are not equal by chance: a few class labels are. Our judgement."""
LOSSES = 20
"""Before a loss of 0, none of which may be below a third of their median. Our judgement."""


def odd_input(signals: Signals, *, z: float = Z, change: float = CHANGE, lasting: int = 10) -> Verdict:
    """The first input of a step, its mean, spread, largest value or share of distinct values, leaves all it has shown.

    Why it matters: a broken batch (a scale of 1000, one token over and over, NaN) is seen here before any update; when
    it stays, the preprocessing has changed and the run trains on other data than before.

    Stays silent: within the scatter of batches; on changes of batch size or sequence length, which move these numbers;
    before 32 steps; on a loss that has come down to 0. Information for a few odd batches and where a policy makes its
    own data; a warning where the change lasts, where a value is not finite or a hundred times as large as ever,
    where all of an input's 64 values or more are one and the same, and where two batches have a loss and a gradient of
    exactly 0 among others of the usual loss.

    Thresholds: ``z``, robust standard deviations beyond the extremes of the batches before; ``change``, smallest
    relative change; ``lasting``, odd batches, with at most ten others between two of them. Our judgement.

    Source: design notes F17, F18; OLMo 2 (2025) on repeated n-grams behind gradient spikes.
    """
    if all(len(signals[name]) < LEAST_ROWS for name in WATCHED):
        return Abstained(f"fewer than {LEAST_ROWS} input fingerprints recorded")
    found = [f for name in WATCHED for f in _findings(signals, name, odd_rows(signals, name, z, change), lasting)]
    found += _nothing_to_learn(signals)
    found.sort(key=lambda f: (-(f.severity or Severity.INFO).rank, f.onset_step))
    told: list[Finding] = []
    for finding in found:  # one batch moves several of these numbers
        if not any(finding.onset_step <= t.last_step + GAP and t.onset_step <= finding.last_step + GAP for t in told):
            told.append(finding)
    return told[:MOST]


def _findings(signals: Signals, name: str, odd: np.ndarray, lasting: int) -> list[Finding]:
    rows = np.flatnonzero(odd)
    return [
        _finding(signals, name, rows[(rows >= first) & (rows <= last)], lasting) for first, last in episodes(rows, GAP)
    ]


def _nothing_to_learn(signals: Signals) -> list[Finding]:
    """Batches without a single target, exactly: no loss and no gradient, while those around have them as ever."""
    loss, norm = signals["train_loss"], signals["grad_norm_preclip"]
    if loss_is_signed(signals):
        return []
    rows = [row for row in np.flatnonzero(loss.value == 0).tolist() if _as_ever(loss.value[:row])]
    empty = np.intersect1d(loss.step[rows], norm.step[norm.value == 0])
    if len(empty) == 0:
        return []
    again = len(empty) > 1
    which = count(len(empty), "batch")
    return [
        Finding(
            summary=f"{which} from step {int(empty[0])} on without anything to learn: loss and gradient are exactly 0, "
            "and those around are as ever",
            onset_step=int(empty[0]),
            first_step=int(empty[1 if again else 0]),
            last_step=int(empty[-1]),
            severity=Severity.WARNING if again else Severity.INFO,
            evidence={"signal": "train_loss", "steps": empty[:20].tolist()},
            causes=(Cause("no-targets", 0.8, supports=("loss and gradient of the batch are exactly 0",)),),
            remedy=Remedy(
                "Look at the targets of these batches: a mask, an ignored index or a filter that leaves none.",
                {},
                "assert (targets != -100).any()",
            ),
        )
    ]


def _as_ever(loss: np.ndarray) -> bool:
    """Whether the last losses that are not 0 are all of one size."""
    last = loss[-2 * LOSSES :]
    last = last[last != 0][-LOSSES:]
    return len(last) == LOSSES and bool(np.isfinite(last).all()) and bool((last > np.median(last) / 3).all())


def _finding(signals: Signals, name: str, rows: np.ndarray, lasting: int) -> Finding:
    series, first, last = signals[name], int(rows[0]), int(rows[-1])
    value, before = float(series.value[first]), usual(series.value, first)
    stays = len(rows) >= lasting
    huge = name == "input_absmax" and value > 100 * abs(before)
    extreme = not math.isfinite(value) or huge or (name == "input_std" and value == 0 and _has_many(signals, first))
    which = steps(int(series.step[first]), int(series.step[last]))
    return Finding(
        summary=f"{name} of {which} is {number(value)}, {number(before)} is usual",
        onset_step=int(series.step[first]),
        first_step=int(series.step[rows[lasting - 1] if stays and not extreme else first]),
        last_step=int(series.step[last]),
        severity=Severity.WARNING if extreme or (stays and not loss_follows_policy(signals)) else Severity.INFO,
        evidence={"signal": name, "value": value, "usual": before},
        causes=(_cause(stays, name, value, before),),
        remedy=Remedy(
            f"Look at the inputs of {which} beside those before: scale, repetition, masking, decoding.",
            {},
            "print(inputs.float().mean(), inputs.float().std(), inputs.unique().numel())",
        ),
    )


def _has_many(signals: Signals, row: int) -> bool:
    """Whether an input of which all values are the same has many of them: one distinct value is a share of 1 / N."""
    share = signals["input_unique_share"]
    at = share.between(int(signals["input_std"].step[row]), None)
    return len(at) > 0 and bool(at.step[0] == signals["input_std"].step[row] and 0 < at.value[0] <= 1 / LEAST_VALUES)


def _cause(run: bool, name: str, value: float, usual: float) -> Cause:
    what = f"{name} is {number(value)} where {number(usual)} is usual"
    return Cause("data-change", 0.7, supports=(what, "it lasts")) if run else Cause("bad-batch", 0.7, supports=(what,))


RULE = Rule(
    id="odd-input",
    severity=Severity.WARNING,
    needs=("|".join(WATCHED),),
    check=odd_input,
    remedy="Look at the named batches.",
)
