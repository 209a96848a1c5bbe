"""Adam's epsilon is larger than the gradients of a tensor, so that its updates shrink with them."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.lasting import measured, named, spaced, stretches
from monitor.diagnosis.remedies import configured
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number
from monitor.signals import LayerMatrix

SAFE_EPS = 1e-8
"""Configured values up to this one are torch's default or below."""


LARGE_EPS = 1e-4
"""Configured values from this one on are no guard against a division by zero any more."""
NEARLY_ALL = 0.9
"""Of the tensors and of their entries. Both our judgement."""
SETTLING_STEPS = 50
"""While a scaler skips the first steps, the second moment is still zero."""
APART = 50
"""Steps between two measurements that are both looked at."""
LATELY = 20
"""Measurements within which a layer's zeros must have been measured: the monitor leaves layers out when it is slow."""


def epsilon_floor(signals: Signals, *, share: float = 0.5, rows: int = 2) -> Verdict:
    """Most entries of a tensor have a root second moment below ten times Adam's epsilon.

    Why it matters: Adam divides by the root of the second moment so that a small gradient still makes a full step.
    Under epsilon it no longer does: the tensor trains slower the smaller its gradients are, as under SGD, and nothing
    else shows it. Large models get there because gradients per entry shrink with width.

    Stays silent: on entries whose gradient is exactly zero (units that are off, tokens not seen), which need no
    update; in the first 50 steps. Abstains where zeros were not measured. Information: a model that has learnt
    everything has small gradients too. A warning where epsilon is known to be 1e-4 or more and nearly all of the model
    is held back from the first measurement on, when nothing has been learnt yet.

    Thresholds: ``share`` of the entries, exact zeros of the gradient taken off, in ``rows`` measurements running, 50
    steps apart or more, 100 by default. Design notes F07: half of the entries, 200 steps.

    Source: Wortsman et al. 2023, https://arxiv.org/abs/2309.14322 (epsilon and width); Molybog et al. 2023,
    https://arxiv.org/abs/2304.09871.
    """
    floor, zeros = signals.layers("adam_floor_share"), signals.layers("grad_zero_share")
    assert floor is not None and zeros is not None  # the engine asks for them
    floor = spaced(floor, APART)
    value = measured(floor) - _zeros_until(floor, zeros)
    value[floor.step <= SETTLING_STEPS] = np.nan
    if np.isfinite(value).any(axis=1).sum() < rows:
        return Abstained(f"fewer than {rows} measurements of adam_floor_share")
    with np.errstate(invalid="ignore"):
        found = stretches(floor, value > share, rows)
    if not found:
        return None
    first = found[0]
    held = float(np.nanmax(value[floor.step >= first.onset, first.column]))
    eps = configured(signals, "optimizer", "eps")
    known = isinstance(eps, float) and eps > 0
    smaller = min(SAFE_EPS, eps / 1000) if known else SAFE_EPS
    return Finding(
        summary=f"{100 * held:.0f} % of the entries of {named([s.layer for s in found])} get updates that Adam's "
        f"epsilon{f' ({number(eps)})' if known else ''} holds back",
        onset_step=first.onset,
        first_step=first.told,
        last_step=max(s.last for s in found),
        severity=Severity.WARNING if known and eps >= LARGE_EPS and _from_the_start(value) else Severity.INFO,
        layer=first.layer,
        evidence={"share": held, "layers": [s.layer for s in found][:20]},
        causes=(
            Cause(
                "epsilon-too-large",
                0.6,
                ("the root of the second moment is below ten times epsilon, and the gradients are not zero",),
            ),
            Cause("learnt-already", 0.3, ("a small loss has small gradients",)),
        ),
        remedy=Remedy(
            f"Lower Adam's epsilon to {number(smaller)}; with state in fp32, 1e-15 is safe too.",
            {"optimizer.eps": smaller},
            f"optimizer = torch.optim.AdamW(model.parameters(), lr=lr, eps={number(smaller)})",
        ),
    )


def _from_the_start(value: np.ndarray) -> bool:
    """Whether nearly all entries of nearly all tensors are held back in the first measurement that counts."""
    first = value[np.isfinite(value).any(axis=1)][0]
    first = first[np.isfinite(first)]
    return float((first > NEARLY_ALL).mean()) >= NEARLY_ALL


def _zeros_until(floor: LayerMatrix, zeros: LayerMatrix) -> np.ndarray:
    """float64[T, L]: largest share of exact zeros of a layer's gradient up to each row of ``floor``; NaN where it was
    not measured, or not lately. The largest, so that an embedding's unseen rows are taken off in full."""
    share = measured(zeros)
    highest = np.fmax.accumulate(share, axis=0)
    rows = np.arange(len(share))[:, None]
    newest = np.maximum.accumulate(np.where(np.isfinite(share), rows, -LATELY), axis=0)
    highest[rows - newest >= LATELY] = np.nan  # left out since: nobody knows how many there are now
    row = np.searchsorted(zeros.step, floor.step, side="right") - 1
    column = {name: index for index, name in enumerate(zeros.names)}
    answer = np.full(floor.value.shape, np.nan)
    for index, name in enumerate(floor.names):
        if name in column:
            answer[:, index] = np.where(row >= 0, highest[np.maximum(row, 0), column[name]], np.nan)
    return answer


RULE = Rule(
    id="epsilon-floor",
    severity=Severity.INFO,
    needs=("layers:adam_floor_share", "layers:grad_zero_share"),
    check=epsilon_floor,
    remedy="Lower Adam's epsilon.",
)
