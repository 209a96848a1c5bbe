"""The learning rate is zero or next to nothing for long, jumps to a new height, collapses at once or begins to fall
twice as fast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from monitor.diagnosis.primitives import episodes, jumps_to_new_height, warmup_rows
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, times
from monitor.signals import Signal

LEAST_ROWS = 5
PACE_ROWS = 8
"""Changes of the learning rate before and after one of its pace."""
SMOOTH = 0.06
"""Largest relative change of the slope from row to row."""
WHOLE = 0.03
"""Distance of the ratio of two slopes to a whole number. All three our judgement."""
MOST_OFTEN = 8
"""Of a scheduler that is stepped several times."""
NEXT_TO_NOTHING = 1e-4
"""Of its highest. A cosine is below that in the last hundredth of its way; three step decays by ten end at 1e-3."""
FADED_ROWS = 20
"""Least number of rows there. Both our judgement."""


def lr_schedule(
    signals: Signals,
    *,
    zero_share: float = 0.01,
    zero_rows: int = 10,
    jump: float = 10.0,
    drop: float = 50.0,
) -> Verdict:
    """The learning rate does what no schedule does: it stays at zero, or at next to nothing for longer than it was
    higher, leaps to a new height, collapses at once, or falls a whole number of times as fast from one step on.

    Why it matters: at a rate of zero every step is lost, silently; a leap is the commonest cause of a divergence, and
    a collapse looks like convergence.

    Every parameter group is looked at, as ``lr``, ``lr/1``, ...

    Stays silent: on warm-up and every smooth decay, however steep; on restarts to a height held before; on the usual
    step decays; on zeros at the first rows of a warm-up and at the last of a decay, or next to nothing in the last
    half; on slopes of any other ratio.
    Information where both slopes are straight, since a schedule of straight pieces may have such a bend.

    Thresholds: ``zero_rows`` at exactly zero in a row, and more than the share ``zero_share`` of all rows; ``jump``,
    factor of one row to a height never held before, after warm-up; ``drop``, factor of one row downward that the slope
    of the rows before does not explain (step decays take 2 to 10). Our judgement; a jump of ten as in trainpulse.
    Next to nothing: below a ten-thousandth of the highest before, in more rows than all before, to the end.
    A change of pace: 2 to 8, to 3 %, on a smooth curve without a leap, as when ``scheduler.step()`` is called as often.
    Not seen: a scheduler that is stepped twice from the first step on, whose curve is that of a shorter schedule.

    Source: design notes F24; PyTorch documentation of torch.optim.lr_scheduler (scheduler.step() after every batch
    with a schedule meant for epochs is the usual cause).
    """
    lr = _finite(signals["lr"])
    if len(lr) < LEAST_ROWS:
        return Abstained(f"{count(len(lr), 'learning rate')} recorded, at least {LEAST_ROWS} are needed")
    found = _judged(lr, zero_share, zero_rows, jump, drop)
    told = {finding.onset_step for finding in found}
    for name in signals.names:
        # A group that does what the first one does is not told of again; one that always rests is meant to.
        group = _finite(signals[name]) if name.startswith("lr/") else None
        if group is not None and len(group) >= LEAST_ROWS and (group.value > 0).any():
            of_group = _judged(group, zero_share, zero_rows, jump, drop)
            found += [_of_group(finding, name) for finding in of_group if finding.onset_step not in told]
            told |= {finding.onset_step for finding in of_group}
    return found


def _finite(lr: Signal) -> Signal:
    keep = np.isfinite(lr.value)
    return Signal(lr.name, lr.step[keep], lr.value[keep], lr.unit)


def _of_group(finding: Finding, name: str) -> Finding:
    return replace(finding, summary=f"Parameter group {name.removeprefix('lr/')}: {finding.summary}")


def _judged(lr: Signal, zero_share: float, zero_rows: int, jump: float, drop: float) -> list[Finding]:
    found = [_zero(lr, first, last) for first, last in _zero_stretches(lr.value, zero_share, zero_rows)]
    rising = warmup_rows(lr.value)
    leaps = jumps_to_new_height(lr.value, factor=jump)
    found += [_leap(lr, int(row)) for row in leaps if row >= rising and not _smooth(lr.value, int(row))]
    return found + [_collapse(lr, row) for row in _drops(lr.value, drop)] + _faster(lr) + _faded(lr)


def _zero_stretches(value: np.ndarray, share: float, rows: int) -> list[tuple[int, int]]:
    least = max(rows, share * len(value))
    return [(first, last) for first, last in episodes(np.flatnonzero(value == 0), 1) if last - first + 1 > least]


def _smooth(value: np.ndarray, row: int) -> bool:
    """Whether the change into ``row`` is no more than twice the change before it: a schedule on its way."""
    if row < 2:
        return False
    return abs(value[row] - value[row - 1]) <= 2 * abs(value[row - 1] - value[row - 2])


def _drops(value: np.ndarray, factor: float) -> list[int]:
    positive = (value[1:] > 0) & (value[:-1] > factor * value[1:])
    return [int(row) + 1 for row in np.flatnonzero(positive) if not _smooth(value, int(row) + 1)]


def _faded(lr: Signal) -> list[Finding]:
    """A decay that went on and on: most of the run has been trained at next to nothing."""
    highest = np.maximum.accumulate(lr.value)
    higher = np.flatnonzero(lr.value >= NEXT_TO_NOTHING * highest)
    first = int(higher[-1]) + 1 if len(higher) else 0
    rows = len(lr) - first
    if lr.value[-1] == 0 or rows < max(FADED_ROWS, first + 1):
        return []
    onset, peak = int(lr.step[first]), float(highest[first])
    told = f"it is below {number(NEXT_TO_NOTHING * peak)} in {rows} of {len(lr)} rows"
    return [
        Finding(
            summary=f"Learning rate is below a ten-thousandth of its highest, {number(peak)}, from step {onset} to the "
            f"end, longer than it was above: {number(float(lr.value[-1]))} at last",
            onset_step=onset,
            first_step=int(lr.step[first + max(FADED_ROWS, first + 1) - 1]),
            last_step=int(lr.step[-1]),
            severity=Severity.WARNING,
            evidence={"highest": peak, "last": float(lr.value[-1]), "rows": rows},
            causes=(Cause("schedule-too-short", 0.7, (told, "as if its clock counted batches instead of epochs")),),
            remedy=Remedy(
                "Step a schedule that counts epochs once per epoch, outside the loop over batches, or give it the "
                "number of optimizer steps that are really taken.",
                {},
                "for epoch in range(epochs):\n    train(loader)\n    scheduler.step()",
            ),
        )
    ]


def _faster(lr: Signal) -> list[Finding]:
    """The first change of pace by a whole factor, on a curve that is smooth on both sides of it."""
    slope = -np.diff(lr.value) / np.diff(lr.step)
    for row in (np.flatnonzero((slope[:-1] > 0) & (slope[1:] > 1.5 * slope[:-1])) + 1).tolist():
        before, after = slope[max(0, row - PACE_ROWS) : row], slope[row : row + PACE_ROWS]
        if len(before) < PACE_ROWS or len(after) < PACE_ROWS or not (_is_smooth(before) and _is_smooth(after)):
            continue
        middle = np.arange(PACE_ROWS)  # both slopes, where the one passes into the other
        ratio = float(
            np.polyval(np.polyfit(middle, after, 1), -0.5) / np.polyval(np.polyfit(middle, before, 1), PACE_ROWS - 0.5)
        )
        if 2 <= round(ratio) <= MOST_OFTEN and abs(ratio / round(ratio) - 1) < WHOLE:
            straight = max(np.ptp(before) / before[0], np.ptp(after) / after[0]) < 1e-3
            return [_other_pace(lr, row, round(ratio), Severity.INFO if straight else Severity.WARNING)]
    return []


def _is_smooth(slope: np.ndarray) -> bool:
    return bool((slope > 0).all()) and bool((np.abs(np.diff(slope)) < SMOOTH * slope[:-1]).all())


def _other_pace(lr: Signal, row: int, factor: int, severity: Severity) -> Finding:
    onset = int(lr.step[row]) + 1
    return Finding(
        summary=f"Learning rate falls {factor} times as fast from step {onset} on, without a leap: the schedule will "
        "end early",
        onset_step=onset,
        first_step=int(lr.step[row + PACE_ROWS]),
        last_step=int(lr.step[-1]),
        severity=severity,
        evidence={"factor": factor},
        causes=(Cause("schedule-too-short", 0.7, (f"the schedule advances {factor} steps in one",)),),
        remedy=Remedy(
            f"Look for a second scheduler.step(), or one that each of {factor} processes or micro-batches calls.",
            {},
            "print(scheduler.last_epoch, step)  # they must keep pace",
        ),
    )


def _zero(lr: Signal, first: int, last: int) -> Finding:
    to_the_end = last == len(lr) - 1
    from_the_start = first == 0
    told: tuple[str, ...] = ()
    if from_the_start and to_the_end:
        when, cause = "from the start on", "scheduler-never-stepped"
    elif from_the_start:
        when, cause = f"from the start until step {int(lr.step[last])}", "scheduler-never-stepped"
        told = ("a scheduler stands still while every step is skipped, as when half precision overflows",)
    elif to_the_end:
        when, cause = "to the end", "schedule-too-short"
    else:
        when, cause = f"until step {int(lr.step[last])}", "schedule-too-short"
    since = "" if from_the_start else f"from step {int(lr.step[first])} "
    return Finding(
        summary=f"Learning rate is exactly 0 {since}{when}: {count(last - first + 1, 'row')} without learning",
        onset_step=int(lr.step[first]),
        first_step=int(lr.step[min(last, first + 10)]),
        last_step=int(lr.step[last]),
        severity=Severity.WARNING,
        evidence={"zero_rows": last - first + 1, "rows": len(lr)},
        causes=(Cause(cause, 0.8, supports=(f"the learning rate is 0 {when}", *told)),),
        remedy=Remedy(
            "Give the schedule the number of optimizer steps that are really taken (batches per epoch / accumulation x "
            "epochs), and check that scheduler.step() is called once for each of them.",
            {},
            "total_steps = len(loader) // accumulation * epochs  # what the scheduler must be given",
        ),
    )


def _leap(lr: Signal, row: int) -> Finding:
    before, after = float(lr.value[row - 1]), float(lr.value[row])
    return Finding(
        summary=f"Learning rate jumped {times(after / before)} at step {int(lr.step[row])}, from {number(before)} to "
        f"{number(after)}, higher than ever before",
        onset_step=int(lr.step[row]),
        first_step=int(lr.step[row]),
        last_step=int(lr.step[row]),
        severity=Severity.WARNING,
        evidence={"before": before, "after": after},
        causes=(Cause("lr-too-high", 0.8, supports=(f"the learning rate jumped {times(after / before)}",)),),
        remedy=Remedy(
            f"If this was not meant, go back to the last checkpoint before step {int(lr.step[row])} and keep the "
            f"learning rate at {number(before)}.",
            {},
            f'for group in optimizer.param_groups:\n    group["lr"] = {before:.6g}',
        ),
    )


def _collapse(lr: Signal, row: int) -> Finding:
    before, after = float(lr.value[row - 1]), float(lr.value[row])
    return Finding(
        summary=f"Learning rate fell from {number(before)} to {number(after)} at step {int(lr.step[row])}, by a factor "
        f"of {number(before / after)} at once",
        onset_step=int(lr.step[row]),
        first_step=int(lr.step[row]),
        last_step=int(lr.step[-1]),
        severity=Severity.WARNING,
        evidence={"before": before, "after": after},
        causes=(
            Cause("lr-too-low", 0.8, supports=(f"the learning rate fell by a factor of {number(before / after)}",)),
        ),
        remedy=Remedy(
            f"If this was not meant, go on with {number(before)}: look for a scheduler stepped once per batch instead "
            "of once per epoch, or for one of two schedulers on the same optimizer.",
            {},
            f'for group in optimizer.param_groups:\n    group["lr"] = {before:.6g}',
        ),
    )


RULE = Rule(
    id="lr-schedule",
    severity=Severity.WARNING,
    needs=("lr",),
    check=lr_schedule,
    remedy="Check what sets the learning rate, and how often scheduler.step() is called.",
)
