"""The model gives every sample the same output."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.lasting import first_run
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number

CAUSES: tuple[tuple[str, str, str], ...] = (
    ("dead_units_share", "dying-relu", "units that never fire"),
    ("saturated_units_share", "saturation", "units at their bounds"),
)
MOST = 0.9
"""Share of a module's units that are dead or saturated from which on nothing gets through it. Our judgement."""


def constant_output(signals: Signals, *, share: float = 1e-3, rows: int = 3) -> Verdict:
    """The output has come to be the same for all samples of a batch, to a thousandth, and stays so.

    Why it matters: the model does not look at its input any more. The loss is that of the best constant, which may look
    like slow learning; most often the units of a layer are all dead or saturated, and no gradient leads back.

    Stays silent: on outputs that were alike from the first measurement on, as of a last layer that begins at zero; on
    outputs that differ again at the end; on inputs that are all alike; on outputs that differ by little and always did,
    such as a number far from zero. Not seen: a model that gives the mean and noise of its own, as after a squared error
    of [B, 1] and [B]; codes that differ by what their views differ.

    Thresholds: ``share`` of the largest spread before, and of the largest output, below which the spread over samples
    lies in ``rows`` measurements or more, to the end. Our judgement: healthy trainings of ours lie above 0.01 of each.

    Source: Lu et al. 2020, https://arxiv.org/abs/1903.06733 (a dead network is a constant function).
    """
    spread = signals["output_spread"]
    if len(spread) <= rows:
        return Abstained(f"{count(len(spread), 'spread')} of outputs recorded, more than {rows} are needed")
    size = np.maximum(np.abs(signals["output_min"].value), np.abs(signals["output_max"].value))
    if len(size) != len(spread):
        return Abstained("the largest and smallest outputs were not recorded", ("output_min", "output_max"))
    before = np.fmax.accumulate(spread.value)
    same = (spread.value <= share * before) & (spread.value <= share * size) & (before > 0)
    differs = np.flatnonzero(~same)
    first = int(differs[-1]) + 1 if len(differs) else 0
    if first_run(same[first:], rows) is None or _inputs_alike(signals, int(spread.step[first])):
        return None
    onset, was = int(spread.step[first]), float(before[first])
    return Finding(
        summary=f"The model gives every sample the same output from step {onset} on: they differ by "
        f"{number(float(spread.value[-1]))}, it was {number(was)}",
        onset_step=onset,
        first_step=int(spread.step[first + rows - 1]),
        last_step=int(spread.step[-1]),
        severity=Severity.WARNING,
        evidence={"spread": float(spread.value[-1]), "before": was},
        causes=(_cause(signals, onset),),
        remedy=Remedy(
            f"Go back to before step {onset}, with a lower learning rate; look for a layer whose units are all dead or "
            "saturated, and for targets out of the reach of the last activation.",
            {},
            "print(model(inputs).std(dim=0), [(n, p.grad.norm()) for n, p in model.named_parameters()])",
        ),
    )


def _inputs_alike(signals: Signals, onset: int) -> bool:
    """Whether the inputs themselves differ in nothing any more."""
    given = signals["input_std"].between(onset, None).value
    return len(given) > 0 and bool((given == 0).all())


def _cause(signals: Signals, onset: int) -> Cause:
    for stat, cause, what in CAUSES:
        matrix = signals.modules(stat)
        if matrix is None:
            continue
        rows = matrix.step >= onset
        blocked = (np.where(matrix.present, matrix.value, 0)[rows] > MOST).any(axis=0)
        if blocked.any():
            name = matrix.names[int(np.flatnonzero(blocked)[0])]
            return Cause(cause, 0.7, supports=(f"nearly all of {name} are {what}",))
    return Cause("unknown", 1.0, against=("no layer whose units are all dead or saturated was measured",))


RULE = Rule(
    id="constant-output",
    severity=Severity.WARNING,
    needs=("output_spread",),
    check=constant_output,
    remedy="Look for a layer through which nothing gets.",
)
