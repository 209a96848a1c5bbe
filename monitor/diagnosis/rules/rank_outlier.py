"""One rank's own gradient is unlike the others'."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, times

LEAST_STEPS = 10


def rank_outlier(signals: Signals, *, ratio: float = 10.0, own: float = 5.0) -> Verdict:
    """Before gradients are averaged, that of one rank alone is not finite or many times that of every other.

    Why it matters: a flaky device or one rank's bad batch; once averaged, it is everybody's gradient.

    Stays silent: while ranks scatter as their batches do. Abstains where local norms were not recorded on two ranks.

    Thresholds: ``ratio`` to the largest local norm of the other ranks in the same step, and ``own``, to the highest the
    rank has shown before. Megatron's check uses ten times the largest of the first hundred.

    Source: design notes F33; Megatron-LM rerun state machine; Llama 3 (6 of 419 interruptions were silent corruption).
    """
    if len(signals.ranks) < 2:
        return None
    series = {rank: signals.of_rank(rank)["grad_norm_local"] for rank in signals.ranks}
    series = {rank: one for rank, one in series.items() if len(one)}
    step = np.zeros(0, np.int64)
    for index, one in enumerate(series.values()):
        step = one.step if index == 0 else np.intersect1d(step, one.step)
    if len(series) < 2 or len(step) < LEAST_STEPS:
        return Abstained(
            f"local gradient norms are known of {count(len(series), 'rank')} in {count(len(step), 'common step')}",
            ("grad_norm_local",),
        )
    value = np.stack([one.value[np.searchsorted(one.step, step)] for one in series.values()], axis=1)
    for column, rank in enumerate(series):
        row = _first_outlier(value, column, ratio, own)
        if row is not None:
            return _finding(rank, int(step[row]), value[row], column)
    return None


def _first_outlier(value: np.ndarray, column: int, ratio: float, own: float) -> int | None:
    mine, others = value[:, column], np.delete(value, column, axis=1)
    healthy = np.isfinite(others).all(axis=1)
    highest = np.fmax.accumulate(np.where(np.isfinite(mine), mine, 0.0))
    before = np.concatenate([[np.inf], highest[:-1]])
    with np.errstate(invalid="ignore"):
        outlier = ~np.isfinite(mine) | ((mine > ratio * others.max(axis=1)) & (mine > own * before))
    rows = np.flatnonzero(outlier & healthy & (np.arange(len(mine)) >= LEAST_STEPS - 1))
    return int(rows[0]) if len(rows) else None


def _finding(rank: int, step: int, values: np.ndarray, column: int) -> Finding:
    mine, others = float(values[column]), float(np.median(np.delete(values, column)))
    what = "is not finite" if not np.isfinite(mine) else f"is {times(mine / others)} that of the others"
    return Finding(
        summary=f"At step {step} the gradient of rank {rank} alone {what}: {number(mine)} against {number(others)}, "
        "before averaging",
        onset_step=step,
        first_step=step,
        last_step=step,
        severity=Severity.WARNING,
        rank=rank,
        evidence={"local_norm": mine, "others": others},
        causes=(
            Cause(
                "silent-corruption",
                0.5,
                supports=(f"only rank {rank} shows it",),
                against=("not recorded: a run of the same step again",),
            ),
            Cause("bad-batch", 0.4, supports=("each rank has a batch of its own",)),
        ),
        remedy=Remedy(
            f"Run the step again with the same batch on rank {rank} and on another one. Different on the same device: "
            "transient; the same here and different there: exchange the device; the same everywhere: it is the batch.",
        ),
    )


RULE = Rule(
    id="rank-outlier",
    severity=Severity.WARNING,
    needs=(),
    check=rank_outlier,
    remedy="Run the step again on that rank and on another one.",
)
