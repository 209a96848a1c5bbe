"""Steps take longer than before, for good."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.context import gate_steps
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.timing import PARTS, StepTimes, block_medians, spread, step_times
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, percent

BLOCK_ROWS = 25
LEAST_BLOCKS = 4
SHARED = 0.05
"""Share of the time without a processor from which on the host is shared; our judgement."""
LEAST_S = 1e-4
"""A tenth of a millisecond: caches and clocks of a shared machine make as much, of which a step of one millisecond is
5 % longer (our judgement)."""


def slower_steps(signals: Signals, *, rise: float = 0.03, lasting: int = 175, z: float = 6.0) -> Verdict:
    """The step time rises to a new level and stays there.

    Why it matters: BLOOM lost 5 % to one slow GPU, and nobody sees 5 % on a curve; over weeks it is days.

    Stays silent: on evaluation and checkpoint pauses; on single slow steps; on a machine whose step time wanders by as
    much anyway; on logged changes of batch size, sequence length or data, and where the tokens per step change.
    Information where other processes of the host take the processor away: the time in which the training had none is
    taken off, and on a host without a device that is shared so, a step of which each part is longer by as much is its
    doing, too. Where that time was not recorded, the training uses no more processor time in a step than before.
    Information as well where it is this monitor that takes longer, for which there is a budget, where more layers are
    trained than before, and where the step is longer by less than ``LEAST_S``.

    Thresholds: ``rise``, relative rise of the median, over ``lasting`` steps; ``z``, robust standard deviations of the
    medians of 25 steps before, so that a busy machine is not called slow. Design notes F41: 3 % over 200 steps, since
    5 % and 6 % were real losses; a new level begins with a block, up to 24 steps after the onset.

    Source: BLOOM chronicles (149 to 140 TFLOPs); GLM-130B; FALCON (fail-slow detection).
    """
    times = step_times(signals)
    needed = lasting + LEAST_BLOCKS * BLOCK_ROWS
    if len(times.step) < needed:
        return Abstained(f"{count(len(times.step), 'training step')} timed, at least {needed} are needed")
    monitor = np.nan_to_num(times.part(signals, "monitor_s"))
    training = times.own - np.clip(monitor, 0.0, 0.99 * times.own)
    if found := _new_level(signals, times, training, rise, lasting, z):
        row = found[0] * BLOCK_ROWS
        excuse = _more_to_train(signals, times, row) or _kept_waiting(signals, times, row)
        return _finding(signals, times, lasting, *found, excuse)
    if found := _new_level(signals, times, times.own, rise, lasting, z):
        told = _before_and_after(monitor, found[0] * BLOCK_ROWS, "spent by the monitor")
        return _finding(signals, times, lasting, *found, Cause("monitor-overhead", 0.9, (told,)))
    if found := _new_level(signals, times, times.seconds, rise, lasting, z):
        told = _before_and_after(times.waited, found[0] * BLOCK_ROWS, "without a processor")
        return _finding(signals, times, lasting, *found, Cause("busy-host", 0.9, (told,)))
    return None


def _before_and_after(seconds: np.ndarray, row: int, what: str) -> str:
    before, after = (1000 * float(np.nanmean(part)) for part in (seconds[:row], seconds[row:]))
    return f"{after:.3g} ms of a step {what}, {before:.3g} ms before"


def _new_level(
    signals: Signals, times: StepTimes, seconds: np.ndarray, rise: float, lasting: int, z: float
) -> tuple[int, float, float] | None:
    """The first block of a level that is higher for good, the level before and that after."""
    level = block_medians(seconds, BLOCK_ROWS)
    blocks = lasting // BLOCK_ROWS
    gates = [int(np.searchsorted(times.step, gate)) // BLOCK_ROWS for gate in gate_steps(signals)]
    start = 0
    for block in range(LEAST_BLOCKS, len(level) - blocks + 1):
        if block in gates:
            start = block
        before, after = level[max(start, block - 16) : block], level[block : block + blocks]
        if len(before) < LEAST_BLOCKS or any(block <= gate < block + blocks for gate in gates):
            continue
        usual = float(np.median(before))
        bar = max((1 + rise) * usual, usual + z * max(spread(before), spread(np.diff(before)) / np.sqrt(2)))
        # All of them, not the median: what comes back is no new level.
        now = float(np.median(level[block:]))
        if float(after.min()) > bar and float(before.max()) < float(after.min()) and now > (1 + rise) * usual:
            return block, usual, now
    return None


def _finding(
    signals: Signals, times: StepTimes, lasting: int, block: int, before: float, after: float, excuse: Cause | None
) -> Finding:
    row = block * BLOCK_ROWS
    part, share = _slower_part(signals, times, row)
    where = f"; {part.removesuffix('_s').replace('_', ' ')} makes {100 * share:.0f} % of it" if part else ""
    return Finding(
        summary=f"Steps take {percent(after / before - 1)} longer from step {int(times.step[row])} on: "
        f"{1000 * before:.3g} to {1000 * after:.3g} ms{where}",
        onset_step=int(times.step[row]),
        first_step=int(times.step[min(row + lasting, len(times.step)) - 1]),
        last_step=int(times.step[-1]),
        severity=Severity.INFO if excuse or after - before < LEAST_S else Severity.WARNING,
        evidence={"before_s": before, "after_s": after, "part": part, "part_share": share},
        causes=(excuse or _cause(signals, part, share, int(times.step[row])),),
        remedy=Remedy(
            "Look at clocks and temperature of the device, at other processes on the host, at the storage, and with "
            "several ranks at which one is late.",
            {},
            "torch.profiler.profile(schedule=torch.profiler.schedule(wait=1, warmup=1, active=3))",
        ),
    )


def _slower_part(signals: Signals, times: StepTimes, row: int) -> tuple[str | None, float]:
    """The part of the step that grew the most, and its share of the growth."""
    grown = {}
    for part in PARTS:
        value = times.part(signals, part)
        before, after = value[max(0, row - 200) : row], value[row:]
        if np.isfinite(before).any() and np.isfinite(after).any():
            grown[part] = float(np.nanmedian(after) - np.nanmedian(before))
    total = sum(max(0.0, more) for more in grown.values())
    if total <= 0:
        return None, 0.0
    part = max(grown, key=lambda name: grown[name])
    return part, grown[part] / total


def _kept_waiting(signals: Signals, times: StepTimes, row: int) -> Cause | None:
    """Other processes of the host as the cause: all parts grew alike, and it is known that the processor is shared.

    Shared means that the training waits for it in a good part of its steps, since those that it waits for also take
    caches and cores' other threads; or, where that is not counted, that its processor time per step did not grow.
    """
    if len(signals.system("gpu_util_pct")) or len(signals.ranks) > 1:
        return None
    usual, now = float(np.median(times.own[:row])), float(np.median(times.own[row:]))
    told = _shared(times, row) if np.isfinite(times.waited).any() else _no_more_used(signals, times, row)
    if told is None:
        return None
    for part in ("forward_s", "backward_s", "optimizer_s"):
        value = times.part(signals, part)
        pair = value[:row][np.isfinite(value[:row])], value[row:][np.isfinite(value[row:])]
        if not all(map(len, pair)):
            continue
        level = float(np.median(pair[0]))
        if level > 0.1 * usual and np.median(pair[1]) / level - 1 < 0.5 * (now / usual - 1):
            return None
    return Cause("busy-host", 0.7, (told, "forward, backward and optimizer grew alike"))


def _more_to_train(signals: Signals, times: StepTimes, row: int) -> Cause | None:
    """Layers that have a gradient from there on, and had none: a backbone that was frozen is trained, too."""
    matrix = signals.layers("grad_norm_preclip")
    if matrix is None or len(matrix.step) == 0:
        return None
    first, last = times.step[max(0, row - BLOCK_ROWS)], times.step[min(row + BLOCK_ROWS, len(times.step) - 1)]
    rows = np.clip(np.searchsorted(matrix.step, (first, last)), 0, len(matrix.step) - 1)
    before, after = (int(np.count_nonzero(matrix.present[at])) for at in rows)
    if after <= before:
        return None
    return Cause("more-layers", 0.8, (f"{after} layers have a gradient, {before} before",))


def _shared(times: StepTimes, row: int) -> str | None:
    share = float(np.nansum(times.waited[row:]) / np.sum(times.seconds[row:]))
    return f"other processes had the processor in {100 * share:.0f} % of the time" if share > SHARED else None


def _no_more_used(signals: Signals, times: StepTimes, row: int) -> str | None:
    cpu, onset = signals.system("cpu_pct"), int(times.step[row])
    before, after = cpu.between(None, onset - 1).value, cpu.between(onset, None).value
    if len(before) < 2 or len(after) < 2:
        return None
    usual, now = float(np.median(times.seconds[:row])), float(np.median(times.seconds[row:]))
    used = float(np.median(before) * usual), float(np.median(after) * now)
    if used[1] > used[0] * (1 + 0.5 * (now / usual - 1)):
        return None
    return f"the process got {np.median(after):.0f} % of a core, {np.median(before):.0f} % before"


def _cause(signals: Signals, part: str | None, share: float, step: int) -> Cause:
    throttled = [e for e in signals.events("throttle") if e.fields.get("harmful") and (e.step or 0) <= step + 50]
    if throttled:
        return Cause("throttled-device", 0.8, supports=(str(throttled[-1].fields.get("text"))[:200],))
    if part == "data_wait_s" and share > 0.6:
        return Cause("slow-input", 0.7, supports=(f"{part} grew the most",))
    return Cause("slower-compute", 0.5, supports=(f"{part} grew the most",) if part else ())


RULE = Rule(
    id="slower-steps",
    severity=Severity.WARNING,
    needs=("step_time_s",),
    check=slower_steps,
    remedy="Find the part of the step that grew.",
)
