"""A NaN or an infinity in the loss or in a gradient."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from monitor.diagnosis.context import (
    GRADIENT_SETTINGS,
    first_level,
    gradient_signal,
    gradient_spikes,
    is_reinforcement,
    span,
)
from monitor.diagnosis.localise import NonfiniteLayers, first_moved, nonfinite_layers, nonfinite_steps
from monitor.diagnosis.primitives import episodes, nonfinite_rows, word_for
from monitor.diagnosis.rule import Abstained, Finding, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, steps
from monitor.signals import Signal

FIRST_ROWS = 30
OVERFLOWING = 1e6
"""Multiple of the first gradient norm, reached in the first rows, that no healthy training shows. Our judgement."""


def non_finite(
    signals: Signals,
    *,
    gap: int = 20,
    isolated_rows: int = 2,
    zero_rows: int = 3,
    zero_fall: float = 0.02,
) -> Verdict:
    """A NaN or an infinity in the training loss or a part of it, the validation loss, the gradient norm or one layer's.

    Why it matters: one optimizer step with a NaN in the gradient makes every weight NaN, and the run is lost from
    there on whatever the later steps look like.

    Stays silent: on the back-off of mixed precision, a step whose gradient overflowed while the loss stayed finite and
    the loss scale was lowered; that is how the scaler finds its scale. Information only: gradients that were
    non-finite for a row or two and then finite again, because then the update cannot have been applied.
    A positive loss that drops to exactly 0 and stays there counts as non-finite, and so does an exact 0 whose gradient
    is not finite: some trainers log NaN as 0, and a real loss gets there gradually or not at all. Not so where a
    reward is logged: a policy loss may be 0.

    Where neither loss nor gradient norm is known by its name: a loss of whatever name that is non-finite to the end, or
    half of all that is measured in ``COLUMN_ROWS`` rows or in the last.

    Thresholds: zero tolerance on values. ``gap``, rows between two non-finite rows of one episode; ``isolated_rows``,
    non-finite rows that are information when gradients recover; ``zero_rows``, rows at exactly 0 in a row;
    ``zero_fall``, share of the first losses above which the loss must have been before, and ten times the last digit
    logged. Our judgement.

    A perplexity that was finite and is infinite to the end, or that is so late in a run whose loss does not fall,
    stands for a loss of some hundred nats a token, beyond the range of exp: no guess is as bad.

    Source: Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740 (loss scaling); torch.amp.GradScaler.
    """
    if "train_loss" not in signals and "grad_norm_preclip" not in signals:
        reason = "neither the loss nor the gradient norm is recorded"
        return _parts(signals) or _columns(signals) or Abstained(reason, ("train_loss", "grad_norm_preclip"))
    trace = Trace.of(signals, zero_rows, zero_fall)
    found = [Episode.of(trace, first_row, last_row) for first_row, last_row in episodes(trace.bad_rows, gap)]
    findings = [_episode(signals, episode, trace.zero_from, isolated_rows) for episode in found]
    isolated = [finding for finding in findings if finding.severity is Severity.INFO]
    if len(isolated) > 3:
        findings = [f for f in findings if f.severity is not Severity.INFO] + [_together(isolated)]
    return findings + _validation(signals) + ([] if findings else _parts(signals) or _perplexity(signals))


@dataclass(frozen=True, slots=True)
class Trace:
    """Every recorded step, and what was non-finite at it."""

    step: np.ndarray
    """int64[T]: steps at which the loss, the global norm or a layer was recorded."""
    loss: np.ndarray
    """bool[T]: loss non-finite, or an exact 0 that stands for it."""
    gradient: np.ndarray
    """bool[T]: global norm or any layer non-finite, scaler back-offs left out."""
    backed_off: np.ndarray
    """bool[T]: gradient non-finite, and the scaler skipped the step and lowered its scale."""
    zero_from: int | None
    """Step from which the loss is exactly 0."""

    @property
    def bad_rows(self) -> np.ndarray:
        return np.flatnonzero(self.loss | self.gradient)

    @classmethod
    def of(cls, signals: Signals, zero_rows: int, zero_fall: float) -> Trace:
        loss, norm = signals["train_loss"], signals["grad_norm_preclip"]
        matrix = signals.layers("grad_norm_preclip")
        layer_steps = matrix.step if matrix is not None else np.zeros(0, np.int64)
        step = np.union1d(np.union1d(loss.step, norm.step), layer_steps)
        zeros = zero_steps(signals, zero_rows, zero_fall)
        bad_loss = np.isin(step, np.union1d(loss.step[nonfinite_rows(loss.value)], zeros))
        bad_norm = norm.step[nonfinite_rows(norm.value)]
        gradient_steps = np.union1d(bad_norm, nonfinite_steps(matrix, bad_norm))
        bad_gradient = np.isin(step, gradient_steps)
        backed_off = bad_gradient & ~bad_loss & np.isin(step, _back_offs(signals, gradient_steps))
        return cls(step, bad_loss, bad_gradient & ~backed_off, backed_off, int(zeros[0]) if len(zeros) else None)


def zero_steps(signals: Signals, rows: int, fall: float) -> np.ndarray:
    """Steps at which a loss of exactly 0 stands for a NaN that the trainer did not log.

    Those whose gradient was not finite; and those of a loss that was positive, fell to exactly 0 at once, and stays
    there for ``rows`` rows or more.
    """
    loss, norm = signals["train_loss"], signals["grad_norm_preclip"]
    zero = np.flatnonzero(loss.value == 0)
    if len(zero) == 0 or is_reinforcement(signals):
        return np.zeros(0, np.int64)
    hit = np.intersect1d(loss.step[zero], norm.step[nonfinite_rows(norm.value)])
    return np.union1d(hit, loss.step[zero] if _fell_at_once(loss, int(zero[0]), rows, fall) else [])


def _fell_at_once(loss: Signal, first: int, rows: int, fall: float) -> bool:
    """Whether the loss was positive up to its first zero, row ``first``, too high to get there in one step."""
    before = loss.value[:first][np.isfinite(loss.value[:first])]
    stays = first + rows <= len(loss) and bool((loss.value[first : first + rows] == 0).all())
    if not stays or len(before) == 0 or not (before > 0).all():
        return False
    bar = max(fall * first_level(loss), 10 * _resolution(before))
    return min(float(np.median(before[-10:])), float(before[-1])) > bar


def _resolution(value: np.ndarray) -> float:
    """The smallest difference that the log shows: 1e-4 where all numbers have four decimals or fewer."""
    decimals = max(len(f"{x:.10f}".rstrip("0").split(".")[1]) for x in value[-50:].tolist())
    return 10.0**-decimals if decimals < 8 else 0.0


def _back_offs(signals: Signals, overflowed: np.ndarray) -> np.ndarray:
    """Of the ``overflowed`` steps, those the scaler skipped. The last one of a run that is going on is believed to be
    one until the next row tells."""
    scale, skipped = signals["loss_scale"], signals["skipped_steps"]
    if len(scale) == 0 and len(skipped) == 0:
        return np.zeros(0, np.int64)
    return np.array(
        [step for step in overflowed.tolist() if _lowered(scale, step) or _counted(skipped, step)], np.int64
    )


def _lowered(scale: Signal, step: int) -> bool:
    row = int(np.searchsorted(scale.step, step))
    if row >= len(scale) or scale.step[row] != step:
        return False
    if row + 1 == len(scale):
        return bool(scale.value[row] > 1)  # a scale of 1 is that of a run without a scaler
    return bool(scale.value[row + 1] < scale.value[row]) or (row > 0 and bool(scale.value[row] < scale.value[row - 1]))


def _counted(skipped: Signal, step: int) -> bool:
    row = int(np.searchsorted(skipped.step, step))
    around = skipped.value[max(0, row - 1) : row + 2]
    return len(around) > 1 and bool(around[-1] > around[0])


@dataclass(frozen=True, slots=True)
class Episode:
    """Non-finite rows that belong together."""

    first: int
    """Step of the first of them."""
    last: int
    began: str
    """``loss`` (the forward pass), ``gradient`` (the backward pass alone) or ``zero loss``."""
    bad_loss: int
    """Rows with a non-finite loss."""
    bad_gradient: int
    back_offs: int
    """Steps that the scaler skipped before."""
    to_the_end: bool

    @classmethod
    def of(cls, trace: Trace, first_row: int, last_row: int) -> Episode:
        window = slice(first_row, last_row + 1)
        return cls(
            first=int(trace.step[first_row]),
            last=int(trace.step[last_row]),
            began=_began(trace, window),
            bad_loss=int(trace.loss[window].sum()),
            bad_gradient=int(trace.gradient[window].sum()),
            back_offs=int(trace.backed_off[:first_row].sum()),
            to_the_end=last_row == len(trace.step) - 1,
        )

    def severity(self, isolated_rows: int) -> Severity:
        """Critical when it stays; information when a gradient or two were hit and the next ones were finite."""
        if self.to_the_end and (self.bad_loss or self.bad_gradient > isolated_rows):
            return Severity.CRITICAL
        if not self.to_the_end and not self.bad_loss and self.bad_gradient <= isolated_rows:
            return Severity.INFO
        return Severity.WARNING

    def summary(self, signals: Signals, place: str, at: str) -> str:
        what = {
            "loss": f"Training loss became {_first_word(signals['train_loss'], self.first)}",
            "gradient": f"Gradient became {_first_word(signals['grad_norm_preclip'], self.first)}",
            "zero loss": "Training loss became exactly 0 at once",
        }[self.began]
        then = ", then the loss" if self.began == "gradient" and self.bad_loss else ""
        stayed = " and stayed so to the last step recorded"
        outcome = stayed if self.to_the_end else f" for {steps(self.first, self.last)}, then recovered"
        return f"{what} {at}{place}{then}{outcome}"


def _began(trace: Trace, window: slice) -> str:
    first_loss = int(np.argmax(trace.loss[window])) if trace.loss[window].any() else None
    first_gradient = int(np.argmax(trace.gradient[window])) if trace.gradient[window].any() else None
    if first_gradient is not None and (first_loss is None or first_gradient < first_loss):
        return "gradient"
    step = int(trace.step[window][first_loss or 0])
    return "zero loss" if trace.zero_from is not None and step >= trace.zero_from else "loss"


def _episode(signals: Signals, episode: Episode, zero_from: int | None, isolated_rows: int) -> Finding:
    origin = nonfinite_layers(signals.layers("grad_norm_preclip"), episode.first, episode.last)
    rose = rose_before(signals, episode.first)
    layer, place, located = _where(origin, rose)
    seen = _seen_in_process(signals, episode)
    if seen.get("origin_where") and rose is None:
        layer, place = str(seen["origin_where"]), f" in {seen['origin_where']}"
        located["layer_reason"] = str(seen["origin_text"])
    since = origin.since if origin is not None and origin.step == episode.first else episode.first
    at = f"at step {episode.first}" if since == episode.first else f"between steps {since} and {episode.first}"
    zero = zero_from if zero_from is not None and episode.first <= zero_from <= episode.last else None
    return Finding(
        summary=episode.summary(signals, place, at),
        onset_step=rose[0] if rose else since,
        first_step=episode.first,
        last_step=episode.last,
        severity=episode.severity(isolated_rows),
        layer=layer,
        evidence={
            "began_in": episode.began,
            "nonfinite_loss_rows": episode.bad_loss,
            "nonfinite_gradient_rows": episode.bad_gradient,
            "until_the_end": episode.to_the_end,
            "gradient_rose_from_step": rose[0] if rose else None,
            "zero_loss_from_step": zero,
            "scaler_back_offs_before": episode.back_offs,
            **seen,
            **located,
        },
    )


def _seen_in_process(signals: Signals, episode: Episode) -> dict[str, object]:
    """What the monitor saw of the origin while it happened: exact where it looked at every module."""
    told = [
        event.fields
        for event in signals.events("nonfinite")
        if event.step is not None and episode.first <= event.step <= max(episode.first + 2, episode.last)
    ]
    told.sort(key=lambda fields: not fields.get("exact"))
    if not told:
        return {}
    text, where = str(told[0].get("text", ""))[:300], told[0].get("where")
    return {"origin": str(told[0].get("origin")), "origin_text": text, "origin_where": str(where) if where else None}


def _where(
    origin: NonfiniteLayers | None, rose: tuple[int, str | None] | None
) -> tuple[str | None, str, dict[str, object]]:
    """(layer that moved first, its place in the sentence, evidence). A layer that rose before any number was lost
    moved earlier than the one in which the first number was lost."""
    evidence = _origin_evidence(origin) if origin else {}
    if rose is not None:
        onset, layer = rose
        place = f" after the gradient{f' of {layer}' if layer else ''} had been rising since step {onset}"
        reason = {"layer_reason": "its gradient was the first to rise"} if layer else {}
        return layer or (origin.layer if origin else None), place, {**evidence, **reason}
    if origin is not None and origin.layer is not None:
        return origin.layer, f" in {origin.layer}", evidence
    return None, "", evidence


def _first_word(signal: Signal, first: int) -> str:
    value = signal.between(first, None).value
    bad = value[~np.isfinite(value)]
    return word_for(float(bad[0])) if len(bad) else "non-finite"


def rose_before(signals: Signals, first: int, *, within: int = 30) -> tuple[int, str | None] | None:
    """(onset step, first layer) of a gradient excursion that led up to step ``first``; None when there was none."""
    norm = gradient_signal(signals)
    for spike in gradient_spikes(signals, GRADIENT_SETTINGS).spikes:
        onset, last = int(norm.step[spike.onset]), int(norm.step[spike.last])
        if onset < first <= last + span(signals, within):
            where = first_moved(signals.layers("grad_norm_preclip"), onset, min(last, first - 1))
            return onset, where.layer if where else None
    return _grew_from_the_start(norm, first)


def _grew_from_the_start(norm: Signal, first: int) -> tuple[int, None] | None:
    """The same in the first rows of a run, where there is no baseline yet."""
    early = norm.between(None, first - 1)
    keep = np.isfinite(early.value) & (early.value > 0)
    step, value = early.step[keep], early.value[keep]
    if not 2 <= len(value) <= FIRST_ROWS or value.max() < OVERFLOWING * value[0]:
        return None
    return int(step[np.argmax(value > np.sqrt(OVERFLOWING) * value[0])]), None


def _origin_evidence(origin: NonfiniteLayers) -> dict[str, object]:
    return {
        "layers_nonfinite": len(origin.nonfinite),
        "layers_finite": len(origin.finite),
        "nonfinite_layers": list(origin.nonfinite[-8:]),
        "layer_reason": origin.reason,
        "layer_step": origin.step,
        **({"layer_step_from": origin.since} if origin.since < origin.step else {}),
    }


def _together(isolated: list[Finding]) -> Finding:
    rows = sum(int(finding.evidence["nonfinite_gradient_rows"]) for finding in isolated)
    return Finding(
        summary=f"Gradients were non-finite at {count(rows, 'scattered step')} and recovered each time",
        onset_step=isolated[0].onset_step,
        first_step=isolated[0].first_step,
        last_step=isolated[-1].last_step,
        severity=Severity.INFO,
        evidence={
            "began_in": "gradient",
            "nonfinite_loss_rows": 0,
            "nonfinite_gradient_rows": rows,
            "until_the_end": False,
            "steps": [finding.first_step for finding in isolated][:50],
        },
    )


_PERPLEXITY = re.compile(r"(^|[/_ ])(ppl|perplexity)($|[/_ ])", re.I)
LATE, LEAST_HALF, NO_BETTER = 100, 4, 0.95
"""First step, and rows of half a log, of one that begins long after the start; the share of the first half's level that
the second's is above where the loss does not fall. Our judgement."""
COLUMN_ROWS = 2
"""Rows in which half of the columns are not finite."""
LEAST_COLUMNS = 2
_NOT_MEASURED = re.compile(
    r"(^|[/_ ])(val|valid|validation|test|eval|evaluation|dev|lr|eta|data|memory|fps|epoch|step|iter)($|[/_ :])"
    r"|time|speed|seconds|learning|per_sec|reward|return|episode|length|accuracy|precision|recall|dice|psnr|score"
    r"|(^|[/_ ])(kl|acc|auc|f1|map|iou)($|[/_ ])",
    re.I,
)
"""Names of what is not computed from the weights alone, or may have nothing to be taken of: a reward before the first
episode has ended, a score of a class without an example."""
_OF_TRAINING = re.compile(r"loss", re.I)
_OF_EVALUATION = re.compile(
    r"(^|[/_ ])(val|valid|validation|test|eval|evaluation|dev)(?=$|[/_ \d])|loss[_ ]?scale", re.I
)


def _parts(signals: Signals) -> list[Finding]:
    """A part of the training loss under a name of its own that is non-finite to the end, while the whole is finite or
    is not known."""
    found = []
    for name in signals.names:
        if not _OF_TRAINING.search(name) or _OF_EVALUATION.search(name) or name == "train_loss":
            continue
        part = signals[name]
        bad = nonfinite_rows(part.value)
        if len(bad) == 0 or bad[-1] != len(part) - 1:
            continue
        first_bad = len(part) - int(np.argmax(np.isfinite(part.value[::-1]))) if np.isfinite(part.value).any() else 0
        first = int(part.step[first_bad])
        found.append(
            Finding(
                summary=f"{name} became {word_for(float(part.value[first_bad]))} at step {first} and stayed so to the "
                "last step recorded",
                onset_step=first,
                first_step=first,
                last_step=int(part.step[-1]),
                severity=Severity.WARNING,
                evidence={"began_in": "part of the loss", "part": name, "nonfinite_rows": len(part) - first_bad},
            )
        )
    return found[:3]


def _perplexity(signals: Signals) -> list[Finding]:
    """An infinite perplexity to the end. One that was so from the start is that of a summed loss, unless the loss is as
    high long after the start as it was before."""
    for name in signals.names:
        if not _PERPLEXITY.search(name):
            continue
        value, step = signals[name].value, signals[name].step
        finite = np.flatnonzero(np.isfinite(value))
        first = int(finite[-1]) + 1 if len(finite) else 0
        if first == len(value) or (first == 0 and not _late_and_no_better(signals)):
            continue
        return [
            Finding(
                summary=f"{name} became {word_for(float(value[first]))} at step {int(step[first])} and stayed so to "
                "the last step recorded: the loss is beyond the range of exp",
                onset_step=int(step[first]),
                first_step=int(step[first]),
                last_step=int(step[-1]),
                severity=Severity.WARNING,
                evidence={"began_in": "perplexity", "part": name, "nonfinite_rows": len(value) - first},
            )
        ]
    return []


def _late_and_no_better(signals: Signals) -> bool:
    loss = signals["train_loss"]
    half = len(loss) // 2
    if half < LEAST_HALF or loss.step[0] < LATE:
        return False
    return float(np.median(loss.value[half:])) > NO_BETTER * float(np.median(loss.value[:half]))


def _columns(signals: Signals) -> list[Finding]:
    """Half of all columns of a log without a loss by name, such as heat maps and discriminators, are non-finite."""
    series = {name: signals[name] for name in signals.names if not _NOT_MEASURED.search(name)}
    bad = {name: part.step[nonfinite_rows(part.value)] for name, part in series.items()}
    if not any(map(len, bad.values())):
        return []
    step, hits = np.unique(np.concatenate(list(bad.values())), return_counts=True)
    told = np.sum([np.isin(step, part.step) for part in series.values()], axis=0)
    half = (hits >= LEAST_COLUMNS) & (2 * hits >= told)
    last = max(int(part.step[-1]) for part in series.values() if len(part))
    rows = step[half]
    if len(rows) == 0 or (len(rows) < COLUMN_ROWS and rows[-1] != last):
        return []
    names = [name for name, steps in bad.items() if len(steps)]
    return [
        Finding(
            summary=f"{len(names)} of {count(len(series), 'column')} are not finite from step {int(rows[0])} on, "
            f"such as {names[0]}; none is known as the loss",
            onset_step=int(rows[0]),
            first_step=int(rows[min(COLUMN_ROWS, len(rows)) - 1]),
            last_step=int(rows[-1]),
            severity=Severity.WARNING,
            evidence={"began_in": "columns", "columns": names[:20], "nonfinite_rows": len(rows)},
        )
    ]


def _validation(signals: Signals) -> list[Finding]:
    """A non-finite validation loss while the training loss of that time is finite."""
    val, loss = signals["val_loss"], signals["train_loss"]
    bad = nonfinite_rows(val.value)
    if len(bad) == 0:
        return []
    first, last = int(val.step[bad[0]]), int(val.step[bad[-1]])
    if not np.isfinite(loss.between(None, first).tail(1).value).all():
        return []
    return [
        Finding(
            summary=f"Validation loss became {word_for(float(val.value[bad[0]]))} at step {first} while the training "
            "loss was finite",
            onset_step=first,
            first_step=first,
            last_step=last,
            severity=Severity.WARNING,
            evidence={"began_in": "validation", "nonfinite_rows": len(bad), "validations": len(val)},
        )
    ]


RULE = Rule(
    id="non-finite",
    severity=Severity.CRITICAL,
    needs=(),
    check=non_finite,
    remedy="Go back to the last checkpoint with finite weights and remove what made the first NaN.",
    essential=True,
)
