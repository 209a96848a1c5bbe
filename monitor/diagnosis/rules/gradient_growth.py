"""The gradient norm climbs for hundreds of steps, before the loss shows anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from monitor.diagnosis.context import (
    DRIFT_SETTINGS,
    GRADIENT_SETTINGS,
    LOSS_SETTINGS,
    early_bar,
    gate_steps,
    gradient_signal,
    gradient_spikes,
    loss_drifts,
    loss_is_signed,
    loss_spikes,
)
from monitor.diagnosis.inputs import change_at
from monitor.diagnosis.primitives import Drift, DriftSettings, anchored_cusum, rows_at
from monitor.diagnosis.rule import Abstained, Cause, Finding, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, times
from monitor.signals import Signal

EARLY_EFFECT = 9.0
"""Smallest relative rise up to twice the warm-up, where norms fall and rise again. Our judgement."""
EARLY_LOSS = 0.6
"""The same for the loss, as in slow-divergence."""
STEADY_ROWS = 8
STEADY_GROWTH = 1.2
"""Rows in a row, to the last one, each so many times the one before: nothing healthy multiplies like that."""
ALREADY_GROWN = 30.0
"""Multiple over these rows that is told. Our judgement."""
WORRYING_RISE = 0.1
"""Relative rise of the loss that makes it a warning, as in slow-divergence."""


def gradient_growth(
    signals: Signals, *, k: float = 1.0, h: float = 12.0, effect: float = 1.0, rows: int = 100, follows: int = 500
) -> Verdict:
    """The norm of the gradient climbs steadily above the lowest level it has had.

    Why it matters: with clipping the loss says nothing yet while every step is cut shorter; a gradient that grows for
    hundreds of steps comes before a divergence that is cheaper to stop now.

    Stays silent: in warm-up; after restarts of the learning rate and logged changes of data, from which the lowest
    level is looked for anew; on a jump, which gradient-explosion tells of. Information unless the loss climbs while it
    grows, and for no reason in the inputs: gradients also grow in healthy trainings, as a classifier becomes sure or as
    a schedule decays.

    In a log of few rows a norm that grows by a fifth or more in each of its last eight is told.

    Thresholds: ``k`` and ``h`` of the CUSUM on the logarithm, in standard deviations; ``effect``, smallest relative
    rise of the median of ten norms over the lowest rolling median of 50; ``rows`` it must last; ``follows``, steps
    after its beginning in which a rise of the loss makes it a warning. k and h from the design notes; the others are
    our judgement.

    Source: design notes F02, F03; one-sided CUSUM, Page 1954, https://doi.org/10.1093/biomet/41.1-2.100.
    """
    norm = gradient_signal(signals)
    settings = DriftSettings(k=k, h=h, effect=effect, clear=effect / 2, scale_floor=GRADIENT_SETTINGS.scale_floor)
    if (finite := int(np.isfinite(norm.value).sum())) <= settings.least + rows:
        if (steady := _multiplies(norm)) is not None:
            return steady
        return Abstained(f"{count(finite, 'gradient norm')} recorded, more than {settings.least + rows} are needed")
    bars = early_bar(signals, norm.step, early=EARLY_EFFECT, later=effect)
    gates = rows_at(norm.step, gate_steps(signals)).tolist()
    for drift in anchored_cusum(norm.value, settings, effect=bars, gates=gates).drifts:
        if drift.last - drift.onset >= rows and not _is_a_jump(signals, drift):
            return _findings(signals, norm, drift, rows, follows)
    return None


def _multiplies(norm: Signal) -> Finding | None:
    """A log of few rows at whose end the norm grows by a factor in every row."""
    keep = np.isfinite(norm.value) & (norm.value > 0)
    step, value = norm.step[keep], norm.value[keep]
    slower = np.flatnonzero(value[1:] < STEADY_GROWTH * value[:-1])
    first = int(slower[-1]) + 1 if len(slower) else 0
    if len(value) - first <= STEADY_ROWS or value[-1] < ALREADY_GROWN * value[first]:
        return None
    ratio = float(value[-1] / value[first])
    grew = f"the gradient grew in each of {count(len(value) - first - 1, 'row')}, {times(ratio)} in all"
    return Finding(
        summary=f"The gradient norm grows in every row, from {number(float(value[first]))} at step {int(step[first])} "
        f"to {number(float(value[-1]))} ({times(ratio)}) at step {int(step[-1])}",
        onset_step=int(step[first]),
        first_step=int(step[first + STEADY_ROWS]),
        last_step=int(step[-1]),
        severity=Severity.WARNING,
        evidence={"lowest_level": float(value[first]), "highest_level": float(value[-1])},
        causes=(Cause("lr-too-high", 0.4, (grew,)), Cause("missing-zero-grad", 0.2, ("gradients may add up",))),
    )


def _is_a_jump(signals: Signals, drift: Drift) -> bool:
    """Whether an abrupt rise explains it."""
    spikes = gradient_spikes(signals, GRADIENT_SETTINGS).spikes
    return any(drift.onset - 10 <= spike.onset <= drift.fired for spike in spikes)


def _findings(signals: Signals, norm: Signal, drift: Drift, rows: int, follows: int) -> list[Finding]:
    """What was seen when the gradient had grown, and once more, as a warning, when the loss followed."""
    onset, peak = int(norm.step[drift.onset]), int(norm.step[drift.peak])
    ratio = drift.peak_level / drift.reference
    lr = signals["lr"].between(onset, peak).value
    decayed = len(lr) > 1 and bool(lr[-1] < 0.5 * lr[0])
    grew = f"the gradient grew {times(ratio)} over {count(peak - onset, 'step')}"
    causes = [Cause("sharper-valley", 0.4, (grew,), ("the loss has not risen",))]
    if decayed:
        causes.append(Cause("schedule", 0.3, ("the learning rate fell meanwhile, which lets the model settle",)))
    growth = Finding(
        summary=f"The gradient norm climbed from {number(drift.reference)} to {number(drift.peak_level)} "
        f"({times(ratio)}) from step {onset} to {peak}",
        onset_step=onset,
        first_step=int(norm.step[max(drift.fired, drift.onset + rows)]),
        last_step=int(norm.step[drift.last]),
        severity=Severity.INFO,
        evidence={"lowest_level": drift.reference, "highest_level": drift.peak_level},
        causes=tuple(causes),
    )
    rise = _loss_follows(signals, onset, min(onset + follows, peak))
    if rise is None:
        return [growth]
    began, told = rise
    warned = replace(
        growth,
        summary=f"{growth.summary}, and the loss rises from step {began}",
        first_step=max(growth.first_step, told),
        last_step=max(growth.last_step, told),
        severity=Severity.WARNING,
        causes=(Cause("lr-too-high", 0.5, (grew, f"the loss rose from step {began} on")),),
    )
    return [growth, warned]


def _loss_follows(signals: Signals, onset: int, until: int) -> tuple[int, int] | None:
    """(step at which the loss began to rise after ``onset``, step at which that was sure)."""
    if "train_loss" not in signals or loss_is_signed(signals):
        return None
    step = signals["train_loss"].step
    jumps = [spike.onset for spike in loss_spikes(signals, LOSS_SETTINGS).spikes]
    for drift in loss_drifts(signals, DRIFT_SETTINGS, early_effect=EARLY_LOSS).drifts:
        # A loss that jumps has a cause of that step, which loss-spike tells of; it did not climb after the gradient.
        jumped = any(drift.onset - 10 <= jump <= drift.fired for jump in jumps)
        jumped |= change_at(signals, int(step[drift.onset])) is not None
        if onset < int(step[drift.onset]) <= until and drift.rise > WORRYING_RISE and not jumped:
            return int(step[drift.onset]), int(step[drift.fired])
    return None


RULE = Rule(
    id="gradient-growth",
    severity=Severity.INFO,
    needs=("grad_norm_preclip",),
    check=gradient_growth,
    remedy="Lower the learning rate if the loss follows; look at the layer whose gradient grows.",
)
