"""Gradients add up from step to step."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, times

LEAST_ROWS = 3


NOT_ZEROED = "gradients were not zeroed"
"""Beginning of the monitor's own warning."""


def missing_zero_grad(
    signals: Signals, *, cosine: float = 0.9, rows: int = 3, ramp: float = 1.5, rest: float = 0.8
) -> Verdict:
    """Each step's gradient points where the last one did, and grows by it: zero_grad is missing.

    Why it matters: the optimizer follows the sum of all gradients so far, as if with a momentum that never decays; it
    learns for a while and then diverges.

    Where the monitor itself saw backward add to the gradients of the step before, that is exact, and enough.

    Stays silent: on gradients that agree because the batch is the whole data or training has just begun, whose norm
    does not grow. Abstains below ``rows`` measured cosines.

    Thresholds: ``cosine`` between the gradients of two steps running, in ``rows`` measurements running, with a norm
    that grows over them by the factor ``ramp``; and a median cosine below ``rest`` before, unless it was so from the
    start and the norm has grown fourfold. Cosines of healthy small models reach 0.99 in warm-up. Our judgement.

    Source: design notes F22; PyTorch recipe "Zeroing out gradients"; transformers issue 34191 (accumulation).
    """
    seen = [e for e in signals.events("warning") if str(e.fields.get("text", "")).startswith(NOT_ZEROED)]
    if seen and (seen[0].step or 0) > 0:
        return _seen(signals, int(seen[0].step or 0))
    if "grad_cosine" not in signals:
        return Abstained("grad_cosine not recorded", ("grad_cosine",))
    series = signals["grad_cosine"]
    keep = np.isfinite(series.value)
    step, value = series.step[keep], series.value[keep]
    if len(value) < max(rows, LEAST_ROWS):
        return Abstained(f"{count(len(value), 'cosine')} between gradients recorded, at least {rows} are needed")
    norms = _norms_at(signals, step)
    for end in range(rows, len(value) + 1):
        window = slice(end - rows, end)
        if not (value[window] > cosine).all():
            continue
        begin = _begin(value, end - rows, cosine)
        grew = norms[end - 1] / norms[begin]
        needed = ramp if begin >= rows and float(np.median(value[:begin])) < rest else max(4.0, ramp)
        if np.isfinite(grew) and grew > needed and bool((np.diff(norms[begin:end]) > 0).mean() >= 0.6):
            return _finding(step, norms, begin, end - 1, float(grew))
    return None


def _seen(signals: Signals, step: int) -> Finding:
    """What the monitor saw when backward began; the step before is the first that was not zeroed after."""
    told = "when backward began, the gradients of the step before were still there, and it added to them"
    return Finding(
        summary=f"Gradients were not zeroed before step {step}: they add up over steps",
        onset_step=max(1, step - 1),
        first_step=step,
        last_step=signals.last_step,
        severity=Severity.WARNING,
        causes=(Cause("missing-zero-grad", 0.95, supports=(told,)),),
        remedy=_remedy(max(1, step - 1)),
    )


def _norms_at(signals: Signals, step: np.ndarray) -> np.ndarray:
    """float64[T]: the gradient norm at each of ``step``; NaN where there is none."""
    norm = signals["grad_norm_preclip"]
    if len(norm) == 0:
        return np.full(len(step), np.nan)
    row = np.clip(np.searchsorted(norm.step, step), 0, len(norm) - 1)
    return np.where((norm.step[row] == step) & (norm.value[row] > 0), norm.value[row], np.nan)


def _begin(value: np.ndarray, row: int, cosine: float) -> int:
    while row > 0 and value[row - 1] > cosine:
        row -= 1
    return row


def _finding(step: np.ndarray, norms: np.ndarray, begin: int, row: int, grew: float) -> Finding:
    return Finding(
        summary=f"The gradient keeps its direction and its norm has grown {times(grew)}, from "
        f"{number(float(norms[begin]))} to {number(float(norms[row]))}, since step {int(step[begin])}: gradients "
        "add up over steps",
        onset_step=int(step[max(0, begin - 1)]) + 1,
        first_step=int(step[row]),
        last_step=int(step[-1]),
        severity=Severity.WARNING,
        evidence={"growth": grew},
        causes=(
            Cause(
                "missing-zero-grad",
                0.8,
                supports=(
                    "consecutive gradients have a cosine above 0.9",
                    f"their norm has grown {times(grew)} meanwhile",
                ),
            ),
        ),
        remedy=_remedy(int(step[begin])),
    )


def _remedy(step: int) -> Remedy:
    return Remedy(
        f"Call optimizer.zero_grad() once per optimizer step, and go back to the last checkpoint before step {step}.",
        {},
        "optimizer.step()\noptimizer.zero_grad(set_to_none=True)",
    )


RULE = Rule(
    id="missing-zero-grad",
    severity=Severity.WARNING,
    needs=(),
    check=missing_zero_grad,
    remedy="Call optimizer.zero_grad() once per optimizer step.",
)
