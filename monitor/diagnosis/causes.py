"""Why it happened: causes ranked by the evidence around a finding, for and against, with "unknown" as an answer.

Each cause adds up weights of evidence; confidence is the softmax over the causes and "unknown", so it is a share of
belief, not a calibrated probability. Weights are our judgement of the table in the design notes (diagnosis.md 1.9).
A signal that was not recorded is named among the counter-evidence and never counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from monitor.diagnosis.context import (
    GRADIENT_SETTINGS,
    LOSS_SETTINGS,
    gradient_moved,
    gradient_signal,
    gradient_spikes,
    loss_is_signed,
    loss_spikes,
    lr_jump_steps,
    span,
    warmup_end,
)
from monitor.diagnosis.inputs import change_at, oddity_at
from monitor.diagnosis.lasting import measured
from monitor.diagnosis.primitives import Spike
from monitor.diagnosis.rule import Cause, Finding
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, times

UNKNOWN_SCORE = 0.5
"""Score of "unknown": about one weak piece of evidence must be beaten. Our judgement."""
MARGIN = 0.1
"""Two leading causes closer than this in confidence are not told apart. Our judgement."""
LEAST_CONFIDENCE = 0.04
REPLAY_WEIGHT = 6.0
"""Of a replay's verdict, the only evidence that is an experiment: more than all other together. Our judgement."""
OF_THE_DATA = ("bad-batch", "non-finite-input", "data-change")
"""Causes that lie in what was trained on."""
MOST_CAUSES = 5


@dataclass(frozen=True, slots=True)
class Scene:
    """What the signals show around one event. None always means "not recorded" or "not applicable"."""

    finding: Finding
    onset: int
    loss_onset: int | None
    """Step at which the loss left its baseline; None when it did not."""
    gradient_onset: int | None
    """Step at which the gradient norm left its baseline; None when it did not."""
    has_gradient: bool
    has_layers: bool
    gradient_rows: int
    """Raised rows of the gradient excursion."""
    gradient_ratio: float
    loss_rows: int
    growth: int
    """Steps in a row, up to the gradient's peak, at which the norm grew by half or more."""
    lr_jump: float | None
    """Factor of a jump of the learning rate to a new height within five steps before the onset; 1 without, None
    without a learning rate."""
    lr_share: float | None
    """Learning rate at the onset as a share of the highest so far."""
    in_warmup: bool | None
    """Within three times the warm-up, the unstable zone of BLOOM's notes."""
    resumed: int | None
    """Step of a resume at most ten steps before the onset."""
    data_changed: int | None
    scale_fell: bool | None
    precision: str | None
    beta2: float | None
    rms: tuple[str, float] | None
    """Tensor with the largest RMS_t of Adam around the onset, and its value; None when it was not measured there."""
    update_ratio: float | None
    """Largest update-to-weight ratio around the onset."""
    odd_input: str | None
    """As ``oddity_at`` says of the onset's batch."""
    other_input: str | None
    """As ``change_at`` says of the batches from the onset on."""
    concentration: float | None
    moved_share: float | None
    layer: str | None
    replayed: str | None
    """Verdict of the last replay of a step of this event: ``batch``, ``state`` or ``not told apart``."""

    @property
    def lead(self) -> int | None:
        """Steps by which the gradient was ahead of the loss; None unless both moved."""
        if self.loss_onset is None or self.gradient_onset is None:
            return None
        return self.loss_onset - self.gradient_onset

    @property
    def course(self) -> str | None:
        """What became of a loss spike; None for other findings."""
        return self.finding.evidence.get("course")

    @property
    def began(self) -> str | None:
        """Where a non-finite number appeared first; None for other findings."""
        return self.finding.evidence.get("began_in")

    @property
    def origin(self) -> str | None:
        """Where the monitor itself saw a non-finite number first: ``input``, ``forward``, ``backward``, ``loss``,
        ``weights``; None when it did not look."""
        return self.finding.evidence.get("origin")

    @property
    def rose(self) -> int | None:
        """Step from which the gradient rose before it became non-finite."""
        return self.finding.evidence.get("gradient_rose_from_step")

    @property
    def to_the_end(self) -> bool:
        """Whether a non-finite number stayed to the last step."""
        return bool(self.finding.evidence.get("until_the_end"))

    @property
    def lr_jumped(self) -> bool:
        return (self.lr_jump or 1.0) > 2

    @property
    def alone(self) -> bool:
        """One layer rose far beyond the typical one, and few others left their baselines."""
        return self.concentration is not None and self.concentration > 10 and (self.moved_share or 1) < 0.3

    @property
    def together(self) -> bool:
        return self.moved_share is not None and self.moved_share > 0.6


def scene(finding: Finding, signals: Signals) -> Scene:
    """The facts around ``finding``."""
    onset = finding.onset_step
    evidence = finding.evidence
    loss = _near(signals, "loss", onset, finding.last_step)
    gradient = _near(signals, "gradient", onset, finding.last_step)
    moved_at = gradient[0] if gradient else gradient_moved(signals, loss[0]) if loss else None
    if finding.id == "gradient-explosion" and evidence.get("layer_step") is not None:
        # One layer's growth may be hidden in the whole norm, for some steps or for good.
        moved_at = min(moved_at or evidence["layer_step"], evidence["layer_step"])
    lr = signals["lr"].between(None, onset)
    matrix = signals.layers("grad_norm_preclip")
    moved, judged = evidence.get("layers_moved"), evidence.get("layers_judged")
    warm = warmup_end(signals)
    config = signals.facts.config or {}
    return Scene(
        finding=finding,
        onset=onset,
        loss_onset=loss[0] if loss else None,
        gradient_onset=moved_at,
        has_gradient="grad_norm_preclip" in signals,
        has_layers=matrix is not None,
        gradient_rows=gradient[1].raised if gradient else 0,
        gradient_ratio=gradient[1].ratio if gradient else 1.0,
        loss_rows=loss[1].raised if loss else 0,
        growth=_growth(signals, gradient[1]) if gradient else 0,
        lr_jump=_lr_jump(signals, onset),
        lr_share=float(lr.value[-1] / np.nanmax(lr.value)) if len(lr) and np.nanmax(lr.value) > 0 else None,
        in_warmup=None if warm is None else onset <= 3 * warm,
        resumed=_latest(signals, onset, 10, "resume"),
        data_changed=_latest(signals, onset, 5, "data_stage", "batch_size", "seq_len"),
        scale_fell=_scale_fell(signals, onset),
        precision=_lookup(config, "precision", "kind"),
        beta2=_lookup(config, "optimizer", "beta2") if _lookup(config, "optimizer", "kind") == "adamw" else None,
        rms=_largest_rms(signals, onset),
        update_ratio=_largest_update(signals, onset),
        odd_input=oddity_at(signals, onset),
        other_input=change_at(signals, onset),
        concentration=evidence.get("layer_concentration"),
        moved_share=moved / judged if moved is not None and judged else None,
        layer=finding.layer,
        replayed=replayed(signals, onset, max(finding.last_step, loss[0] if loss else onset)),
    )


def replayed(signals: Signals, first: int, last: int) -> str | None:
    """What the last replay of a step from ``first`` to ``last`` says: ``batch``, ``state`` or ``not told apart``."""
    told = [event for event in signals.events("replay") if event.step is not None and first <= event.step <= last]
    verdict = told[-1].fields.get("verdict") if told else None
    return verdict if verdict in ("batch", "state", "not told apart") else None


def _lookup(config: Any, *path: str) -> Any:
    for key in path:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _near(signals: Signals, which: str, onset: int, last: int) -> tuple[int, Spike] | None:
    """(onset step, excursion) of the loss or the gradient norm that belongs to an event; the earliest one."""
    if which == "loss":
        if "train_loss" not in signals or loss_is_signed(signals):
            return None
        series, track = signals["train_loss"], loss_spikes(signals, LOSS_SETTINGS)
    else:
        series, track = gradient_signal(signals), gradient_spikes(signals, GRADIENT_SETTINGS)
    near = span(signals, 20)
    for spike in track.spikes:
        step = int(series.step[spike.onset])
        if onset - near <= step <= max(onset + near, min(last, onset + 50)):
            return step, spike
    return None


def _growth(signals: Signals, spike: Spike) -> int:
    value = gradient_signal(signals).value[max(0, spike.onset - 1) : spike.peak + 1]
    value = value[np.isfinite(value)]
    grown = 0
    for before, after in zip(value[::-1][1:], value[::-1], strict=False):
        if after < 1.5 * before:
            break
        grown += 1
    return grown


def _lr_jump(signals: Signals, onset: int) -> float | None:
    lr = signals["lr"]
    if len(lr) == 0:
        return None
    for step in lr_jump_steps(signals):
        if onset - span(signals, 5) <= step <= onset + span(signals, 1):
            row = int(np.searchsorted(lr.step, step))
            return float(lr.value[row] / lr.value[row - 1]) if lr.value[row - 1] > 0 else math.inf
    return 1.0


def _latest(signals: Signals, onset: int, within: int, *kinds: str) -> int | None:
    steps = [
        e.step
        for e in signals.events(*kinds)
        if e.step is not None and onset - span(signals, within) <= e.step <= onset
    ]
    return max(steps, default=None)


def _scale_fell(signals: Signals, onset: int) -> bool | None:
    scale = signals["loss_scale"]
    if len(scale) == 0:
        return None
    value = scale.between(onset - 10, onset + 1).value
    return bool((np.diff(value) < 0).any())


def _largest_rms(signals: Signals, onset: int) -> tuple[str, float] | None:
    matrix = signals.layers("adam_rms")
    if matrix is None:
        return None
    rows = (matrix.step >= onset - span(signals, 10)) & (matrix.step <= onset + 1)
    value = measured(matrix)[rows]
    if not np.isfinite(value).any():
        return None
    column = int(np.nanargmax(np.nanmax(np.where(np.isfinite(value), value, -np.inf), axis=0)))
    return matrix.names[column], float(np.nanmax(value[:, column]))


def _largest_update(signals: Signals, onset: int) -> float | None:
    value = signals["update_to_weight_ratio"].between(onset - span(signals, 20), onset + 2).value
    value = value[np.isfinite(value)]
    return float(value.max()) if len(value) else None


class Weigher:
    """Evidence of one cause: a score and two lists of sentences."""

    def __init__(self, cause: str, prior: float = 0.0) -> None:
        self.cause = cause
        self.score = prior
        self.supports: list[str] = []
        self.against: list[str] = []

    def count(self, weight: float, sentence: str, when: bool = True) -> None:
        """Add ``weight`` and its sentence, when it holds."""
        if when:
            self.score += weight
            (self.supports if weight > 0 else self.against).append(sentence)

    def missing(self, what: str, when: bool = True) -> None:
        """Name a measurement that would have helped."""
        if when:
            self.against.append(f"not recorded: {what}")


def _bad_batch(s: Scene) -> Weigher:
    w = Weigher("bad-batch")
    if s.lead is not None:
        w.count(2.0, "loss and gradient left their baselines in the same step, before an update could act", s.lead == 0)
        w.count(1.0, "the loss moved before the gradient", s.lead < 0)
        w.count(-2.0, f"the gradient was {count(s.lead, 'step')} ahead of the loss", s.lead > 0)
    elif s.loss_onset is not None:
        w.missing("grad_norm_preclip, to see which of loss and gradient moved first", not s.has_gradient)
    else:
        w.count(-1.5, "the loss on that batch was normal")
    raised = max(s.loss_rows, s.gradient_rows)
    w.count(1.2, f"over after {count(raised, 'raised step')}", 0 < raised <= 10 and s.course in (None, "transient"))
    w.count(-1.5, f"lasted {raised} raised steps", raised > 30)
    w.count(-2.0, "the loss did not come back", s.course in ("lingering", "level shift", "divergent"))
    w.count(0.4, "most layers moved together", s.together)
    w.count(-2.0, "one layer alone moved", s.alone)
    w.count(-2.5, "the learning rate had just jumped", s.lr_jumped)
    w.count(2.0, s.odd_input or "", bool(s.odd_input))
    w.count(-0.5, "the batch's fingerprint is like those before", s.odd_input == "")
    w.missing("a replay of the batch on earlier weights, which would settle it", s.replayed is None)
    return w


def _lr_too_high(s: Scene) -> Weigher:
    w = Weigher("lr-too-high", -0.3)
    w.missing("lr", s.lr_jump is None)
    w.count(4.0, f"the learning rate jumped {times(s.lr_jump or 1)} to a new height just before", s.lr_jumped)
    if s.lr_share is not None:
        w.count(0.6, f"the learning rate was at {100 * s.lr_share:.0f} % of its highest", s.lr_share > 0.8)
        w.count(-1.5, f"the learning rate had decayed to {100 * s.lr_share:.0f} % of its highest", s.lr_share < 0.3)
    w.count(0.8, "within three times the warm-up, where high learning rates show", bool(s.in_warmup))
    w.count(1.0, f"the gradient grew for {s.growth} steps in a row", s.growth >= 3)
    slow = s.finding.id == "slow-divergence"
    w.count(1.3, "the loss climbed steadily, not at once", slow)
    w.count(0.8, "it does not come back", s.course == "divergent" and (s.lead or 0) > 0)
    w.count(0.5, "most layers moved", s.together)
    w.count(-1.5, "one layer alone moved", s.alone)
    w.count(-1.0, "it was a single step", s.gradient_rows + s.loss_rows in (1, 2) and not slow and not s.lr_jumped)
    if s.update_ratio is not None:
        told = f"a step changed the weights by {number(s.update_ratio)} of their norm"
        w.count(1.5, told, s.update_ratio > 0.05)
        w.count(-0.5, told, s.update_ratio < 0.003)
    w.missing("update-to-weight ratio", s.update_ratio is None)
    return w


def _corrupted_gradient(s: Scene) -> Weigher:
    w = Weigher("corrupted-gradient", -0.5)
    w.missing("grad_norm_preclip per layer, to see whether one layer moved alone", not s.has_layers)
    if s.concentration is None:
        return w
    one = s.concentration > 5
    normal_loss = s.gradient_onset is not None and (s.loss_onset is None or (s.lead or 0) > 0)
    w.count(2.0, f"{s.layer} rose {times(s.concentration)} against the typical layer in the same step", one)
    w.count(0.8, "the other layers stayed inside their baselines", one and (s.moved_share or 1) < 0.3)
    w.count(-2.0, "the layers moved together", s.concentration < 3 and (s.moved_share or 0) > 0.5)
    w.count(0.8, "the loss of that step was normal", normal_loss)
    w.count(-0.7, "the loss moved in the same step", s.lead is not None and s.lead <= 0)
    return w


def _gradient_explosion(s: Scene) -> Weigher:
    w = Weigher("gradient-explosion", -0.3)
    if not s.has_gradient:
        w.missing("grad_norm_preclip")
        return w
    lead = s.lead or 0
    w.count(1.8, f"the gradient left its baseline {count(lead, 'step')} before the loss", lead > 0)
    grew = f"the gradient grew for {s.growth} steps in a row, {times(s.gradient_ratio)} in all"
    w.count(1.2, grew, s.growth >= 2)
    w.count(2.5, f"the gradient had been rising since step {s.rose}", s.rose is not None)
    w.count(-2.0, "the gradient norm stayed inside its baseline", s.gradient_onset is None and s.rose is None)
    w.count(-1.0, "loss and gradient moved in the same step", s.lead == 0)
    return w


def _fp16(s: Scene) -> Weigher:
    w = Weigher("fp16-overflow", -1.0)
    if s.scale_fell is not None:
        w.count(2.0, "the loss scale fell around the onset", s.scale_fell)
        w.count(-2.0, "the loss scale did not move", not s.scale_fell)
    else:
        w.missing("loss_scale and the number format", s.precision is None)
    w.count(0.5, "the run trains in fp16", s.precision == "fp16")
    w.count(-3.0, f"the run trains in {s.precision}, whose exponent is wide", s.precision in ("fp32", "bf16"))
    return w


def _stale_second_moment(s: Scene) -> Weigher:
    w = Weigher("stale-second-moment", -0.8)
    if s.beta2 is not None and s.beta2 < 1:
        memory = f"Adam's beta2 is {number(s.beta2)}: the second moment remembers {1 / (1 - s.beta2):.0f} steps"
        w.count(0.7, memory, s.beta2 >= 0.99)
        w.count(-0.7, memory, s.beta2 < 0.99)
    embedding = any(word in (s.layer or "").lower() for word in ("emb", "wte", "wpe", "patch"))
    w.count(0.8, f"{s.layer}, an embedding, moved first", embedding)
    w.count(0.6, "the gradient was 1 to 8 steps ahead of the loss", 1 <= (s.lead or 0) <= 8)
    w.count(-1.0, "the learning rate had just jumped", s.lr_jumped)
    if s.rms is not None:
        layer, rms = s.rms
        w.count(3.0, f"RMS_t of {layer} was {number(rms)}, about 1 is usual", rms > 5)
        w.count(-2.0, f"RMS_t was {number(rms)} at most, as usual", rms < 3.5)
    w.missing("Adam's RMS_t = sqrt(mean(g^2 / v)) per tensor, which would decide", s.rms is None)
    return w


def _wrong_resume(s: Scene) -> Weigher:
    w = Weigher("wrong-resume", -0.5)
    w.count(3.5, f"training had been resumed at step {s.resumed}", s.resumed is not None)
    w.count(-3.0, "no resume in the ten steps before", s.resumed is None)
    return w


def _data_change(s: Scene) -> Weigher:
    w = Weigher("data-change", -0.6)
    stays = s.course in ("level shift", "divergent") or s.finding.id == "slow-divergence"
    first = s.has_gradient and (s.gradient_onset is None or (s.lead or 0) <= 0)
    w.count(3.0, f"a change of data was logged at step {s.data_changed}", s.data_changed is not None)
    w.count(3.0, str(s.other_input), s.other_input is not None)
    w.count(1.0, "the loss went to a new level and stays there", stays and s.gradient_ratio < 10)
    w.count(0.8, "the loss moved first or alone", stays and first)
    w.count(-1.5, "the gradient exploded", s.gradient_ratio >= 30)
    w.count(-2.0, "the learning rate had just jumped", s.lr_jumped)
    return w


def _nonfinite_input(s: Scene) -> Weigher:
    w = Weigher("non-finite-input", 0.2)
    forward = s.began in ("loss", "zero loss")
    w.count(1.2, "the loss was the first to be non-finite, without warning", forward and s.rose is None)
    w.count(1.5, "later batches were finite again, so the weights were not hit", forward and not s.to_the_end)
    w.count(-2.5, "the gradient had been rising before", s.rose is not None)
    w.count(-2.0, "the loss of that step was finite", s.began == "gradient")
    w.count(4.0, "the batch itself held values that are not finite", s.origin == "input")
    w.count(-2.5, f"the number was made in the {s.origin}", s.origin in ("forward", "backward", "weights"))
    w.missing("a fingerprint of the input batch", s.odd_input is None)
    return w


def _undefined_operation(s: Scene) -> Weigher:
    w = Weigher("undefined-operation", 0.3)
    backward = s.began == "gradient"
    hit, clean = s.finding.evidence.get("layers_nonfinite"), s.finding.evidence.get("layers_finite")
    w.count(1.8, "the loss was finite and only the backward pass was not, as from sqrt, log or a norm at 0", backward)
    w.count(1.0, f"only {hit} of the layers are hit, from {s.layer} on", backward and bool(clean))
    w.count(0.5, "it began in the forward pass without a rising gradient", s.began == "loss" and s.rose is None)
    w.count(0.4, "it never recovers, so the weights themselves are hit", s.to_the_end and s.began == "loss")
    w.count(-2.0, "the gradient had been rising before", s.rose is not None)
    seen = s.origin in ("forward", "backward", "loss")
    where = s.finding.evidence.get("origin_text")
    w.count(2.5, str(where), seen and s.rose is None)
    w.count(-2.5, "the batch itself held values that are not finite", s.origin == "input")
    unseen = s.began == "loss" and s.origin is None
    w.missing("activations per layer, to see where the forward pass went wrong", unseen)
    return w


_CANDIDATES: dict[str, tuple[Callable[[Scene], Weigher], ...]] = {
    "non-finite": (_nonfinite_input, _undefined_operation, _gradient_explosion, _lr_too_high, _fp16, _wrong_resume),
    "gradient-explosion": (_bad_batch, _lr_too_high, _corrupted_gradient, _stale_second_moment, _fp16, _wrong_resume),
    "loss-spike": (
        _bad_batch, _lr_too_high, _corrupted_gradient, _gradient_explosion, _stale_second_moment, _data_change, _fp16,
        _wrong_resume,
    ),
    "slow-divergence": (_lr_too_high, _data_change, _gradient_explosion, _fp16, _wrong_resume),
}  # fmt: skip


def rank(finding: Finding, signals: Signals) -> tuple[Cause, ...]:
    """Causes of ``finding``, most likely first; "unknown" leads when the margin between the first two is small."""
    candidates = _CANDIDATES.get(finding.id, ())
    if not candidates:
        return ()
    around = scene(finding, signals)
    weighers = [candidate(around) for candidate in candidates]
    for weigher in weighers:
        _weigh_replay(weigher, around)
    return _ranked(weighers)


def _weigh_replay(w: Weigher, s: Scene) -> None:
    """A replay settles whether data or state were to blame; which state, and which data, it does not tell."""
    high = "a replay found the batch high also with much earlier weights"
    if w.cause in OF_THE_DATA:
        w.count(REPLAY_WEIGHT, high, s.replayed == "batch")
        w.count(-REPLAY_WEIGHT, "a replay found the batch ordinary with earlier weights", s.replayed == "state")
    elif w.cause != "undefined-operation":  # which may meet in every state what it cannot take
        w.count(-REPLAY_WEIGHT, high, s.replayed == "batch")


def _ranked(weighers: Iterable[Weigher]) -> tuple[Cause, ...]:
    listed = sorted(weighers, key=lambda w: -w.score)
    total = math.exp(UNKNOWN_SCORE) + sum(math.exp(w.score) for w in listed)
    shares = [math.exp(w.score) / total for w in listed]
    unknown_share = math.exp(UNKNOWN_SCORE) / total
    causes = [
        Cause(w.cause, round(share, 3), tuple(w.supports), tuple(w.against))
        for w, share in zip(listed, shares, strict=True)
        if share >= LEAST_CONFIDENCE and w.supports
    ][:MOST_CAUSES]
    second = causes[1].confidence if len(causes) > 1 else 0.0
    if not causes:
        return (Cause("unknown", 1.0, against=("no cause has evidence for it",)),)
    if causes[0].confidence < unknown_share:
        reason = "no cause has more evidence than chance would give"
    elif causes[0].confidence - second < MARGIN:
        reason = f"{causes[0].id} and {causes[1].id} fit about equally well"
    else:
        return tuple(causes)
    return (Cause("unknown", round(unknown_share, 3), supports=(reason,)), *causes)
