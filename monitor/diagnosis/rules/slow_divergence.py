"""The training loss climbs away from its best level, a little every step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from monitor.diagnosis.context import (
    LOSS_NEAR_ZERO,
    LOSS_SETTINGS,
    early_steps,
    first_level,
    loss_drifts,
    loss_is_signed,
    loss_may_rise,
    loss_spikes,
    warmup_end,
)
from monitor.diagnosis.primitives import Drift, DriftSettings, level_around, rises, turning_row
from monitor.diagnosis.rule import Abstained, Finding, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, percent
from monitor.signals import Signal

LAST_ROWS = 3
"""Rows of a log of few rows that must all lie above what was before."""
MANY_LAST_ROWS = 5
"""So many of them make up for a third row before."""
ABOVE_ALL = 1.5
"""Multiple of the highest loss before above which these rows must lie."""
FAR_ABOVE_BEST = 2.0
"""Multiple of the second lowest loss before the lowest above which all rows after that lie, if they are not above all:
the lowest alone may be a lucky batch. Our judgement."""
ABOVE_ONE = 3.0
"""Multiple of a single row before, in a log that begins in the middle of a training."""
ALL_LOST = 0.25
"""Rise of the last third over the level around the lowest from which on a scattered rise counts, if all of that third
lies above the first row as well. Our judgement."""
MIDDLE_STEP = 100
"""First step of such a log."""
SPARSE_ROWS = 200
SPARSE_GAP = 5
"""Rows of an ended run up to which, and steps from one to the next from which on, each is taken to be a mean, so that
ten of them make a level; an evaluation with nearly every row means epochs. Our judgement."""
SPARSE_EFFECT = 0.25
SPARSE_EARLY = 0.35
SPARSE_NOISE = 2.0
"""Smallest rise there, relative, in warm-up, and in standard deviations of one row."""
HUMP = 4.0
"""Multiple of the early steps within which a hump that began in them must be over; our judgement."""
LOOK_BACK_ROWS = 100
"""Rows before the CUSUM's own onset in which the turn is looked for."""


def slow_divergence(
    signals: Signals,
    *,
    k: float = 1.0,
    h: float = 12.0,
    effect: float = 0.05,
    worrying: float = 0.1,
    lost: float = 0.5,
    early_effect: float = 0.6,
) -> Verdict:
    """The training loss climbs steadily above the best level it has reached.

    Why it matters: no single step looks wrong, so it can cost hours; z-scores against a trailing window follow the
    rise and never see it.

    Stays silent: on a warm-up hump (up to twice the warm-up only a rise beyond ``early_effect`` counts, then the bar
    falls over as long again; a lesser rise that turned in that time is information until four times as long); on
    restarts of the learning rate and logged changes of data, after which the best level is looked for anew; on wander
    that the run has recently shown and recovered from; on a rise within the noise of a single step; on a loss that is
    nearly zero; on a jump that loss-spike reports. Abstains on a loss often <= 0. In a log of 6 to 20 rows the last
    three or more, each above 1.5 times the highest before or all far above the best, show it, or in an ended run a
    scattered rise to above the start; in an ended run of up to 200 rows, each of many steps, ten of them make a level.
    Information where the loss is a policy's, which grows with the returns, or one of several that are minimised in
    turn, as a GAN's.

    Thresholds: ``k`` and ``h`` of the CUSUM in standard deviations; ``effect``, ``worrying``, ``lost`` and
    ``early_effect`` are relative rises of the median of ten losses over the best rolling median of 50: smallest that
    counts, warning, critical, and smallest in warm-up. k and h as simulated in the design notes (0 false events on four
    pure-noise controls); the rises are our judgement.

    Source: one-sided CUSUM, Page 1954, https://doi.org/10.1093/biomet/41.1-2.100.
    """
    loss = signals["train_loss"]
    settings = DriftSettings(k=k, h=h, effect=effect)
    if loss_is_signed(signals):
        return Abstained("the loss is often zero or negative, so a rise relative to its best level has no meaning")
    if (rows := int(np.isfinite(loss.value).sum())) <= settings.least:
        return (
            _of_few(signals, loss)
            if rows >= 2 * LAST_ROWS
            else Abstained(f"{count(len(loss), 'loss')} recorded, at least {2 * LAST_ROWS} are needed for a best level")
        )
    drifts = loss_drifts(signals, settings, early_effect=early_effect).drifts
    if not drifts and _is_sparse(signals, loss, rows):
        sparse = replace(settings, window=10, least=10, effect=SPARSE_EFFECT, noise_factor=SPARSE_NOISE)
        drifts = loss_drifts(signals, sparse, early_effect=SPARSE_EARLY).drifts
    learnt = LOSS_NEAR_ZERO * first_level(loss)
    told = (drift for drift in drifts if drift.peak_level > learnt and not _is_a_jump(signals, drift))
    return [_finding(signals, loss, drift, worrying, lost, early_effect) for drift in told]


def _of_few(signals: Signals, loss: Signal) -> Finding | None:
    """A log of 6 to 20 rows, often means over hundreds of steps: its last three rows or more lie above all before."""
    keep = np.isfinite(loss.value)
    step, value = loss.step[keep], loss.value[keep]
    highest = np.maximum.accumulate(value)
    lowest_ahead = np.minimum.accumulate(value[::-1])[::-1]
    above = lowest_ahead[1:] > ABOVE_ALL * highest[:-1]
    rows_before = LAST_ROWS if len(value) < LAST_ROWS + MANY_LAST_ROWS else 2
    starts = np.flatnonzero(above[rows_before - 1 : len(value) - LAST_ROWS]) + rows_before
    first = int(starts[0]) if len(starts) else _left_the_best(value)
    if step[0] >= MIDDLE_STEP and len(value) > MANY_LAST_ROWS and lowest_ahead[1] > ABOVE_ONE * value[0] > 0:
        first = 1
    if first is None:
        return _scattered(signals, step, value)
    best = float(np.min(value[:first]))
    peak = first + int(np.argmax(value[first:]))
    rise = float(value[peak] / best - 1)
    where = "above all before" if lowest_ahead[first] > highest[first - 1] else "far above the best"
    return Finding(
        summary=f"Training loss rose from {number(best)} to {number(float(value[peak]))} ({percent(rise)}) by step "
        f"{int(step[peak])}, and every row from step {int(step[first])} on is {where}",
        onset_step=int(step[first]),
        first_step=int(step[first + LAST_ROWS - 1]),
        last_step=int(step[-1]),
        severity=Severity.INFO if loss_may_rise(signals) else Severity.CRITICAL,
        evidence={"best_level": best, "highest_level": float(value[peak]), "rise": rise, "rows": len(value)},
    )


def _scattered(signals: Signals, step: np.ndarray, value: np.ndarray) -> Finding | None:
    """In an ended run, past its warm-up, the rows after the lowest rise as a whole until what was learnt is gone."""
    if signals.facts.state == "running" or step[-1] < 2 * (warmup_end(signals) or 0):
        return None
    turn = int(np.argmin(value)) + 1
    after = value[turn:]
    if not rises(after):
        return None
    third = after[-(len(after) // 3) :]
    best, last = level_around(value, turn - 1), float(np.median(third))
    if not (best > 0 and last > (1 + ALL_LOST) * best and float(third.min()) > value[0]):
        return None
    rise = last / best - 1
    return Finding(
        summary=f"Training loss climbed from {number(best)} to {number(last)} ({percent(rise)}) from step "
        f"{int(step[turn])} to {int(step[-1])}, above where it began",
        onset_step=int(step[turn]),
        first_step=int(step[-1]),
        last_step=int(step[-1]),
        severity=Severity.INFO if loss_may_rise(signals) else Severity.WARNING,
        evidence={"best_level": best, "last_level": last, "rise": rise, "rows": len(value)},
    )


def _is_sparse(signals: Signals, loss: Signal, rows: int) -> bool:
    """Whether an ended run shows few rows, each of many steps or of an epoch."""
    if rows > SPARSE_ROWS or signals.facts.state == "running":
        return False
    return float(np.median(np.diff(loss.step))) >= SPARSE_GAP or len(signals["val_loss"]) > rows // 2


def _left_the_best(value: np.ndarray) -> int | None:
    """Row after the lowest, if three or more follow and all lie far above even the second lowest before it, farther
    than the loss ever was above its lowest while it fell."""
    best = int(np.argmin(value))
    if best < LAST_ROWS or len(value) - best - 1 < LAST_ROWS:
        return None
    before, after = value[: best + 1], value[best + 1 :]
    lowest = np.minimum.accumulate(before)
    usual = float(np.divide(before, lowest, out=np.ones_like(before), where=lowest > 0).max())
    bar = max(FAR_ABOVE_BEST, usual**2) * float(np.partition(before, 1)[1])
    return best + 1 if float(after.min()) > bar > 0 else None


def _is_a_jump(signals: Signals, drift: Drift) -> bool:
    """Whether an abrupt rise that was not over yet explains the drift; then it is the spike rule's event."""
    spikes = loss_spikes(signals, LOSS_SETTINGS).spikes
    return any(drift.onset - 10 <= spike.onset <= drift.fired <= spike.last for spike in spikes)


def _finding(
    signals: Signals, loss: Signal, drift: Drift, worrying: float, lost: float, early_effect: float
) -> Finding:
    start = first_level(loss)
    # At `loss no better than at the start` everything learnt is gone, whatever the ratio.
    if drift.rise > lost or (drift.peak_level > start and drift.rise > 3 * worrying):
        severity = Severity.CRITICAL
    elif drift.rise > worrying:
        severity = Severity.WARNING
    else:
        severity = Severity.INFO
    if drift.over:  # nothing is lost of what came back
        severity = Severity.INFO if drift.rise < 2.5 * worrying else Severity.WARNING
    before = max(0, drift.onset - LOOK_BACK_ROWS)
    turned = before + turning_row(loss.value[before : drift.fired + 1])
    onset, end = int(loss.step[min(turned, drift.fired)]), int(loss.step[drift.last])
    early = early_steps(signals, loss.step)
    hump = onset < early and end < HUMP * early and drift.rise <= early_effect
    if (hump and "lr" in signals) or loss_may_rise(signals):
        severity = Severity.INFO
    outcome = f"and was back after {count(end - onset + 1, 'step')}" if drift.over else "and is not back"
    return Finding(
        summary=f"Training loss climbed from {number(drift.reference)} to {number(drift.peak_level)} "
        f"({percent(drift.rise)}) from step {onset} to {int(loss.step[drift.peak])} {outcome}",
        onset_step=onset,
        first_step=int(loss.step[drift.fired]),
        last_step=end,
        severity=severity,
        evidence={
            "best_level": drift.reference,
            "highest_level": drift.peak_level,
            "last_level": drift.last_level,
            "rise": drift.rise,
            "cusum": drift.score,
            "recovered": drift.over,
        },
    )


RULE = Rule(
    id="slow-divergence",
    severity=Severity.WARNING,
    needs=("train_loss",),
    check=slow_divergence,
    remedy="Halve the learning rate and go on from a checkpoint before the rise.",
)
