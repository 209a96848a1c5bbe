"""One tensor is changed far faster than the others of its kind."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np

from monitor.diagnosis.lasting import measured, named, spaced, stretches
from monitor.diagnosis.primitives import MAD_TO_SD
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number, times

SETTLING_STEPS = 50
"""A weight that starts at zero has a huge ratio in its first steps."""
APART = 20
"""Steps between two measurements that are both looked at."""
LEAST_PEERS = 4
SCALE_FLOOR = 0.15
"""Smallest robust spread of peers, in log units: four equal ones must not make the fifth an outlier. Our judgement."""


def update_imbalance(signals: Signals, *, z: float = 6.0, ratio: float = 3.0, steps: int = 50) -> Verdict:
    """The update-to-weight ratio of one tensor is many times that of the same tensor in other blocks.

    Why it matters: one learning rate does not fit both; a tensor that is changed much faster than its peers was seen
    before the loss spikes of large models, and points to its initial scale or to its parameter group.

    Stays silent: in the first 50 steps; on tensors of different kinds, whose ratios differ by nature (a bias, a norm, a
    matrix); on kinds with fewer than four tensors. Always information: imbalance alone harms nothing.

    Thresholds: ``z``, robust standard deviations of the logarithm above the median of the tensors whose name is the
    same but for numbers; ``ratio`` to that median; ``steps`` it must last. Design notes F10: six, and 50 steps; the
    ratio is our judgement.

    Source: Nishida et al. 2024, https://arxiv.org/abs/2407.17465 (initial scales that fit, WeSaR).
    """
    matrix = signals.layers("update_to_weight_ratio")
    assert matrix is not None  # the engine asks for it
    matrix = spaced(matrix, APART)
    value = measured(matrix)
    value[(matrix.step <= SETTLING_STEPS)[:, None] | ~(value > 0)] = np.nan
    kinds = [columns for columns in _kinds(matrix.names) if len(columns) >= LEAST_PEERS]
    if not kinds:
        return Abstained(f"no {LEAST_PEERS} tensors have the same name but for numbers")
    row_steps = matrix.step[np.isfinite(value).any(axis=1)]
    if len(row_steps) < 2 or row_steps[-1] - row_steps[0] < steps:
        return Abstained(f"less than {steps} steps of update_to_weight_ratio after step {SETTLING_STEPS}")
    outlying, excess = _outlying(np.log(value), kinds, z, np.log(ratio))
    found = stretches(matrix, outlying, max(3, steps // APART + 1))
    if not found:
        return None
    first = found[0]
    held = (matrix.step >= first.onset) & (matrix.step <= first.last)
    above = float(np.exp(np.nanmedian(excess[held, first.column])))
    own = float(np.nanmedian(value[held, first.column]))
    return Finding(
        summary=f"{named([s.layer for s in found])} changes by {number(own)} of its norm in a step, {times(above)} as "
        "much as the same tensor of other blocks",
        onset_step=first.onset,
        first_step=first.told,
        last_step=max(s.last for s in found),
        severity=Severity.INFO,
        layer=first.layer,
        evidence={"update_to_weight_ratio": own, "to_peers": above, "layers": [s.layer for s in found][:20]},
        causes=(
            Cause(
                "unequal-scale",
                0.6,
                (f"its peers have the same shape and role and change {times(above)} less",),
                ("not recorded: learning rate per tensor",),
            ),
        ),
        remedy=Remedy(
            f"Compare the initial scale and the parameter group of {first.layer} with those of its peers.",
            {},
            f'print(dict(model.named_parameters())["{first.layer}"].std())',
        ),
    )


def _kinds(names: tuple[str, ...]) -> list[list[int]]:
    """Columns of tensors whose names are the same but for numbers between dots."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for column, name in enumerate(names):
        kinds[re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)].append(column)
    return list(kinds.values())


def _outlying(log: np.ndarray, kinds: list[list[int]], z: float, least: float) -> tuple[np.ndarray, np.ndarray]:
    """(bool[T, L], float64[T, L]): tensors far above their kind, and by how much in log units."""
    excess = np.full(log.shape, np.nan)
    outlying = np.zeros(log.shape, bool)
    for columns in kinds:
        mine = log[:, columns]
        rows = np.isfinite(mine).sum(axis=1) >= LEAST_PEERS
        if not rows.any():
            continue
        above = mine[rows] - np.nanmedian(mine[rows], axis=1, keepdims=True)
        scale = np.maximum(MAD_TO_SD * np.nanmedian(np.abs(above), axis=1, keepdims=True), SCALE_FLOOR)
        excess[np.ix_(rows, columns)] = above
        with np.errstate(invalid="ignore"):
            outlying[np.ix_(rows, columns)] = (above > z * scale) & (above > least)
    return outlying, excess


RULE = Rule(
    id="update-imbalance",
    severity=Severity.INFO,
    needs=("layers:update_to_weight_ratio",),
    check=update_imbalance,
    remedy="Compare the tensor's initial scale and parameter group with those of its peers.",
)
