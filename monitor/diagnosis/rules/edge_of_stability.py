"""The curvature is above what the learning rate can come down: it is too high now, or as high as it can be."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.remedies import peak_lr
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number
from monitor.signals import Signal


def edge_of_stability(
    signals: Signals, *, beyond: float = 2.0, lasting: int = 3, rise: float = 1.02, least: int = 3
) -> Verdict:
    """The largest eigenvalue of the Hessian exceeds the limit of the optimizer's steps (2 / lr for gradient descent).

    Why it matters: on a parabola of that curvature each step overshoots further than the one before. Full-batch
    training raises its curvature to the limit and hovers there while the loss falls over longer times: that is
    information, and says that a higher learning rate will not help. Far beyond the limit with a loss that has stopped
    falling, the learning rate is too high.

    Stays silent: below the limit; on a single sample above it. The curvature is that of the batch that was sampled on:
    of a small batch it is larger than that of the whole loss, so only what lasts counts, and only a loss that does not
    fall makes it a warning.

    Thresholds: ``lasting``, samples running above the limit; ``beyond``, their median in limits from which it is a
    warning if the median loss since is at least ``rise`` times that of as many steps before; ``least``, samples that
    are needed. Our judgement, but for the limit itself.

    Source: Cohen et al. 2021, https://arxiv.org/abs/2103.00065; for Adam, whose limit is on the preconditioned
    Hessian, Cohen et al. 2022, https://arxiv.org/abs/2207.14484.
    """
    sharpness, limit = signals["sharpness"], signals["sharpness_limit"]
    step, mine, theirs = np.intersect1d(sharpness.step, limit.step, assume_unique=True, return_indices=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        over = sharpness.value[mine] / limit.value[theirs]
    known = np.isfinite(over)
    step, over = step[known], over[known]
    if len(step) < least:
        return Abstained(f"{count(len(step), 'curvature sample')} with its limit, at least {least} are needed")
    spans = _runs(over > 1.0, lasting)
    if not spans:
        return None
    # The worst of the times above the limit, by the median over it.
    first, last = max(spans, key=lambda span: float(np.median(over[span[0] : span[1] + 1])))
    level = float(np.median(over[first : last + 1]))
    onset, fired = int(step[first]), int(step[first + lasting - 1])
    grown = _grown(signals["train_loss"], onset, int(step[last]))
    warn = level > beyond and grown is not None and grown >= rise
    lr = peak_lr(signals)
    lower = float(f"{lr / level:.2g}") if lr else None
    at = f"{number(level)} times the limit of stability, from step {onset} on"
    return Finding(
        summary=f"The curvature is {at}"
        + (": steps overshoot further and further" if warn else ": as high as this learning rate allows"),
        onset_step=onset,
        first_step=fired,
        last_step=int(step[last]),
        severity=Severity.WARNING if warn else Severity.INFO,
        evidence={
            "over_limit": level,
            "sharpness": float(np.median(sharpness.value[mine][known][first : last + 1])),
            "limit": float(np.median(limit.value[theirs][known][first : last + 1])),
            "samples": last - first + 1,
        }
        | ({"loss_against_before": grown} if grown is not None else {}),
        causes=(
            Cause(
                "lr-too-high",
                0.8 if warn else 0.3,
                supports=(f"the largest eigenvalue is {at}",)
                + ((f"the loss is {number(grown)} times that of before",) if warn and grown is not None else ()),
                against=() if warn else ("the loss still falls, or there is no telling",),
            ),
        ),
        remedy=Remedy(
            f"Lower the peak learning rate to {number(lower)}."
            if warn and lower
            else "None is needed while the loss falls; a higher learning rate will not help.",
            {"optimizer.lr": lower} if warn and lower else {},
            f'for group in optimizer.param_groups:\n    group["lr"] *= {1 / level:.2g}' if warn else "",
        ),
    )


def _runs(above: np.ndarray, least: int) -> list[tuple[int, int]]:
    """First and last index of every run of at least ``least`` true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], above, [False]]).astype(int)))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= least]


def _grown(loss: Signal, onset: int, last: int) -> float | None:
    """Median loss of the second half of ``onset`` to ``last`` over that of as many steps before; None if unknown."""
    half = max(1, (last - onset) // 2)
    before, since = loss.between(onset - half, onset - 1).value, loss.between(last - half, last).value
    before, since = before[np.isfinite(before)], since[np.isfinite(since)]
    if not len(before) or not len(since) or np.median(before) <= 0:
        return None
    return float(np.median(since) / np.median(before))


RULE = Rule(
    id="edge-of-stability",
    severity=Severity.INFO,
    needs=("sharpness", "sharpness_limit"),
    check=edge_of_stability,
    remedy="None is needed while the loss falls; otherwise a lower learning rate.",
)
