"""One rank's own gradient or loss is unlike the others'."""

from __future__ import annotations

from functools import reduce

import numpy as np

from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, times

LEAST_STEPS = 10


def rank_outlier(signals: Signals, *, ratio: float = 10.0, own: float = 5.0) -> Verdict:
    """Before gradients are averaged, that of one rank alone is not finite or many times that of every other; or the
    loss of one rank alone is not finite.

    Why it matters: a flaky device or one rank's bad batch; once averaged, it is everybody's gradient.

    Stays silent: while ranks scatter as their batches do; on a loss that is not finite on all ranks at once, as where
    it is averaged before it is recorded. Abstains where neither local norms nor losses were recorded on two ranks.

    Thresholds: ``ratio`` to the largest local norm of the other ranks in the same step, and ``own``, to the highest the
    rank has shown before. Megatron's check uses ten times the largest of the first hundred.

    Source: design notes F33; Megatron-LM rerun state machine; Llama 3 (6 of 419 interruptions were silent corruption).
    """
    if len(signals.ranks) < 2:
        return None
    ranks, step, value = _in_common(signals, "grad_norm_local")
    lost = _lost_loss(signals)
    if len(ranks) < 2 or len(step) < LEAST_STEPS:
        return lost or Abstained(
            f"local gradient norms are known of {count(len(ranks), 'rank')} in {count(len(step), 'common step')}",
            ("grad_norm_local",),
        )
    for column, rank in enumerate(ranks):
        row = _first_outlier(value, column, ratio, own)
        if row is not None and (lost is None or step[row] <= lost.onset_step):
            return _finding(rank, int(step[row]), value[row], column)
    return lost


def _in_common(signals: Signals, name: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """(ranks that recorded it, int64[T] steps that all of these have, float64[T, R] their values)."""
    series = {rank: one for rank in signals.ranks if len(one := signals.of_rank(rank)[name])}
    if not series:
        return [], np.zeros(0, np.int64), np.zeros((0, 0))
    step = reduce(np.intersect1d, [one.step for one in series.values()])
    return list(series), step, np.stack([one.value[np.searchsorted(one.step, step)] for one in series.values()], axis=1)


def _lost_loss(signals: Signals) -> Finding | None:
    """The first step at which the loss of exactly one rank is not finite."""
    ranks, step, value = _in_common(signals, "train_loss")
    if len(ranks) < 2 or len(step) == 0:
        return None
    bad = ~np.isfinite(value)
    rows = np.flatnonzero(bad.sum(axis=1) == 1)
    rows = rows[: 1 if len(rows) and not bad[: rows[0]].any() else 0]
    if len(rows) == 0:
        return None
    row = int(rows[0])
    column = int(np.argmax(bad[row]))
    return _finding(ranks[column], int(step[row]), value[row], column, "loss")


def _first_outlier(value: np.ndarray, column: int, ratio: float, own: float) -> int | None:
    mine, others = value[:, column], np.delete(value, column, axis=1)
    healthy = np.isfinite(others).all(axis=1)
    highest = np.fmax.accumulate(np.where(np.isfinite(mine), mine, 0.0))
    before = np.concatenate([[np.inf], highest[:-1]])
    with np.errstate(invalid="ignore"):
        outlier = ~np.isfinite(mine) | ((mine > ratio * others.max(axis=1)) & (mine > own * before))
    rows = np.flatnonzero(outlier & healthy & (np.arange(len(mine)) >= LEAST_STEPS - 1))
    return int(rows[0]) if len(rows) else None


def _finding(rank: int, step: int, values: np.ndarray, column: int, of: str = "gradient") -> Finding:
    mine, others = float(values[column]), float(np.median(np.delete(values, column)))
    what = "is not finite" if not np.isfinite(mine) else f"is {times(mine / others)} that of the others"
    return Finding(
        summary=f"At step {step} the {of} of rank {rank} alone {what}: {number(mine)} against {number(others)}, "
        "before averaging",
        onset_step=step,
        first_step=step,
        last_step=step,
        severity=Severity.WARNING,
        rank=rank,
        evidence={"of": of, "local": mine, "others": others},
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
