"""The loss scale of fp16 falls and falls, or lies where small gradients become zero; activations near fp16's end."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.context import GRADIENT_SETTINGS, gradient_signal, gradient_spikes, span
from monitor.diagnosis.lasting import measured, named, stretches
from monitor.diagnosis.remedies import configured
from monitor.diagnosis.rule import Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, percent
from monitor.signals import Signal

FEW = 20
"""Rows of a log from which on a scale that never changes began as what it is."""
SETTLING_ROWS = 50
"""Rows without a fall after which the scaler has found its scale; growing once shows it too."""
USUAL_START = 65536.0
"""Where torch's scaler begins. A scale that comes down to it or above has only looked for more than it needs."""
LEAST_SKIPPED = 3
"""Rows at the end of a log in each of which more steps were skipped."""
FP16_MAX = 65504.0
BEYOND = 1000.0
"""Times that clipping makes a gradient shorter in each of the first steps only if it is still scaled. Our judgement."""


def loss_scale(
    signals: Signals,
    *,
    halvings: int = 3,
    rows: int = 50,
    lowest: float = 1.0,
    low: float = 128.0,
    underflow: float = 0.2,
    activation: float = 3e4,
    growth: float = 2.0,
) -> Verdict:
    """The scale that fp16 gradients are multiplied by keeps falling, or is so low that gradients become exactly zero.

    Why it matters: each fall is a step that was thrown away, and a scale near 1 leaves fp16 without the range that
    small gradients need: they become zero and their weights stop training while the loss looks well. A gradient that
    is clipped before the scale is taken off is a thousandth of what it should be after.

    Stays silent: while the scaler looks for its scale at the start; on an overflow now and then. Falls are counted net
    of growth, so that a scaler which tries a higher scale every few steps and is refused is healthy whatever its growth
    interval; and so is one that follows growing gradients down to a scale at which torch's begins. Information only:
    activations near fp16's largest number that do not grow.

    Thresholds: ``halvings`` of the scale net within ``rows`` rows, after it had grown once or stayed for 50 rows, or
    where the log begins in the middle at or below ``low``; a
    scale at or below ``lowest`` (below it in the last row of a log without falls); ``underflow``, rise of the share of
    exact zeros in the gradient of the typical
    tensor while the scale is at or below ``low``; ``activation``, magnitude of a module's output (fp16 ends at 65504),
    a warning where it has grown by ``growth`` since the first measurements. From the design notes (F05); the rise and
    the growth are our judgement.

    Source: Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740; torch.amp.GradScaler (growth interval 2000);
    OPT-175B's logbook (scales that fell until gradients underflowed).
    """
    scale = signals["loss_scale"]
    keep = np.isfinite(scale.value) & (scale.value > 0)
    scale = Signal(scale.name, scale.step[keep], scale.value[keep], scale.unit)
    found = (
        _fallen(signals, scale, halvings, rows, lowest, low),
        _underflow(signals, scale, low, underflow),
        _near_the_end(signals, activation, growth),
        _clipped_while_scaled(signals, scale),
    )
    told = [finding for finding in found if finding is not None]
    collapsed = None if told else _collapsed(signals)
    return told + ([collapsed] if collapsed else [])


def _began_below_one(scale: Signal, value: float) -> Finding:
    return Finding(
        summary=f"The loss scale is {number(value)} in each step: it makes gradients smaller, and small ones 0",
        onset_step=int(scale.step[0]),
        first_step=int(scale.step[FEW]),
        last_step=int(scale.step[-1]),
        severity=Severity.WARNING,
        evidence={"scale": value},
        causes=(Cause("fp16-underflow", 0.8, ("the scale is below 1 and has never changed",)),),
        remedy=Remedy("Begin with a large scale, which falls by itself where it must: init_scale=65536."),
    )


def _collapsed(signals: Signals) -> Finding | None:
    """A log of few rows whose last scale is below 1: nobody begins there, so it has fallen between the rows. A scale of
    exactly 0 is one that the log rounded, if the run crashed; else there may be no scaler. At 1 it has ended if every
    step is skipped."""
    scale = signals["loss_scale"]
    skipped = signals["skipped_steps"].value[-LEAST_SKIPPED:]
    stuck = len(skipped) == LEAST_SKIPPED and bool((np.diff(skipped) > 0).all())
    if len(scale) == 0 or not (0 <= scale.value[-1] < 1 or (stuck and scale.value[-1] == 1)):
        return None
    last = float(scale.value[-1])
    if last == 0 and signals.facts.state != "crashed":
        return None
    rows = np.flatnonzero(scale.value >= 1 if last < 1 else scale.value > 1)
    first = int(scale.step[rows[-1] + 1 if len(rows) else 0])
    if len(scale) > FEW and bool((scale.value == last).all()):
        return _began_below_one(scale, last)
    return Finding(
        summary=f"The loss scale is {number(last)} at step {int(scale.step[-1])}, "
        + ("below 1" if last < 1 else "and every step is skipped")
        + ": fp16 cannot hold these gradients",
        onset_step=first,
        first_step=first,
        last_step=int(scale.step[-1]),
        severity=Severity.WARNING,
        evidence={"scale": last},
        causes=_causes(None),
        remedy=_leave_fp16(),
    )


def _fallen(signals: Signals, scale: Signal, halvings: int, rows: int, lowest: float, low: float) -> Finding | None:
    value = scale.value
    falls = np.flatnonzero(value[1:] < value[:-1]) + 1
    # A log that begins with a low scale in the middle of a training begins after the search for one.
    late = len(value) > 0 and value[0] <= low and scale.step[0] > SETTLING_ROWS
    settled = 0 if late else _settled(value, falls)
    for row in falls.tolist():
        begin = max(row - rows, settled)
        within = falls[(falls > begin) & (falls <= row)]
        net = np.log2(value[begin:row].max() / value[row]) if row > begin else 0.0
        if value[row] > lowest and (len(within) < halvings or net < halvings or value[row] >= USUAL_START):
            continue
        first = int(within[0]) if len(within) else int(falls[falls > row - rows][0])
        # The scale of a row is the one its step used: the overflow was in the row before the fall.
        onset, told = int(scale.step[first - 1]), int(scale.step[row])
        last = int(scale.step[falls[-1]])
        rose = _gradient_rose(signals, onset)
        fallen = count(int((falls <= row).sum()), "overflow")
        after = f", after the gradient norm rose at step {rose}" if rose is not None else ""
        return Finding(
            summary=f"The loss scale fell to {number(float(value[row]))} by step {told} after {fallen}: fp16 cannot "
            f"hold these gradients{after}",
            onset_step=onset,
            first_step=told,
            last_step=last,
            severity=Severity.WARNING,
            evidence={"scale": float(value[row]), "lowest_scale": float(value.min()), "overflows": len(falls)},
            causes=_causes(rose),
            remedy=_leave_fp16(),
        )
    return None


def _settled(value: np.ndarray, falls: np.ndarray) -> int:
    """First row at which the scaler has found its scale; the number of rows when it never did."""
    grown = np.flatnonzero(value[1:] > value[:-1]) + 1
    calm = [begin + SETTLING_ROWS for begin in (0, *falls.tolist()) if not _any_in(falls, begin, begin + SETTLING_ROWS)]
    return min([*grown[:1].tolist(), *calm, len(value)])


def _any_in(rows: np.ndarray, after: int, until: int) -> bool:
    return bool(((rows > after) & (rows <= until)).any())


def _gradient_rose(signals: Signals, onset: int) -> int | None:
    """Step of a gradient excursion shortly before: then the overflow is its consequence."""
    norm = gradient_signal(signals)
    near = span(signals, 20)
    onsets = [int(norm.step[spike.onset]) for spike in gradient_spikes(signals, GRADIENT_SETTINGS).spikes]
    return next((step for step in onsets if onset - near <= step < onset), None)


def _causes(rose: int | None) -> tuple[Cause, ...]:
    fell = "the loss scale kept falling"
    if rose is not None:
        led = f"the gradient norm rose at step {rose}, before the scale fell"
        return (Cause("gradient-explosion", 0.6, (led,)), Cause("fp16-overflow", 0.3, (fell,), (led,)))
    return (Cause("fp16-overflow", 0.8, (fell, "no rise of the gradient norm came before")),)


def _underflow(signals: Signals, scale: Signal, low: float, rise: float) -> Finding | None:
    """Gradients have more exact zeros at a low scale than they had at higher ones."""
    matrix = signals.layers("grad_zero_share")
    if matrix is None or len(scale) == 0:
        return None
    row = np.clip(np.searchsorted(scale.step, matrix.step, side="right") - 1, 0, len(scale) - 1)
    is_low = scale.value[row] <= low
    value = measured(matrix)
    if not is_low.any() or not (~is_low).any():
        return None
    usual = np.full(value.shape[1], np.nan)
    before = value[: int(np.argmax(is_low))]
    known = np.isfinite(before).any(axis=0)
    usual[known] = np.nanmedian(before[:, known], axis=0)
    grown = np.where(is_low[:, None], value - usual, np.nan)
    judged = np.isfinite(grown).any(axis=1)
    typical = np.full(len(grown), -np.inf)
    typical[judged] = np.nanmedian(grown[judged], axis=1)
    rows = np.flatnonzero(typical > rise)
    if len(rows) < 2:
        return None
    onset, told = int(matrix.step[rows[0]]), int(matrix.step[rows[1]])
    lowest = float(scale.value[row[rows[1]]])
    more = float(typical[rows[1]])
    return Finding(
        summary=f"At a loss scale of {number(lowest)} the typical tensor has {100 * more:.0f} percentage points more "
        "exact zeros in its gradient than before: small gradients underflow",
        onset_step=onset,
        first_step=told,
        last_step=int(matrix.step[rows[-1]]),
        severity=Severity.WARNING,
        evidence={"scale": lowest, "zero_share_rise": more},
        causes=(Cause("fp16-underflow", 0.8, ("zeros became more as the scale fell",)),),
        remedy=_leave_fp16(),
    )


def _clipped_while_scaled(signals: Signals, scale: Signal) -> Finding | None:
    """Clipping leaves less than a thousandth of the gradient in each of the first steps, and the scale explains it:
    either the norms have it on them, or without it they are limited to a number divided by it."""
    series = (signals["grad_norm_preclip"], signals["grad_norm_postclip"], scale)
    steps = np.intersect1d(np.intersect1d(series[0].step, series[1].step), scale.step)
    norm, left, scales = (one.value[np.searchsorted(one.step, steps)] for one in series)
    usable = np.flatnonzero(np.isfinite(norm) & (left > 0))[:FEW]
    if len(usable) < FEW or not (norm[usable] > BEYOND * left[usable]).all() or not (scales[usable] >= BEYOND).all():
        return None
    limits = left[usable] * (1.0 if len(signals["clip_max_norm"]) else scales[usable])
    unscaled = norm[usable] / (scales[usable] if len(signals["clip_max_norm"]) else 1.0)
    usual, limit = float(np.median(unscaled)), float(np.median(limits))
    if not 1e-3 < usual < 1e2 or np.ptp(limits) > 1e-3 * limit:
        return None
    return Finding(
        summary=f"The gradient is clipped to {number(limit)} with the loss scale still on it: of a norm of "
        f"{number(usual)} the optimizer gets {number(float(np.median(left[usable] / norm[usable])))}",
        onset_step=int(steps[usable[0]]),
        first_step=int(steps[usable[-1]]),
        last_step=int(steps[-1]),
        severity=Severity.WARNING,
        evidence={"norm": usual, "limit": limit},
        causes=(Cause("gradient-scale", 0.8, ("clipping divides by what the loss scale multiplies by",)),),
        remedy=Remedy(
            "Take the scale off before clipping, with scaler.unscale_(optimizer).",
            {},
            "scaler.unscale_(optimizer)\ntorch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)\n"
            "scaler.step(optimizer)",
        ),
    )


def _near_the_end(signals: Signals, activation: float, growth: float) -> Finding | None:
    matrix = signals.modules("activation_absmax")
    if matrix is None or configured(signals, "precision", "kind") in ("fp32", "bf16"):
        return None
    value = measured(matrix)
    found = stretches(matrix, value > activation, 2)
    if not found:
        return None
    first = found[0]
    mine = value[:, first.column]
    mine = mine[np.isfinite(mine)]
    start, peak = float(np.median(mine[:3])), float(mine.max())
    grew = peak > growth * start
    how = f", {percent(peak / start - 1)} since the start" if grew else ""
    return Finding(
        summary=f"Outputs of {named([s.layer for s in found])} reach {number(peak)}{how}; fp16 ends at "
        f"{number(FP16_MAX)}",
        onset_step=first.onset,
        first_step=first.told,
        last_step=max(s.last for s in found),
        severity=Severity.WARNING if grew else Severity.INFO,
        layer=first.layer,
        evidence={"activation_absmax": peak, "at_the_start": start, "modules": [s.layer for s in found][:20]},
        causes=(Cause("fp16-overflow", 0.7, (f"outputs of {first.layer} reach {number(peak)}",)),),
        remedy=_leave_fp16(),
    )


def _leave_fp16() -> Remedy:
    return Remedy(
        "Train in bf16, whose exponent is as wide as that of fp32; where the hardware has none, keep softmax, norms "
        "and loss in fp32, and clip after unscaling.",
        {"precision.kind": "bf16"},
        'with torch.autocast("cuda", dtype=torch.bfloat16):  # and no GradScaler\n    loss = compute_loss(batch)',
    )


RULE = Rule(
    id="loss-scale",
    severity=Severity.WARNING,
    needs=("loss_scale",),
    check=loss_scale,
    remedy="Train in bf16, or keep softmax, norms and loss in fp32.",
)
