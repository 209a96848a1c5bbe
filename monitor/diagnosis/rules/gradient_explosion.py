"""The gradient norm jumps away from its own recent level."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from monitor.diagnosis.context import (
    LOSS_SETTINGS,
    gate_steps,
    gradient_signal,
    gradient_spikes,
    joined,
    loss_follows_policy,
    loss_is_lost,
    loss_is_signed,
    loss_spikes,
    returns_change,
    span,
)
from monitor.diagnosis.habits import habits
from monitor.diagnosis.localise import JumpSettings, LayerJump, Moved, first_moved, lone_jumps
from monitor.diagnosis.primitives import Spike, SpikeSettings
from monitor.diagnosis.rule import Abstained, Finding, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, times
from monitor.signals import Signal

LOSS_FOLLOWS_STEPS = 20
"""A loss that leaves its baseline this soon after the gradient followed it (1 to 4 steps in the public logs)."""

GATE_STEPS = 5
"""Steps from a gate in which one layer's jump is put down to the new situation."""

LEVEL_OF_FEW = 6
FAR_OF_FEW = 30.0
"""Rows of a short log before the first that is judged, and multiple of the highest before at which it is told: there is
no baseline to speak of. Our judgement."""


def gradient_explosion(
    signals: Signals,
    *,
    z_single: float = 9.0,
    z_sustained: float = 5.0,
    ratio: float = 2.0,
    worrying: float = 10.0,
    alone: float = 30.0,
    layer_ratio: float = 20.0,
    layer_z: float = 4.5,
    layer_share: float = 0.05,
) -> Verdict:
    """The gradient norm before clipping jumps above its own recent level, in the whole model or in one layer.

    Why it matters: it is the earliest public sign of a loss spike (1 to 4 steps ahead in BLOOM's logs), and without
    clipping one such step can undo thousands.

    Stays silent: on a norm that falls or grows slowly; on rises to a norm below half the run's usual one (a learnt
    task whose gradients are nearly zero); on layers whose gradient is rounding noise; on gated changes of data or
    restarts of the learning rate unless the rise is tenfold, and on one layer's jump there. Short rises that the loss
    does not follow are information: healthy runs have them, and clipping takes their size out; so are large ones that
    come again and again without the loss, and those of a policy or value function, whose targets move, unless the
    returns fall. One layer's jump is information while it is small and the layer's history short, or when tensors of
    several modules jump together: an expert or an embedding that few batches use looks like that.

    Thresholds: ``z_single`` and ``z_sustained`` in robust standard deviations of log norm; ``ratio``, smallest rise
    (three times that in warm-up); ``worrying``, rise over two rows or more that is a warning by itself; ``alone``, the
    same for one row, or for a clipped rise that is long over without the loss following; ``layer_ratio`` and
    ``layer_z``, jump of one layer beyond all that it has recently shown, while the median layer rises less than x2 and
    the layer makes up ``layer_share`` of the whole norm; beyond the median layer's rise, when that is more and the
    layer outweighs all others. In a log of few rows one above 30 times the highest of six or more before it is told.
    Our judgement, calibrated on the controls in
    tests/monitor/diagnosis, on the healthy trainings of tests/faults and on BLOOM's published steps.

    Source: BLOOM-176B log (BigScience 2022), steps 31214 to 31219; Pascanu et al. 2013,
    https://arxiv.org/abs/1211.5063; SPAM (Huang et al. 2025, https://arxiv.org/abs/2501.06842).
    """
    norm = gradient_signal(signals)
    settings = SpikeSettings(
        effect=ratio - 1, scale_floor=0.05, gate_effect=9.0, z_single=z_single, z_sustained=z_sustained
    )
    finite = int(np.isfinite(norm.value).sum())
    if finite <= settings.least:
        if (far := _of_few(norm)) is not None:
            return far
        return Abstained(f"{count(finite, 'finite gradient norm')} recorded, more than {settings.least} are needed")
    bars = Bars(worrying, alone, layer_ratio)
    groups = joined(gradient_spikes(signals, settings).spikes)
    jumps = _layer_jumps(signals, JumpSettings(z=layer_z, ratio=layer_ratio, share=layer_share))
    pairs = _paired(signals, norm, groups, jumps)
    found = (_global_finding(signals, norm, group, jump, bars) for group, jump in pairs)
    findings = habits(found, lambda finding: finding.evidence["loss_follows_steps"] is None)
    if loss_follows_policy(signals):
        findings = [_of_policy(signals, finding) for finding in findings]
    told = [jump for _, jump in pairs]
    return findings + [_layer_finding(signals, jump) for jump in jumps if jump not in told]


def _of_policy(signals: Signals, finding: Finding) -> Finding:
    """The finding, as information where the returns did not fall: targets move while a policy gets better."""
    serious = finding.severity is Severity.CRITICAL or returns_change(signals, finding.onset_step) < 0
    return finding if serious else replace(finding, severity=Severity.INFO)


def _of_few(norm: Signal) -> Finding | None:
    """A log of few rows in which one norm is many times as high as any before it."""
    keep = np.isfinite(norm.value)
    step, value = norm.step[keep], norm.value[keep]
    highest = np.maximum.accumulate(value)
    rows = np.flatnonzero(value[LEVEL_OF_FEW:] > FAR_OF_FEW * highest[LEVEL_OF_FEW - 1 : -1]) + LEVEL_OF_FEW
    if len(rows) == 0:
        return None
    row = int(rows[0])
    base, peak = float(np.median(value[:row])), float(value[row])
    return Finding(
        summary=f"Gradient norm rose from {number(base)} to {number(peak)} ({times(peak / base)}) at step "
        f"{int(step[row])}",
        onset_step=int(step[row]),
        first_step=int(step[row]),
        last_step=int(step[row]),
        severity=Severity.WARNING,
        evidence={"baseline_norm": base, "peak_norm": peak, "peak_ratio": peak / base},
    )


def _layer_jumps(signals: Signals, settings: JumpSettings) -> list[LayerJump]:
    """Jumps of one layer on its own, those at a gate left out."""
    gates = gate_steps(signals)
    near = span(signals, GATE_STEPS)
    jumps = lone_jumps(signals.layers("grad_norm_preclip"), settings)
    return [jump for jump in jumps if not any(gate <= jump.step <= gate + near for gate in gates)]


def _paired(
    signals: Signals, norm: Signal, groups: list[list[Spike]], jumps: list[LayerJump]
) -> list[tuple[list[Spike], LayerJump | None]]:
    """Each excursion of the whole norm with the jump of one layer that it began with, if there is one.

    That layer moved first; in a noisy norm its growth is hidden for some steps.
    """
    near = span(signals, 20)
    free = list(jumps)
    pairs: list[tuple[list[Spike], LayerJump | None]] = []
    for group in groups:
        onset = int(norm.step[group[0].onset])
        latest = max(onset + 3, int(norm.step[group[0].fired]))
        jump = next((j for j in free if _earliest(j) <= latest and j.last_step >= onset - near), None)
        if jump is not None:
            free.remove(jump)
        pairs.append((group, jump))
    return pairs


def _earliest(jump: LayerJump) -> int:
    """The step at which the jump could be told; where the run is thinned, the first at which it may have been."""
    return jump.step if jump.since == jump.onset else jump.since


@dataclass(frozen=True, slots=True)
class Bars:
    """Ratios from which a rise is a warning by itself."""

    worrying: float
    alone: float
    layer: float


def _severity(
    group: list[Spike],
    ratio: float,
    where: Moved | None,
    jump: LayerJump | None,
    follows: int | None,
    lost: bool,
    harmless: bool,
    bars: Bars,
) -> Severity:
    if lost:
        return Severity.CRITICAL
    raised = sum(spike.raised for spike in group)
    by_size = ratio >= (bars.alone if raised == 1 or harmless else bars.worrying)
    # A batch moves many layers; one tensor alone moving this far is not the data.
    one_layer = where is not None and where.concentration >= bars.layer / 2 and where.ratio >= bars.layer
    one_layer |= jump is not None and jump.proven
    return Severity.WARNING if by_size or one_layer or follows is not None else Severity.INFO


def _global_finding(signals: Signals, norm: Signal, group: list[Spike], jump: LayerJump | None, bars: Bars) -> Finding:
    first, last = group[0], group[-1]
    onset, end = int(norm.step[first.onset]), int(norm.step[last.last])
    peak = max(group, key=lambda spike: spike.peak_value)
    ratio = peak.peak_value / first.baseline
    where = first_moved(signals.layers("grad_norm_preclip"), onset, end)
    follows = loss_follows(signals, onset)
    nonfinite, lost = _nonfinite_follows(signals, onset), loss_is_lost(signals, onset)
    clipped = _clip_coef(signals, onset, end)
    raised = sum(spike.raised for spike in group)
    # Clipping took the size out and the loss has had its time: seen from here, nothing came of it.
    harmless = (
        last.over
        and clipped is not None
        and clipped < 1
        and int(norm.step[-1]) > end + span(signals, LOSS_FOLLOWS_STEPS)
    )
    started, fired = onset, int(norm.step[first.fired])
    layer = where.layer if where else None
    if jump is not None:
        layer = jump.layer
        # An alarm that the layer raised before the whole norm stays the alarm of this event.
        started, fired = (jump.onset, jump.step) if jump.step <= fired else (min(onset, jump.onset), fired)
    elif where and where.step:
        started = min(onset, where.step)  # a layer that was already on its way before the whole norm showed it
    place = f", first in {layer}" if layer else ""
    return Finding(
        summary=f"Gradient norm rose from {number(first.baseline)} to {number(peak.peak_value)} ({times(ratio)}) "
        f"within {count(int(norm.step[peak.peak]) - onset + 1, 'step')} from step {onset}{place}; "
        f"{_outcome(follows, nonfinite, lost)}",
        onset_step=started,
        first_step=fired,
        last_step=end if last.over else int(norm.step[-1]),
        severity=_severity(group, ratio, where, jump, follows, nonfinite or lost, harmless, bars),
        layer=layer,
        evidence={
            "baseline_norm": first.baseline,
            "peak_norm": peak.peak_value,
            "peak_step": int(norm.step[peak.peak]),
            "peak_ratio": ratio,
            "z": max(spike.z for spike in group),
            "raised_rows": raised,
            "loss_follows_steps": follows,
            "clip_coef_min": clipped,
            **(_layer_evidence(where) if where else {}),
            **(_jump_evidence(jump) if jump else {}),
        },
    )


def _outcome(follows: int | None, nonfinite: bool, lost: bool) -> str:
    if nonfinite:
        return "numbers became non-finite"
    if lost:
        return "the loss rose by orders of magnitude and has not come back"
    if follows is None:
        return "the loss did not follow"
    if follows < 0:
        return f"the loss had been rising for {count(-follows, 'step')}"
    return "the loss rose in the same step" if follows == 0 else f"the loss followed {count(follows, 'step')} later"


def _layer_evidence(where: Moved) -> dict[str, object]:
    return {
        "layer_ratio": where.ratio,
        "layer_z": where.z,
        "layer_step": where.step,
        **_from(where.since, where.step),
        "layers_moved": where.moved,
        "layers_judged": where.total,
        "layer_concentration": where.concentration,
        "layer_reason": where.reason,
        "also_moved": list(where.also),
    }


def loss_follows(signals: Signals, onset: int) -> int | None:
    """Steps from ``onset`` to the loss leaving its baseline (negative: it was first); None when it did not."""
    if "train_loss" not in signals or loss_is_signed(signals):
        return None
    loss = signals["train_loss"]
    for spike in loss_spikes(signals, LOSS_SETTINGS).spikes:
        step = int(loss.step[spike.onset])
        if step < onset <= int(loss.step[spike.last]):  # already on its way
            return step - onset
        if onset - span(signals, 5) <= step <= onset + span(signals, LOSS_FOLLOWS_STEPS):
            return step - onset
    return None


def _nonfinite_follows(signals: Signals, onset: int, within: int = 50) -> bool:
    """Whether the loss becomes non-finite within ``within`` steps and the run does not recover from it."""
    after = signals["train_loss"].between(onset, onset + span(signals, within)).value
    whole = signals["train_loss"].value
    return bool((~np.isfinite(after)).any()) and not np.isfinite(whole[-1])


def _clip_coef(signals: Signals, onset: int, end: int) -> float | None:
    """Smallest clipping coefficient of the event; None when clipping is not recorded."""
    value = signals["clip_coef"].between(onset, end).value
    finite = value[np.isfinite(value)]
    return float(finite.min()) if len(finite) else None


def _jump_evidence(jump: LayerJump) -> dict[str, object]:
    return {
        "layer_ratio": jump.ratio,
        "layer_z": jump.z,
        "layer_step": jump.onset,
        **_from(jump.since, jump.onset),
        "layer_share": jump.share,
        "layer_record_ratio": jump.record,
        "layers_moved": jump.moved,
        "layers_judged": jump.total,
        "layer_concentration": jump.concentration,
        "layer_reason": "it alone left everything it had recently shown"
        if jump.moved == 1
        else f"it left everything it had recently shown, with {count(jump.moved - 1, 'other layer')}",
    }


def _from(since: int | None, step: int | None) -> dict[str, object]:
    """First step in which it may have been, when the run is thinned there."""
    return {} if since is None or since == step else {"layer_step_from": since}


def _others(jump: LayerJump) -> str:
    typical = jump.ratio / jump.concentration
    return "the other layers stayed at their level" if typical <= 2 else f"the median layer rose {times(typical)}"


def _layer_finding(signals: Signals, jump: LayerJump) -> Finding:
    follows = loss_follows(signals, jump.onset)
    nonfinite, lost = _nonfinite_follows(signals, jump.onset), loss_is_lost(signals, jump.onset)
    severity = Severity.WARNING if jump.proven or follows is not None else Severity.INFO
    at = f"at step {jump.onset}" if jump.since == jump.onset else f"between steps {jump.since} and {jump.onset}"
    return Finding(
        summary=f"Gradient norm of {jump.layer} rose {times(jump.ratio)} to {100 * jump.share:.0f} % of the whole norm "
        f"{at} while {_others(jump)}; {_outcome(follows, nonfinite, lost)}",
        onset_step=jump.since,
        first_step=jump.step,
        last_step=jump.last_step,
        severity=Severity.CRITICAL if nonfinite or lost else severity,
        layer=jump.layer,
        evidence={"loss_follows_steps": follows, **_jump_evidence(jump)},
    )


RULE = Rule(
    id="gradient-explosion",
    severity=Severity.WARNING,
    needs=("grad_norm_preclip",),
    check=gradient_explosion,
    remedy="Clip the gradient norm at about twice its usual value and look at the layer that moved first.",
)
