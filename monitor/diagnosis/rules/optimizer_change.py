"""Weight decay, momentum, epsilon or clipping jump in the middle of a training, or the optimizer's state is lost."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from monitor.diagnosis.context import span
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import EventLike, Signals
from monitor.diagnosis.wording import count, number, times
from monitor.signals import Signal

CAUSES = {"weight_decay": "weight-decay"}
"""By setting; of the others the setting itself is the cause."""
STATE = "state"
CLIPPED_ROWS = 20
"""Steps that must have been clipped, or have had a limit, before the end of it means something."""


def optimizer_change(signals: Signals, *, factor: float = 10.0, beyond: float = 3.0) -> Verdict:
    """A setting of the optimizer other than the learning rate, or the clip limit, is another one from one step on, or
    its moments are gone.

    Why it matters: a decay with its sign turned makes weights grow for thousands of steps before anything shows; a
    momentum or an epsilon that a callback overwrites looks like a bad learning rate; without its clip limit a training
    waits for the next heavy gradient; without its moments Adam's next step is one in the sign of the gradient, at the
    full rate in each entry.

    Stays silent: on settings that a schedule moves a little in each step; on what differs after a resume, which may be
    meant; on a limit in whose place something else makes gradients shorter. Information: jumps below ``factor``,
    settings that fall to 0, and a clip limit that is gone without any gradient beyond it.

    Thresholds: a negative weight decay always; ``factor``, jump of the setting (of its distance from 1, where it is a
    running mean's); ``beyond``, gradient norm after the clip limit is gone, as a multiple of it. Our judgement.

    Source: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101 (decay is learning rate x weight_decay).
    """
    told = signals.events("optimizer", "optimizer_change")
    if not told and len(signals["clip_max_norm"]) == 0:
        return Abstained("the optimizer's settings were not recorded", ("weight_decay", "clip_max_norm"))
    found = [*_negative(signals, told), *_changed(signals, told, factor), *_forgotten(signals, told)]
    clipping = _clip_gone(signals, beyond)
    return found + ([clipping] if clipping else [])


def _negative(signals: Signals, told: list[EventLike]) -> Iterator[Finding]:
    """A decay below zero from the first step on."""
    for event in told:
        groups = event.fields.get("groups")
        if event.kind != "optimizer" or not isinstance(groups, list):
            continue
        decays = [_as_number(group.get("weight_decay")) for group in groups if isinstance(group, dict)]
        lowest = min((decay for decay in decays if decay is not None), default=0.0)
        if lowest < 0:
            yield _finding(signals, event.step or 0, "weight_decay", None, lowest, Severity.WARNING)


def _changed(signals: Signals, told: list[EventLike], factor: float) -> Iterator[Finding]:
    """One finding a step and setting, of the group in which it jumped the furthest."""
    jumps: dict[tuple[int, str], tuple[float, float]] = {}
    for event in told:
        name = str(event.fields.get("name"))
        before, after = _as_number(event.fields.get("before")), _as_number(event.fields.get("after"))
        if event.kind != "optimizer_change" or event.step is None or before is None or after is None:
            continue
        if name == STATE:
            continue
        key = event.step, name
        if key not in jumps or _size(name, before, after) > _size(name, *jumps[key]):
            jumps[key] = before, after
    for (step, name), (before, after) in jumps.items():
        wrong = after < 0 if name == "weight_decay" else False
        serious = wrong or (after != 0 and _size(name, before, after) >= factor)
        yield _finding(signals, step, name, before, after, Severity.WARNING if serious else Severity.INFO)


def _forgotten(signals: Signals, told: list[EventLike]) -> Iterator[Finding]:
    """One finding of all steps at which the optimizer had no moments any more."""
    lost = [event for event in told if event.kind == "optimizer_change" and event.fields.get("name") == STATE]
    steps = [event.step for event in lost if event.step is not None]
    if not steps:
        return
    again = f", and {count(len(steps) - 1, 'time')} more up to step {steps[-1]}" if len(steps) > 1 else ""
    yield Finding(
        summary=f"The optimizer has forgotten its state at step {steps[0]}{again}",
        onset_step=steps[0],
        first_step=steps[0],
        last_step=steps[-1],
        severity=Severity.WARNING,
        evidence={"setting": STATE, "steps": steps[:20]},
        causes=(Cause("optimizer-state-lost", 0.8, supports=("it remembered every tensor before, and none then",)),),
        remedy=Remedy(
            "Look for what builds the optimizer anew or clears its state within the loop: a line that belongs before "
            "it, a callback, a loaded checkpoint without the optimizer.",
        ),
    )


def _as_number(given: object) -> float | None:
    return float(given) if isinstance(given, int | float) and math.isfinite(given) else None


def _size(name: str, before: float, after: float) -> float:
    """How many times as large or as small; infinite for another sign."""
    if name in ("beta1", "beta2", "momentum", "alpha", "rho"):
        before, after = 1 - before, 1 - after
    if before == 0 or after == 0 or before * after < 0:
        return math.inf
    return max(after / before, before / after)


def _finding(signals: Signals, step: int, name: str, before: float | None, after: float, severity: Severity) -> Finding:
    words = name.replace("_", " ")
    told = f"{words} is {number(after)}" if before is None else f"{words} went from {number(before)} to {number(after)}"
    grows = "; below zero it makes the weights grow" if name == "weight_decay" and after < 0 else ""
    return Finding(
        summary=f"The optimizer's {told} at step {step}{grows}",
        onset_step=step,
        first_step=step,
        last_step=signals.last_step if severity is Severity.WARNING else step,
        severity=severity,
        evidence={"setting": name, "before": before, "after": after},
        causes=(Cause(CAUSES.get(name, f"{name.replace('_', '-')}-change"), 0.8, supports=(f"the {told}",)),),
        remedy=Remedy(
            f"If this was not meant, go back to the last checkpoint before step {step} and look for what writes into "
            "optimizer.param_groups: a scheduler, a callback, a loaded state.",
            {} if before is None else _patch(name, before),
            "" if before is None else f'for group in optimizer.param_groups:\n    group["{name}"] = {before:.6g}',
        ),
    )


def _patch(name: str, value: float) -> dict[str, object]:
    known = {"weight_decay", "beta1", "beta2", "eps", "momentum"}
    return {f"optimizer.{name}": value} if name in known else {}


def _clip_gone(signals: Signals, beyond: float) -> Finding | None:
    """The clip limit is gone, or ten times as high, from one step on, and a gradient beyond it has come since."""
    limit, norm = signals["clip_max_norm"], signals["grad_norm_preclip"]
    finite = np.isfinite(limit.value) & (limit.value > 0)
    if finite.sum() < CLIPPED_ROWS or len(norm) == 0:
        return None
    usual, last = float(np.median(limit.value[finite][:CLIPPED_ROWS])), int(limit.step[finite][-1])
    high = finite & (limit.value > 10 * usual)
    end = min(int(limit.step[high][0]) - 1 if high.any() else last, last)
    after = norm.between(end + 1, None)
    if len(after) < 2 or not _was_clipping(signals, end) or _clipped_otherwise(signals, end + 1):
        return None
    heavy = np.flatnonzero(after.value > beyond * usual)
    told = f"no clip limit was in force from step {end + 1} on; before it was {number(usual)}"
    severity = Severity.WARNING if len(heavy) else Severity.INFO
    peak = float(np.nanmax(after.value)) if len(heavy) else None
    came = f", and a gradient of norm {number(peak)} ({times(peak / usual)} the limit) came since" if peak else ""
    first = int(after.step[heavy[0]]) if len(heavy) else end + 1
    return Finding(
        summary=f"Gradients are no longer clipped from step {end + 1} on: the limit was {number(usual)}{came}",
        onset_step=end + 1,
        first_step=max(first, int(after.step[1])),
        last_step=signals.last_step if len(heavy) else end + 1,
        severity=severity,
        evidence={"limit": usual, "highest_norm": peak},
        causes=(Cause("clipping-removed", 0.8, supports=(told,)),),
        remedy=Remedy(
            f"Clip in every step, at {number(usual)} as before, between backward and optimizer.step(), and go back to "
            f"the last checkpoint before step {end + 1}.",
            {"clip.max_norm": usual},
            f"torch.nn.utils.clip_grad_norm_(model.parameters(), {usual:.6g})",
        ),
    )


def _was_clipping(signals: Signals, end: int) -> bool:
    """Whether the limit did something before, so that its end is a change."""
    coef: Signal = signals["clip_coef"].between(end - span(signals, 200), end)
    return bool((coef.value[np.isfinite(coef.value)] < 1).any())


def _clipped_otherwise(signals: Signals, begin: int) -> bool:
    """Whether what the optimizer got was shorter than what backward gave in most steps from ``begin`` on."""
    norm, post = signals["grad_norm_preclip"].between(begin, None), signals["grad_norm_postclip"].between(begin, None)
    steps = np.intersect1d(norm.step, post.step)
    before, after = (series.value[np.searchsorted(series.step, steps)] for series in (norm, post))
    return len(steps) > 0 and float(np.mean(after < 0.99 * before)) > 0.5


RULE = Rule(
    id="optimizer-change",
    severity=Severity.WARNING,
    needs=(),
    check=optimizer_change,
    remedy="Find what writes into optimizer.param_groups, and what decides whether gradients are clipped.",
)
