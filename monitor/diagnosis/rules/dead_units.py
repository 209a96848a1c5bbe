"""Units of a rectifying activation that never fire."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.context import when_between
from monitor.diagnosis.lasting import Stretch, grouped, measured, named, stretches
from monitor.diagnosis.rule import Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import percent
from monitor.signals import LayerMatrix

LOSSES = 20
FEW_SAMPLES = 4
FELL = 0.1
"""Relative fall of the median of as many losses, from before units died to when it was told. Our judgement."""


def dead_units(
    signals: Signals, *, dead: float = 0.5, rising: float = 0.2, rows: int = 2, most: float = 0.8
) -> Verdict:
    """More than half of a layer's ReLU units stay at zero for whole batches, or ever more of them do.

    Why it matters: a unit that never fires gets no gradient and cannot come back by itself; the layer shrinks.

    Stays silent: on a share that is stable below ``dead``: a third is common in healthy networks. Information where it
    is above ``dead`` from the first steps and the loss may be learning all the same, or has risen above ``rising``, or
    above ``dead`` while the loss fell and not to ``most``: the layer does its work with the units that it has left. So
    too in batches of up to four samples, for all of which a unit may well be zero and fire for the next.

    Thresholds: ``dead``, share of units within 1e-6 of zero for all samples of a step, in ``rows`` measurements
    running, after it was lower; ``rising``, share that is told when it has grown by as much; ``most``, share that is
    told in any case (our judgement); a loss has fallen that is lower by a tenth, medians of 20 rows. Sources accept a
    share of 50 % (SageMaker Debugger, TheDeepChecker) to 70 % (AutoTrainer).

    Source: SageMaker Debugger's DeadRelu; Lu et al. 2020, https://arxiv.org/abs/1903.06733.
    """
    matrix = signals.modules("dead_units_share")
    assert matrix is not None  # the engine asks for it
    value = measured(matrix)
    found = stretches(matrix, value > dead, rows)
    if found:
        return [_finding(signals, matrix, value, together, dead, most) for together in grouped(found)]
    lowest = np.fmin.accumulate(value, axis=0)
    grown = stretches(matrix, (value > rising) & (value > lowest + rising), max(rows, 3))
    return [_finding(signals, matrix, value, together, dead, most) for together in grouped(grown)]


def _finding(
    signals: Signals, matrix: LayerMatrix, value: np.ndarray, together: list[Stretch], dead: float, most: float
) -> Finding:
    first = together[0]
    share = float(np.nanmax(value[matrix.step >= first.onset, first.column]))
    before = value[matrix.step < first.onset, first.column]
    before = before[np.isfinite(before)]
    became = len(before) > 0 and float(np.median(before)) < 0.5 * share
    usual = float(np.median(before)) if len(before) else float("nan")
    sudden = became and float(before[-1]) < 0.5 * share
    # Units are counted seldom, and what kills them at once shows in the loss at once.
    seen = matrix.step[(matrix.step < first.onset) & np.isfinite(value[:, first.column])]
    onset = (when_between(signals, int(seen[-1]), first.onset) if sudden else None) or first.onset
    samples = signals["samples"].value
    few = len(samples) > 0 and float(np.median(samples)) <= FEW_SAMPLES
    harmless = few or (share < most and _loss_fell(signals, int(seen[-1]) if len(seen) else first.onset, first.told))
    how = f", after {100 * usual:.0f} %" if became else " from the first steps on"
    return Finding(
        summary=f"{100 * share:.0f} % of the units of {named([s.layer for s in together])} are dead: zero for every "
        f"sample{how}",
        onset_step=onset,
        first_step=first.told,
        last_step=max(s.last for s in together),
        severity=Severity.WARNING if share > dead and became and not harmless else Severity.INFO,
        layer=first.layer,
        evidence={"dead_share": share, "before": usual if len(before) else None, "layer_reason": "the first of them"},
        causes=(_cause(became, sudden, usual, share),),
        remedy=Remedy(
            "Go back to before it, with a third of the learning rate; or use LeakyReLU or GELU, He initialisation and "
            "biases of zero.",
            {},
            "model.act = nn.LeakyReLU(0.01)",
        ),
    )


def _loss_fell(signals: Signals, before: int, told: int) -> bool:
    loss = signals["train_loss"]
    was, now = loss.between(None, before).tail(LOSSES).value, loss.between(before + 1, told).tail(LOSSES).value
    was, now = was[np.isfinite(was)], now[np.isfinite(now)]
    if len(was) == 0 or len(now) == 0:
        return False
    return bool(np.median(now) < np.median(was) - FELL * abs(np.median(was)))


def _cause(became: bool, sudden: bool, usual: float, share: float) -> Cause:
    if not became:
        return Cause("poor-initialisation", 0.6, supports=("they were dead from the first steps on",))
    if sudden:
        return Cause(
            "dying-relu", 0.7, supports=(f"the share went {percent(share - usual)} at once, as after one large update",)
        )
    return Cause("dying-relu", 0.7, supports=("the share grew over many steps",))


RULE = Rule(
    id="dead-units",
    severity=Severity.WARNING,
    needs=("modules:dead_units_share",),
    check=dead_units,
    remedy="Lower the learning rate, or use an activation that does not die.",
)
