"""Attention logits grow until a head looks at one token only."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.lasting import Stretch, measured, named, stretches
from monitor.diagnosis.rule import Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number
from monitor.signals import LayerMatrix


def attention_collapse(
    signals: Signals, *, logit: float = 50.0, alarming: float = 100.0, entropy: float = 0.1, rows: int = 2
) -> Verdict:
    """The largest attention logit of a block is far beyond what a softmax resolves, or a head's entropy has collapsed.

    Why it matters: it grows for hundreds of steps before the gradient or the loss shows anything, and then the training
    diverges slowly.

    Stays silent: on logits below ``logit`` (healthy small models of ours reach 16); on heads that look at one token
    while their logits are of a usual size, as heads that copy do.

    Thresholds: ``logit`` and ``alarming``, largest magnitude of q.k times its scale: information and warning, in
    ``rows`` measurements running; ``entropy``, share of that of equal weights, of the most concentrated head, which
    makes ``logit`` a warning too. The bound of the logits stands in where they were not measured themselves.

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
        return None
    collapsed = [s for s in raised if _entropy(signals, s) < entropy]
    return _finding(signals, matrix, value, collapsed or raised, Severity.WARNING if collapsed else Severity.INFO)


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
    """Step from which the module's logits only rose until they were told of; that of the stretch itself where they
    came from their usual level between two measurements."""
    rows = np.flatnonzero(np.isfinite(value[:, stretch.column]) & (matrix.step <= stretch.onset))
    series = value[rows, stretch.column]
    row = len(rows) - 1
    while row > 0 and series[row - 1] < series[row]:
        row -= 1
    return int(matrix.step[rows[row if row < len(rows) - 2 else -1]])


RULE = Rule(
    id="attention-collapse",
    severity=Severity.WARNING,
    needs=("modules:attention_logit_max|modules:attention_logit_bound",),
    check=attention_collapse,
    remedy="Normalise queries and keys.",
)
