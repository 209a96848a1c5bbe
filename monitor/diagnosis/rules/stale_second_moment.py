"""Adam's second moment has fallen behind the gradient of one tensor."""

from __future__ import annotations

from bisect import insort

import numpy as np

from monitor.diagnosis.lasting import Stretch, grouped, measured, named, stretches
from monitor.diagnosis.primitives.medians import median_of_sorted
from monitor.diagnosis.remedies import configured
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number, times
from monitor.signals import LayerMatrix

SETTLING_STEPS = 20
"""The second moment starts from nothing; in the first steps its ratio to the gradient means little."""
GROWN = 1.5
"""Multiple of its usual norm from which on a gradient has grown."""
BEFORE_STEPS = 60
"""Steps that say what is usual."""
FEWER_ZEROS = 0.1
"""Of the entries: so many less without a gradient are others than those that Adam remembers. Our judgement."""
LEADING_STEPS = 4
"""Between two measurements of an embedding: its second moment may have fallen behind that much before it is seen."""


def stale_second_moment(
    signals: Signals, *, rms: float = 2.3, worrying: float = 10.0, own: float = 3.5, rows: int = 2, longer: float = 3.0
) -> Verdict:
    """RMS_t = sqrt(mean(g^2 / v)) of a tensor jumps: its gradient has outgrown Adam's memory of it.

    Why it matters: the update is RMS_t times as long as the learning rate says. It is the state 1 to 8 steps before
    the loss spikes of large models, after a long quiet phase of that tensor, often an embedding.

    Stays silent: in the first 20 steps and before three measurements; on values up to ``rms``; on tensors that are
    often like that. Information below ``worrying``, since the spike may not come and a training that comes to a new
    phase looks alike, unless the tensor's gradient has hardly grown, and ``own`` times less than RMS_t: the moment
    falls by 1 - beta2 a step at most, so that it was not the gradient that moved then, but what Adam remembers; not so
    where entries have a gradient that had none before, as in a codebook whose other signs come to be used. Where the
    gradient was not measured, updates that have become longer while the learning rate did not rise stand in.

    Thresholds: ``rms``, dimensionless, that of the source, and ``own``, multiple of the tensor's own median before, in
    ``rows`` measurements running (in healthy small models, values above 2.3 stay below 1.7 times their own median); or
    ``worrying`` in one; ``longer``, rise of the update-to-weight ratio over its own median; a gradient of up to 1.5
    times the median of the 60 steps before has not grown (2.6 and more in healthy runs of ours). Our judgement.

    Source: Wortsman et al. 2023, https://arxiv.org/abs/2304.13013 (StableAdamW); 2506.04805, why beta2 matters.
    """
    matrix = signals.layers("adam_rms")
    assert matrix is not None  # the engine asks for it
    value = measured(matrix)
    value[matrix.step <= SETTLING_STEPS] = np.nan
    if np.isfinite(value).any(axis=1).sum() < rows:
        return Abstained(f"fewer than {rows} measurements of adam_rms after step {SETTLING_STEPS}")
    with np.errstate(invalid="ignore"):
        usual = _usual(value, value > rms)
        high = (value > rms) & (value > own * usual)
        very_high = (value > worrying) & (value > own * usual)
    found = grouped(stretches(matrix, high, rows) + stretches(matrix, very_high, 1))
    return [_finding(signals, matrix, value, together, worrying, longer, own) for together in found]


def _usual(value: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """float64[T, L]: median of a tensor's measurements before each block of 16 rows; NaN without three.

    Only from the first row of a tensor on that is ``wanted`` (bool[T, L]); NaN before. From there the measurements are
    kept in order as they come: a median over all of the past at every block is quadratic, and took half of the time of
    a diagnosis of 100 000 steps.
    """
    usual = np.full_like(value, np.nan)
    for column in np.flatnonzero(wanted.any(axis=0)).tolist():
        begin = int(wanted[:, column].argmax()) // 16 * 16
        past = value[:begin, column]
        ordered: list[float] = np.sort(past[np.isfinite(past)]).tolist()
        for start in range(begin, len(value), 16):
            if len(ordered) >= 3:
                usual[start : start + 16, column] = median_of_sorted(ordered)
            block = value[start : start + 16, column]
            for one in block[np.isfinite(block)].tolist():
                insort(ordered, one)
    return usual


def _finding(
    signals: Signals,
    matrix: LayerMatrix,
    value: np.ndarray,
    together: list[Stretch],
    worrying: float,
    longer: float,
    own: float,
) -> Finding:
    first = together[0]
    strongest = max(together, key=lambda s: float(np.nanmax(_within(matrix, value, s))))
    peak = float(np.nanmax(_within(matrix, value, strongest)))
    update = _update_rise(signals, strongest)
    acts = update is not None and update >= longer
    beta2 = configured(signals, "optimizer", "beta2")
    supports = [f"RMS_t of {strongest.layer} reached {number(peak)}"]
    against: list[str] = []
    if update is not None:
        told = f"its updates became {times(update)} as long, at the same learning rate"
        (supports if acts else against).append(told)
    rise = _gradient_rise(signals, strongest)
    usual = float(np.nanmedian(value[matrix.step < strongest.onset, strongest.column]))
    overwritten = rise is not None and rise <= GROWN and peak >= own * usual * rise and not _others(signals, strongest)
    if overwritten:
        supports.append(f"its gradient is {times(rise or 0.0)} what it was: the moment itself is another")
    if isinstance(beta2, float) and 0 < beta2 < 1:
        memory = f"beta2 {number(beta2)} remembers {1 / (1 - beta2):.0f} steps"
        (supports if beta2 >= 0.99 else against).append(memory)
    return Finding(
        summary=f"Adam's second moment fell behind the gradient of {named([s.layer for s in together])}: RMS_t "
        f"{number(peak)} at its highest, about 1 is usual",
        onset_step=first.onset,
        first_step=min(s.told for s in together),
        last_step=max(s.last for s in together),
        severity=Severity.WARNING if peak > worrying or overwritten or (acts and rise is None) else Severity.INFO,
        layer=strongest.layer,
        evidence={
            "rms": peak,
            "update_rise": update,
            "gradient_rise": rise,
            "layers": [s.layer for s in together][:20],
            "layer_reason": "its RMS_t is the highest",
        },
        causes=(Cause("stale-second-moment", 0.8, tuple(supports), tuple(against)),),
        remedy=Remedy(
            f"Go back to the last checkpoint before step {first.onset}. Let Adam's second moment follow faster (beta2 "
            "0.95), or bound the update of a tensor by its RMS_t (StableAdamW).",
            {"optimizer.beta2": 0.95},
            "optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))",
        ),
    )


def _update_rise(signals: Signals, stretch: Stretch) -> float | None:
    """Highest update-to-weight ratio of the tensor from the onset on, over its median before; None where it was not
    measured, or where the learning rate rose as well."""
    matrix, lr = signals.layers("update_to_weight_ratio"), signals["lr"]
    if matrix is None or stretch.layer not in matrix.names:
        return None
    value = measured(matrix)[:, matrix.names.index(stretch.layer)]
    before = value[matrix.step < stretch.onset - LEADING_STEPS][-10:]
    after = value[(matrix.step >= stretch.onset) & (matrix.step <= stretch.told + 2 * SETTLING_STEPS)]
    before, after = before[np.isfinite(before)], after[np.isfinite(after)]
    rates = lr.between(stretch.onset - SETTLING_STEPS, stretch.told + SETTLING_STEPS).value
    if len(before) < 3 or len(after) == 0 or (len(rates) and np.nanmax(rates) > 1.5 * rates[0]):
        return None
    return float(after.max() / np.median(before)) if np.median(before) > 0 else None


def _gradient_rise(signals: Signals, stretch: Stretch) -> float | None:
    """The tensor's median gradient norm in the stretch over that before; None where it was not measured."""
    matrix = signals.layers("grad_norm_preclip")
    if matrix is None or stretch.layer not in matrix.names:
        return None
    value = measured(matrix)[:, matrix.names.index(stretch.layer)]
    before = value[(matrix.step >= stretch.onset - BEFORE_STEPS) & (matrix.step < stretch.onset)]
    during = value[(matrix.step >= stretch.onset) & (matrix.step <= stretch.told)]
    before, during = before[np.isfinite(before)], during[np.isfinite(during)]
    if len(before) < SETTLING_STEPS or len(during) == 0 or not np.median(before) > 0:
        return None
    return float(np.median(during) / np.median(before))


def _others(signals: Signals, stretch: Stretch) -> bool:
    """Whether fewer entries of the tensor's gradient are exactly 0 than before."""
    matrix = signals.layers("grad_zero_share")
    if matrix is None or stretch.layer not in matrix.names:
        return False
    value = measured(matrix)[:, matrix.names.index(stretch.layer)]
    before = value[(matrix.step >= stretch.onset - BEFORE_STEPS) & (matrix.step < stretch.onset)]
    during = value[(matrix.step >= stretch.onset) & (matrix.step <= stretch.told + SETTLING_STEPS)]
    before, during = before[np.isfinite(before)], during[np.isfinite(during)]
    return len(before) > 0 and len(during) > 0 and bool(during.min() < np.median(before) - FEWER_ZEROS)


def _within(matrix: LayerMatrix, value: np.ndarray, stretch: Stretch) -> np.ndarray:
    rows = (matrix.step >= stretch.onset) & (matrix.step <= stretch.last)
    return value[rows, stretch.column]


RULE = Rule(
    id="stale-second-moment",
    severity=Severity.WARNING,
    needs=("layers:adam_rms",),
    check=stale_second_moment,
    remedy="Lower beta2, or bound updates by RMS_t (StableAdamW).",
)
