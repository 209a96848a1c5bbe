"""The training loss jumps away from its own recent level."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from monitor.diagnosis.context import (
    first_level,
    gradient_moved,
    is_lost,
    joined,
    loss_is_signed,
    loss_may_rise,
    loss_spikes,
    returns_change,
)
from monitor.diagnosis.habits import habits
from monitor.diagnosis.inputs import oddity_at
from monitor.diagnosis.localise import first_moved
from monitor.diagnosis.primitives import Spike, SpikeSettings
from monitor.diagnosis.rule import Abstained, Finding, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, percent, times
from monitor.signals import Signal

LINGER_STEPS = 300
"""A loss still above its old level this long after a spike is lingering (BLOOM-104B took up to 2 000 steps)."""
LEAST_OF_FEW = 6
LEVEL_OF_FEW = 3
"""Rows of a short log before the first that is judged."""
FAR_OF_FEW = 3.0
"""Multiple of the highest loss before at which one row of a short log is a spike. Our judgement: it has no baseline to
speak of, and its rows are means."""
ENORMOUS = 1e4
"""Multiple of the highest loss before at which one row tells without a baseline. Our judgement."""
FAR_OF_SIGNED = 30.0
"""Rise of a loss that may be negative, in spans of all rows before it and in its own size, at which it jumped. Our
judgement: it has no ratios, and the span holds the first fall and every spike so far."""
DIVERGED_ROWS = 50
"""Rows without a return after which a spike is called a divergence. Our judgement."""


def loss_spike(
    signals: Signals,
    *,
    effect: float = 0.08,
    z_single: float = 9.0,
    z_sustained: float = 5.0,
    linger: float = 0.02,
    diverged: float = 0.5,
    small: float = 0.25,
) -> Verdict:
    """The training loss jumps above its own recent level, in one step or over a few.

    Why it matters: a spike costs the steps until the loss is back, may leave a worse model behind, and may be the
    first sign of a divergence.

    Stays silent: on rises slower than a few steps (slow-divergence sees them); on a loss that is nearly zero already,
    where single samples make huge ratios; on restarts of the learning rate to an earlier height and on logged changes
    of data, batch size or sequence length, unless the rise is beyond +50 %; on a rise within 2.5 times the largest z
    that the run has recently shown (heavy-tailed small batches), unless the gradient norm is raised in the same step.
    What came back within two standard errors of the scatter has come back; the fourth single batch of up to twice the
    size of three before is information.
    In a log of up to 24 rows one above three times the highest before shows it; in these, and in the first 24 of any
    log, from the second row on one above 10^4 times. A loss that is often <= 0 has no ratios: one row must rise by
    thirty times the span of all before.

    Thresholds: ``effect``, smallest relative rise (+50 % in warm-up); ``z_single`` and ``z_sustained`` in robust
    standard deviations of log loss, the second for 3 of 5 rows; ``linger``, relative rise 300 steps later that is
    called lingering; ``diverged``, relative rise without return that is critical (at tenfold after 5 rows, else after
    50); ``small``, a single raised row below this rise, which no gradient confirms, is information only, and so is one
    below ``z_single`` whose gradient was not raised before and whose input is as usual: a hard batch. All are our
    judgement, calibrated on the controls in tests/monitor/diagnosis; the classes follow BLOOM's chronicles.

    Source: BLOOM-176B and 104B training logs (BigScience 2022, https://github.com/bigscience-workshop/bigscience);
    spikes of about 30 steps there, and PaLM section 5.1 (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311).
    """
    loss = signals["train_loss"]
    settings = SpikeSettings(effect=effect, z_single=z_single, z_sustained=z_sustained)
    if loss_is_signed(signals):
        if (signed := _of_signed(loss)) is None:
            return Abstained("the loss is often zero or negative, so a ratio to its own level has no meaning")
        return _of_policy(signals, loss, signed)
    if (rows := int((loss.value > 0).sum())) <= settings.least:
        few = _of_few(loss)
        if few is None and rows < LEAST_OF_FEW:
            return Abstained(f"{count(len(loss), 'loss')} recorded, at least {LEAST_OF_FEW} are needed for a baseline")
        return _of_policy(signals, loss, few)
    groups = joined(loss_spikes(signals, settings).spikes)
    course = Course(linger=linger, diverged=diverged, effect=effect, z_single=z_single)
    found = habits((_finding(signals, loss, group, course, small) for group in groups), _is_one_batch)
    first = _of_few(loss, settings.least)
    found = found if first is None else [first, *found]
    return [told for finding in found if (told := _of_policy(signals, loss, finding)) is not None]


def _is_one_batch(finding: Finding) -> bool:
    """Whether one loss rose and the next ones were as before."""
    return finding.evidence["course"] == "transient" and finding.evidence["raised_rows"] == 1


def _of_policy(signals: Signals, loss: Signal, finding: Finding | None) -> Finding | None:
    """The finding, as information where a policy's loss rose that is not lost: it is as large as the returns. Likewise
    where it is one of several losses that are minimised in turn."""
    if finding is None or not loss_may_rise(signals):
        return finding
    base, onset = float(finding.evidence["baseline_loss"]), finding.onset_step
    lost = is_lost(loss, onset, base) and returns_change(signals, onset) <= 0
    return finding if lost else replace(finding, severity=Severity.INFO)


def _of_few(loss: Signal, first_rows: int | None = None) -> Finding | None:
    """A log of up to 24 rows, often means over hundreds of steps: one of them is many times as high as any before. Of a
    longer one the ``first_rows`` alone, for which there is no baseline yet, and what is enormous."""
    keep = np.isfinite(loss.value) & (loss.value > 0)
    step, value = loss.step[keep], loss.value[keep]
    ratios = value[1:] / np.maximum.accumulate(value)[:-1]
    known = np.arange(1, len(value)) >= LEVEL_OF_FEW if len(value) >= LEAST_OF_FEW else False
    if first_rows is not None:
        ratios, known = ratios[: first_rows - 1], False
    rows = np.flatnonzero((ratios > ENORMOUS) | (known & (ratios > FAR_OF_FEW))) + 1
    if len(rows) == 0:
        return None
    row = int(rows[0])
    base = float(np.median(value[max(0, row - 5) : row]))
    back = row + 1 < len(value) and float(value[row + 1 :].min()) < 2 * base
    ratio = float(value[row] / base)
    return Finding(
        summary=f"Training loss rose from {number(base)} to {number(float(value[row]))} ({times(ratio)}) at step "
        f"{int(step[row])}" + (", and came back" if back else " and is not back"),
        onset_step=int(step[row]),
        first_step=int(step[row]),
        last_step=int(step[row] if back else step[-1]),
        severity=Severity.WARNING if back else Severity.CRITICAL,
        evidence={"baseline_loss": base, "peak_loss": float(value[row]), "peak_ratio": ratio, "rows": len(value)},
    )


def _of_signed(loss: Signal) -> Finding | None:
    """A loss that may be negative, as a density's: one row is out of all proportion to the rows before it."""
    keep = np.isfinite(loss.value)
    step, value = loss.step[keep], loss.value[keep]
    if len(value) < LEAST_OF_FEW:
        return None
    highest, lowest = np.maximum.accumulate(value)[:-1], np.minimum.accumulate(value)[:-1]
    size = np.maximum(highest - lowest, np.maximum(np.abs(highest), np.abs(lowest)))
    rows = np.flatnonzero(((size > 0) & (value[1:] - highest > FAR_OF_SIGNED * size))[LEVEL_OF_FEW:]) + 1 + LEVEL_OF_FEW
    if len(rows) == 0:
        return None
    row = int(rows[0])
    before = value[max(0, row - 20) : row]
    base, after = float(np.median(before)), value[row + 1 :]
    top = float(before.max() + np.ptp(before))
    back = len(after) > 0 and float(np.median(after[-10:])) <= top
    return Finding(
        summary=f"Training loss rose from {number(base)} to {number(float(value[row]))} at step {int(step[row])}"
        + (", and came back" if back else " and is not back"),
        onset_step=int(step[row]),
        first_step=int(step[row]),
        last_step=int(step[row] if back else step[-1]),
        severity=Severity.WARNING if back else Severity.CRITICAL,
        evidence={"baseline_loss": base, "peak_loss": float(value[row]), "rows": len(value)},
    )


@dataclass(frozen=True, slots=True)
class Course:
    """What became of a spike, and the thresholds that decide it."""

    linger: float
    diverged: float
    effect: float
    z_single: float

    def word(self, loss: Signal, group: list[Spike]) -> str:
        """``transient``, ``lingering``, ``level shift``, ``divergent`` or ``ongoing``."""
        base, last = group[0].baseline, group[-1]
        if not last.over and not np.isfinite(loss.value[-1]):
            return "divergent"
        after = loss.value[last.last + 1 :]
        after = after[np.isfinite(after)]
        soon = float(np.median(after[:50])) if len(after) >= 10 else None
        noise = _noise(group)
        old = base * max(1 + self.effect, noise)
        if last.over and not last.accepted and (soon is None or soon <= old):
            return "lingering" if self._lingers(loss, last, base, noise) else "transient"
        level = float(np.median(after[-50:] if soon is not None else _finite_tail(loss, 10)))
        if level <= old:
            return "transient"
        if last.last - group[0].onset + 1 + len(after) < DIVERGED_ROWS:
            return "divergent" if is_lost(loss, int(loss.step[group[0].onset]), base) else "ongoing"
        lost = level > base * (1 + self.diverged) or level > first_level(loss)
        return "divergent" if lost else "level shift"

    def _lingers(self, loss: Signal, last: Spike, base: float, noise: float) -> bool:
        end = int(loss.step[last.last])
        later = loss.between(end + LINGER_STEPS - 50, end + LINGER_STEPS + 50).value
        later = later[np.isfinite(later)]
        return len(later) >= 10 and float(np.median(later)) > base * max(1 + self.linger, noise)


def _noise(group: list[Spike]) -> float:
    """Factor within which the median of fifty losses is that of the fifty before, by the scatter that the excursion was
    held against: two standard errors of their difference, sqrt(pi / 2) sd sqrt(2 / 50) each, of the logarithm."""
    peak = max(group, key=lambda spike: spike.z)
    if not (peak.logarithmic and 0 < peak.baseline < peak.peak_value and np.isfinite(peak.z)):
        return 1.0
    sd = np.log(peak.peak_value / peak.baseline) / peak.z
    return float(np.exp(2 * np.sqrt(np.pi / 2 * 2 / 50) * sd))


def _finite_tail(loss: Signal, rows: int) -> np.ndarray:
    return loss.value[np.isfinite(loss.value)][-rows:]


_SENTENCE = {
    "transient": ", back after {span}",
    "lingering": " and is still {above} above its old level 300 steps later",
    "level shift": " and stays at a new level",
    "divergent": " and does not come back",
    "ongoing": " and is not back yet",
}


def _is_hard_batch(signals: Signals, group: list[Spike], course: Course, lead: int | None, onset: int) -> bool:
    """One raised row below ``z_single`` whose input is as usual: a batch that is hard raises its loss and its gradient
    alike, so neither confirms the other."""
    single = sum(spike.raised for spike in group) == 1 and max(spike.z for spike in group) < course.z_single
    return single and not lead and oddity_at(signals, onset) == ""


def _finding(signals: Signals, loss: Signal, group: list[Spike], course: Course, small: float) -> Finding:
    first, last = group[0], group[-1]
    peak = max(group, key=lambda spike: spike.peak_value)
    onset, end = int(loss.step[first.onset]), int(loss.step[last.last])
    word = course.word(loss, group)
    lead = gradient_lead(signals, onset)
    ratio = peak.peak_value / first.baseline if first.baseline > 0 else float("inf")
    raised = sum(spike.raised for spike in group)
    confirmed = lead is not None
    severity = Severity.WARNING
    if word == "divergent":
        severity = Severity.CRITICAL
    elif (_is_hard_batch(signals, group, course, lead, onset) and word in ("transient", "ongoing")) or (
        word == "transient" and raised == 1 and ratio < 1 + small and not confirmed
    ):
        severity = Severity.INFO
    where = first_moved(signals.layers("grad_norm_preclip"), onset - (lead or 0), end)
    sentence = _SENTENCE[word].format(span=count(end - onset + 1, "step"), above=percent(course.linger))
    rise = percent(ratio - 1) if ratio < 3 else times(ratio)
    return Finding(
        summary=f"Training loss rose from {number(first.baseline)} to {number(peak.peak_value)} ({rise}) at step "
        f"{int(loss.step[peak.peak])}{sentence}",
        onset_step=onset,
        first_step=int(loss.step[first.fired]),
        last_step=end if last.over else int(loss.step[-1]),
        severity=severity,
        layer=where.layer if where else None,
        evidence={
            "course": word,
            "baseline_loss": first.baseline,
            "peak_loss": peak.peak_value,
            "peak_step": int(loss.step[peak.peak]),
            "peak_ratio": ratio,
            "z": max(spike.z for spike in group),
            "raised_rows": raised,
            "gradient_lead_steps": lead,
            **(
                {"layers_moved": where.moved, "layers_judged": where.total, "layer_reason": where.reason}
                if where
                else {}
            ),
        },
    )


def gradient_lead(signals: Signals, onset: int) -> int | None:
    """Steps by which the gradient norm left its baseline before the loss did; None when it did not."""
    moved = gradient_moved(signals, onset)
    return None if moved is None else onset - moved


RULE = Rule(
    id="loss-spike",
    severity=Severity.WARNING,
    needs=("train_loss",),
    check=loss_spike,
    remedy="Look at the batches of these steps and at the learning rate; go back to the checkpoint before the spike if "
    "the loss does not return.",
    essential=True,
)
