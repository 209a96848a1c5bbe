"""Batches come again when they should not: over and over, several times, on each rank, or in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monitor.diagnosis.context import loss_is_signed
from monitor.diagnosis.primitives import MAD_TO_SD
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number
from monitor.signals import Signal

LEAST_ROWS = 60
DISTINCT = 20
"""Batches without a repetition that must come first, or in all: few different ones are a small data set."""
NEAR_ROWS = 16
"""Distance within which a repetition is one of several workers or passes, not of an epoch."""
ROUNDS = 3
"""Times that the same few batches must come again in their order."""
LEAST_EPOCHS = 4
LEAST_PERIOD = 4


def data_order(
    signals: Signals,
    *,
    stuck: int = 3,
    repeated: float = 0.4,
    ordered: float = 0.95,
    periodic: float = 10.0,
) -> Verdict:
    """The fingerprint of the input says that a batch is the one before, comes several times, or has a fixed place in
    each epoch, or is that of every other rank; and whether the loss has the period of the epoch.

    Why it matters: a loader that hands out one batch for ever, or workers that each read all of the data, train on
    less than they say while the loss looks better than ever. Data in a fixed order, sorted by class or by source, make
    each step undo the one before.

    Stays silent: where few batches are all there is (one batch learnt by heart on purpose, the whole data in each
    step); where an epoch's order is new each time; on equal batches of ranks that share a model's layers instead of the
    data, which have no gradient of their own before it is averaged. Information only: batches that come several times
    from the first steps on, which some methods want; a fixed order that the loss does not show. Class imbalance within
    batches cannot be seen: no signal holds the targets.

    Thresholds: ``stuck``, equal batches in a row in the middle of a run (a few in the same order three times over,
    after at least twice as many that never came again, are as good as one); 20 batches, all different, each of them
    the same on all ranks; ``repeated``, share of the batches that are
    among the 16 before; ``ordered``, share that equals the batch one epoch before; ``periodic``, variance between the
    places of an epoch over that within them (an F ratio), in four epochs or more. Design notes F20 have 10 for a
    spectral peak; the others are our judgement.

    Source: PyTorch documentation of IterableDataset (each worker gets a copy); design notes F20.
    """
    prints = signals["input_hash"]
    prints = Signal(prints.name, prints.step, np.where(np.isfinite(prints.value), prints.value, -1.0), prints.unit)
    epoch = signals["epoch"]
    if len(prints) < LEAST_ROWS and len(epoch) < 2:
        return Abstained(f"{count(len(prints), 'fingerprint')} of inputs recorded, at least {LEAST_ROWS} are needed")
    found = None
    if (same := _same_on_ranks(signals)) is not None:
        return same
    if len(prints) >= LEAST_ROWS:
        found = _stuck(prints, stuck) or _round_and_round(prints) or _repeated(prints, repeated)
    if found is not None:
        return found
    order = _fixed_order(prints, ordered)
    period = order.period if order else _steps_per_epoch(epoch)
    ratio = _at_the_epoch(signals, period) if period else None
    shows = ratio is not None and ratio > periodic
    if order is None and not shows:
        return None
    return _in_order(signals, order, period or 0, ratio, shows)


def _same_on_ranks(signals: Signals) -> Finding | None:
    """Each rank reads what every other one reads, although their gradients are averaged as if it were more."""
    ranks = [signals.of_rank(rank) for rank in signals.ranks]
    if len(ranks) < 2 or not all(len(rank["grad_norm_local"]) for rank in ranks):
        return None
    first = ranks[0]["input_hash"]
    for rank in ranks[1:]:
        if not np.array_equal(rank["input_hash"].step[:DISTINCT], first.step[:DISTINCT]):
            return None
    rows = min(len(rank["input_hash"]) for rank in ranks)
    values = np.stack([rank["input_hash"].value[:rows] for rank in ranks])
    if rows < DISTINCT or len(np.unique(values[0, :DISTINCT])) < DISTINCT or (values != values[0]).any():
        return None
    return Finding(
        summary=f"All {len(ranks)} ranks read the same batch in each of {count(rows, 'step')}",
        onset_step=int(first.step[0]),
        first_step=int(first.step[DISTINCT - 1]),
        last_step=int(first.step[rows - 1]),
        severity=Severity.WARNING,
        evidence={"ranks": len(ranks), "steps": rows},
        causes=(Cause("duplicated-workers", 0.8, ("equal fingerprints of the batches of all ranks",)),),
        remedy=Remedy(
            "Give each rank a share of its own: a DistributedSampler, or a data set that is split by rank.",
            {},
            "sampler = torch.utils.data.DistributedSampler(data)\n"
            "loader = torch.utils.data.DataLoader(data, batch_size, sampler=sampler)",
        ),
    )


def _stuck(prints: Signal, rows: int) -> Finding | None:
    """One batch again and again, after many different ones."""
    same = prints.value[1:] == prints.value[:-1]
    run = 0
    for row, equal in enumerate(same.tolist(), start=1):
        run = run + 1 if equal else 0
        first = row - run
        if run + 1 >= rows and _all_different(prints.value[: first + 1]):
            stop = row
            while stop < len(same) and same[stop]:
                stop += 1
            onset, told, last = (int(prints.step[at]) for at in (first, row, stop))
            return Finding(
                summary=f"The same batch comes {stop - first + 1} times running from step {onset} on, after "
                f"{first} different ones",
                onset_step=onset,
                first_step=told,
                last_step=last,
                severity=Severity.WARNING,
                evidence={"times": stop - first + 1, "different_before": first},
                causes=(Cause("stuck-loader", 0.8, ("equal fingerprints of neighbouring batches",)),),
                remedy=Remedy(
                    f"Look at what feeds the loop at step {onset}: an iterator that was not advanced, a cache, a data "
                    "set that returns one sample for every index.",
                    {},
                    "first, second = next(batches), next(batches)\nassert not torch.equal(first[0], second[0])",
                ),
            )
    return None


def _round_and_round(prints: Signal) -> Finding | None:
    """A few batches in the same order again and again, after at least twice as many that never came again."""
    value = prints.value
    order = np.argsort(value, kind="stable")
    again = np.flatnonzero(value[order][1:] == value[order][:-1])
    back = np.zeros(len(value), np.int64)  # rows since the same batch came before
    back[order[again + 1]] = order[again + 1] - order[again]
    starts = np.flatnonzero(np.diff(back, prepend=-1))
    lengths = np.diff(np.append(starts, len(back)))
    rounds = np.flatnonzero((back[starts] > 1) & (lengths >= ROUNDS * back[starts]))
    if len(rounds) == 0:
        return None
    start = int(starts[rounds[0]])
    period = int(back[start])
    begin = start - period
    if begin < max(DISTINCT, 2 * period) or back[:start].any():
        return None
    return _going_round(prints, begin, start + ROUNDS * period - 1, period)


def _going_round(prints: Signal, begin: int, row: int, period: int) -> Finding:
    onset = int(prints.step[begin])
    return Finding(
        summary=f"From step {onset} on the same {period} batches come again and again in the same order, after {begin} "
        "different ones",
        onset_step=onset,
        first_step=int(prints.step[row]),
        last_step=int(prints.step[-1]),
        severity=Severity.WARNING,
        evidence={"period": period, "different_before": begin},
        causes=(Cause("stuck-loader", 0.8, (f"each batch is that of {period} steps before, and no new one comes",)),),
        remedy=Remedy(
            f"Look at what feeds the loop at step {onset}: a cache or buffer that is not filled again, a list of files "
            "that ended, a sampler over a part of the data.",
        ),
    )


def _all_different(value: np.ndarray) -> bool:
    return len(value) > DISTINCT and bool((value[1:] != value[:-1]).all())


def _repeated(prints: Signal, share: float) -> Finding | None:
    """Each batch several times within a few steps, from the first steps on."""
    value = prints.value[:10_000]
    again = np.zeros(len(value), bool)
    for back in range(1, NEAR_ROWS + 1):
        again[back:] |= value[back:] == value[:-back]
    if again.mean() <= share or len(np.unique(value)) <= DISTINCT:
        return None
    each = len(value) / len(np.unique(value))
    return Finding(
        summary=f"Each batch comes about {each:.2g} times within {NEAR_ROWS} steps",
        onset_step=int(prints.step[int(np.argmax(again))]),
        first_step=int(prints.step[LEAST_ROWS - 1]),
        last_step=int(prints.step[-1]),
        severity=Severity.INFO,
        evidence={"repeated_share": float(again.mean()), "times": each},
        causes=(
            Cause("duplicated-workers", 0.5, ("workers that each read all of the data hand out every batch in turn",)),
            Cause("several-passes", 0.4, ("some methods take several steps on each batch",)),
        ),
        remedy=Remedy(
            "Let each worker of an IterableDataset read a part of its own, and seed its augmentation by worker.",
            {},
            "info = torch.utils.data.get_worker_info()\n"
            "samples = itertools.islice(samples, info.id, None, info.num_workers)",
        ),
    )


@dataclass(frozen=True, slots=True)
class Order:
    """Batches that come in the same order again and again."""

    period: int
    """Rows of one epoch."""
    row: int
    """First row that is a repetition."""


def _fixed_order(prints: Signal, share: float) -> Order | None:
    """The distance at which batches come again, when nearly all of them do."""
    if len(prints) < LEAST_ROWS:
        return None
    values, first = np.unique(prints.value, return_index=True)
    place = dict(zip(values.tolist(), first.tolist(), strict=True))
    back = np.array([row - place[value] for row, value in enumerate(prints.value.tolist())])
    came_back = back[back > 0]
    period = int(came_back.min()) if len(came_back) else 0
    if period < LEAST_PERIOD or len(prints) < 2 * period:
        return None
    equal = prints.value[period:] == prints.value[:-period]
    return Order(period, period) if equal.mean() > share else None


def _steps_per_epoch(epoch: Signal) -> int | None:
    """Optimizer steps of one epoch, from a logged count of epochs; None where it is not."""
    keep = np.isfinite(epoch.value)
    step, value = epoch.step[keep], epoch.value[keep]
    if len(value) < 2 or value[-1] - value[0] < LEAST_EPOCHS:
        return None
    period = round(float((step[-1] - step[0]) / (value[-1] - value[0])))
    return period if period >= LEAST_PERIOD else None


def _at_the_epoch(signals: Signals, period: int) -> float | None:
    """Variance of the detrended loss between the places of an epoch over that within them; None when it is unknown.

    Source: one-way analysis of variance; the first epoch is left out, in which the loss falls fastest.
    """
    loss = signals["train_loss"]
    if loss_is_signed(signals) or len(loss) == 0 or not np.isfinite(loss.value).all() or (loss.value <= 0).any():
        return None
    if np.median(np.diff(loss.step)) != 1:
        return None
    log = np.log(loss.value[period:])
    epochs = len(log) // period
    if epochs < LEAST_EPOCHS - 1:
        return None
    table = log[: epochs * period].reshape(epochs, period)
    table = table - np.median(table, axis=1, keepdims=True)
    table = table - np.linspace(-0.5, 0.5, period) * _slopes(table)[:, None]
    bound = 4 * MAD_TO_SD * np.median(np.abs(table))
    table = np.clip(table, -bound, bound)
    between = epochs * table.mean(axis=0).var(ddof=1)
    within = table.var(axis=0, ddof=1).mean()
    return float(between / within) if within > 0 else None


def _slopes(table: np.ndarray) -> np.ndarray:
    """float64[E]: least-squares rise over each row of the table."""
    t = np.linspace(-0.5, 0.5, table.shape[1])
    return table @ t / (t @ t)


def _in_order(signals: Signals, order: Order | None, period: int, ratio: float | None, shows: bool) -> Finding:
    loss = signals["train_loss"].step
    prints = signals["input_hash"].step
    onset = int(prints[order.row]) if order else int(loss[period])
    told = int(prints[min(2 * order.row, len(prints)) - 1]) if order else int(loss[LEAST_EPOCHS * period - 1])
    parts: Sequence[str] = (
        f"The batches of each epoch of {count(period, 'step')} come in the same order" if order else "",
        f"the loss has the period of the epoch, {count(period, 'step')}: it differs {number(ratio or 0)} times as much "
        "between places as within them"
        if shows
        else "",
    )
    summary = ", and ".join(filter(None, parts))
    return Finding(
        summary=summary[0].upper() + summary[1:],
        onset_step=onset,
        first_step=max(onset, told),
        last_step=max(onset, told, int((prints if order else loss)[-1])),
        severity=Severity.INFO,
        evidence={"period": period, "variance_ratio": ratio, "same_order": order is not None},
        causes=(
            Cause(
                "not-shuffled",
                0.8 if order and shows else 0.5,
                tuple(filter(None, parts)),
                () if order else ("not recorded: fingerprints of the input",),
            ),
        ),
        remedy=Remedy(
            "Shuffle the data anew in each epoch (shuffle=True; with several processes sampler.set_epoch).",
            {},
            "loader = DataLoader(data, batch_size, shuffle=True)\nsampler.set_epoch(epoch)  # DistributedSampler",
        ),
    )


RULE = Rule(
    id="data-order",
    severity=Severity.INFO,
    needs=("input_hash|epoch",),
    check=data_order,
    remedy="Shuffle the data anew in each epoch.",
)
