"""Attention logits grow until a head looks at one token only, or leap to another size at once."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.context import GRADIENT_SETTINGS, gradient_signal, gradient_spikes
from monitor.diagnosis.lasting import Stretch, measured, named, stretches
from monitor.diagnosis.rule import Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number, times
from monitor.signals import LayerMatrix

CALM_ROWS = 5
"""Measurements before a leap among which the logits hardly grew."""
CALM = 1.5
"""Largest over smallest of them."""
LEAP_STEPS = 20
"""Between the measurements before and after a leap, at most."""
LEAST_LOGIT = 5.0
"""After a leap: below it a softmax is nearly flat, and grows as it likes. All four our judgement."""


def attention_collapse(
    signals: Signals,
    *,
    logit: float = 50.0,
    alarming: float = 100.0,
    entropy: float = 0.1,
    rows: int = 2,
    leap: float = 3.0,
) -> Verdict:
    """The largest attention logit of a block is far beyond what a softmax resolves, a head's entropy has collapsed, or
    the logits leap to another size between two measurements and stay there.

    Why it matters: it grows for hundreds of steps before the gradient or the loss shows anything, and then the training
    diverges slowly. A leap is no training at all: weights change by a hundredth in a step, so something else has been
    put in their way, such as a scale that is left out.

    Stays silent: on logits below ``logit`` (healthy small models of ours reach 16); on heads that look at one token
    while their logits are of a usual size, as heads that copy do; on a leap of what was growing, and on one that comes
    with a higher learning rate or a gradient spike, which are told of by other rules.

    Thresholds: ``logit`` and ``alarming``, largest magnitude of q.k times its scale: information and warning, in
    ``rows`` measurements running; ``entropy``, share of that of equal weights, of the most concentrated head, which
    makes ``logit`` a warning too. The bound of the logits stands in where they were not measured themselves.
    ``leap``, multiple of the highest logit so far, in two measurements running (2.7 in healthy runs of ours, while the
    logits grow).

    Source: Wortsman et al. 2023, https://arxiv.org/abs/2309.14322 (attention logits in small models); Zhai et al. 2023,
    https://arxiv.org/abs/2303.06296 (entropy collapse); Dehghani et al. 2023 (qk-norm).
    """
    matrix = signals.modules("attention_logit_max") or signals.modules("attention_logit_bound")
    assert matrix is not None  # the engine asks for it
    value = measured(matrix)
    high = stretches(matrix, value > alarming, rows)
    if high:
        return _finding(signals, matrix, value, high, Severity.WARNING)
    raised = stretches(matrix, value > logit, rows)
    if not raised:
        return _leapt(signals, leap)
    collapsed = [s for s in raised if _entropy(signals, s) < entropy]
    return _finding(signals, matrix, value, collapsed or raised, Severity.WARNING if collapsed else Severity.INFO)


def _leapt(signals: Signals, leap: float) -> Finding | None:
    matrix = signals.modules("attention_logit_bound") or signals.modules("attention_logit_max")
    assert matrix is not None
    value = measured(matrix)
    for column, name in enumerate(matrix.names):
        rows = np.flatnonzero(value[:, column] > 0)
        x, step = value[rows, column], matrix.step[rows]
        bars = np.maximum(leap * np.maximum.accumulate(x)[:-2], LEAST_LOGIT)  # of rows 1 to the last but one
        leaps = (np.minimum(x[1:-1], x[2:]) >= bars) & (np.diff(step)[:-1] <= LEAP_STEPS)
        for row in (np.flatnonzero(leaps) + 1).tolist():
            calm = x[row - CALM_ROWS : row] if row >= CALM_ROWS else x[:0]
            if len(calm) == 0 or calm.max() > CALM * calm.min():
                continue
            if _by_training(signals, int(step[row - 1]), int(step[row])):
                continue
            before, after = float(x[row - 1]), float(x[row])
            return Finding(
                summary=f"Attention logits of {name} leapt from {number(before)} to {number(after)} "
                f"({times(after / before)}) within {step[row] - step[row - 1]} steps, at no higher learning rate",
                onset_step=int(step[row - 1]) + 1,
                first_step=int(step[row + 1]),
                last_step=int(step[-1]),
                severity=Severity.WARNING,
                layer=name,
                evidence={"before": before, "after": after, "layer_reason": "its logits leapt"},
                causes=(
                    Cause("attention-logits", 0.7, supports=("the update of a step is far too small for such a leap",)),
                ),
                remedy=Remedy(
                    "Look at what has changed in the attention: the scale (1 / root of the heads' size), a norm of "
                    "queries and keys, weights that were loaded or overwritten.",
                ),
            )
    return None


def _by_training(signals: Signals, before: int, after: int) -> bool:
    """Whether the learning rate rose or the gradient leapt meanwhile, so that the weights moved far."""
    lr, norm = signals["lr"].between(before - LEAP_STEPS, after).value, gradient_signal(signals)
    spikes = [int(norm.step[spike.onset]) for spike in gradient_spikes(signals, GRADIENT_SETTINGS).spikes]
    rose = len(lr) > 0 and float(np.nanmax(lr)) > CALM * float(lr[0])
    return rose or any(before - LEAP_STEPS <= step <= after for step in spikes)


def _entropy(signals: Signals, stretch: Stretch) -> float:
    """The lowest entropy of the block's heads from the stretch on; infinite where it was not measured."""
    matrix = signals.modules("attention_entropy_min")
    if matrix is None or stretch.layer not in matrix.names:
        return float("inf")
    value = measured(matrix)[matrix.step >= stretch.onset, matrix.names.index(stretch.layer)]
    value = value[np.isfinite(value)]
    return float(value.min()) if len(value) else float("inf")


def _finding(
    signals: Signals, matrix: LayerMatrix, value: np.ndarray, found: list[Stretch], severity: Severity
) -> Finding:
    first = found[0]
    peak = float(np.nanmax(value[matrix.step >= first.onset, first.column]))
    onset = _rise(matrix, value, first)
    lowest = _entropy(signals, first)
    entropy = f", and a head's entropy fell to {number(lowest)} of that of equal weights" if np.isfinite(lowest) else ""
    what = "logits" if matrix.stat == "attention_logit_max" else "bound of the logits"
    return Finding(
        summary=f"Attention {what} of {named([s.layer for s in found])} grew to {number(peak)}{entropy}",
        onset_step=onset,
        first_step=first.told,
        last_step=max(s.last for s in found),
        severity=severity,
        layer=first.layer,
        evidence={
            "logit": peak,
            "entropy": lowest if np.isfinite(lowest) else None,
            "layer_reason": "the first of them",
        },
        causes=(Cause("attention-logits", 0.8, supports=(f"the logits of {first.layer} grew to {number(peak)}",)),),
        remedy=Remedy(
            "Normalise queries and keys (qk-norm), or halve the learning rate; a cap on the logits (50) helps too.",
            {"model.qk_norm": True},
            "q, k = F.rms_norm(q, (head_dim,)), F.rms_norm(k, (head_dim,))  # before attention",
        ),
    )


def _rise(matrix: LayerMatrix, value: np.ndarray, stretch: Stretch) -> int:
    """Step from which the module's logits rose from one height that they had never had to the next, at a fifth of the
    pace of the end or faster; that of the stretch itself where they came from their usual level between two
    measurements."""
    rows = np.flatnonzero(np.isfinite(value[:, stretch.column]) & (matrix.step <= stretch.onset))
    series = value[rows, stretch.column]
    row = len(rows) - 1
    new_height = series > np.concatenate([[0.0], np.maximum.accumulate(series)[:-1]])
    with np.errstate(divide="ignore"):
        pace = np.diff(np.log(np.abs(series))) / np.diff(matrix.step[rows])
    while row > 0 and new_height[row - 1] and pace[row - 1] > 0.2 * pace[-1]:
        row -= 1
    return int(matrix.step[rows[row if row < len(rows) - 2 else -1]])


RULE = Rule(
    id="attention-collapse",
    severity=Severity.WARNING,
    needs=("modules:attention_logit_max|modules:attention_logit_bound",),
    check=attention_collapse,
    remedy="Normalise queries and keys.",
)
