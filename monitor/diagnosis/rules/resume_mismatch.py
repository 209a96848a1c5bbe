"""The training goes on differently after a resume."""

from __future__ import annotations

import math

import numpy as np

from monitor.diagnosis.context import loss_is_signed
from monitor.diagnosis.lasting import named
from monitor.diagnosis.primitives import MAD_TO_SD
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import count, number, percent, times
from monitor.signals import Signal

ROWS = 50
"""Rows before and after the resume that are compared."""
LEAST_ROWS = 5
RESTORED = {
    "weights": "model.",
    "optimizer": "optimizer.",
    "loss scaler": "precision.",
    "data position": "task.",
    "clipping": "clip.",
}
"""Parts of the state without which a training is another one, and the section of the configuration whose change on
purpose excuses each. Random states and another arithmetic are left to the report: a new machine has its own."""


def resume_mismatch(
    signals: Signals,
    *,
    loss_rise: float = 0.03,
    norm_ratio: float = 1.5,
    lr_ratio: float = 2.0,
    z: float = 6.0,
) -> Verdict:
    """At a resume the loss, the gradient norm or the learning rate steps away from where it was.

    Why it matters: something was not restored, such as the optimizer's moments, the scheduler, the loss scale or the
    data position. The run seems to recover, and the steps until then are lost; or it never does.

    Parameters that had a gradient in each row before and have none in any row after were frozen, or left out of the
    graph, by the program that goes on.

    What a trainer finds when it holds the restored state against the checkpoint is exact, and told even where the loss
    goes on as before.

    Stays silent: without a resume; when every level goes on; on parts that the resume changes on purpose; on changes
    within the scatter of single rows; on a learning rate that a schedule moves smoothly. Abstains on fewer than five
    rows on either side.

    Thresholds: ``loss_rise``, relative rise of the median loss of up to 50 rows; ``norm_ratio``, the same for the
    gradient norm, as a factor either way; ``lr_ratio``, factor of the learning rate from the last row before to the
    first after, or to the tenth row where a warm-up begins anew; ``z``, standard errors that the loss and the norm must
    also differ by. From the design notes (F26).

    Source: PyTorch tutorial "Saving and loading a general checkpoint"; BigScience chronicles (resumes of 104B).
    """
    marks = sorted({e.step for e in signals.events("resume") if e.step is not None and e.step > 0})
    judged = [(mark, _differences(signals, mark, loss_rise, norm_ratio, lr_ratio, z)) for mark in marks]
    lost = {mark: _not_restored(signals, mark) for mark in marks}
    frozen = {mark: _frozen(signals, mark) for mark in marks}
    if judged and all(difference is None for _, difference in judged) and not any((*lost.values(), *frozen.values())):
        return Abstained(f"fewer than {LEAST_ROWS} rows before or after the resume")
    return [
        _finding(signals, mark, difference or {}, lost[mark], frozen[mark])
        for mark, difference in judged
        if difference or lost[mark] or frozen[mark]
    ]


def _frozen(signals: Signals, mark: int) -> list[str]:
    """Parameters that the resume took the gradient from, unless it changed the model or its layout on purpose."""
    matrix = signals.layers("grad_norm_preclip")
    meant = any(name.startswith(("model.", "parallel.", "task.")) for name in _changed(signals, mark))
    if matrix is None or meant or len(signals.ranks) > 1:  # of several ranks one may hold others than before
        return []
    row = int(np.searchsorted(matrix.step, mark, side="right"))
    before, after = matrix.present[max(0, row - ROWS) : row], matrix.present[row : row + ROWS]
    if len(before) < LEAST_ROWS or len(after) < LEAST_ROWS or not after.any():
        return []
    return [matrix.names[column] for column in np.flatnonzero(before.all(axis=0) & ~after.any(axis=0)).tolist()]


def _changed(signals: Signals, mark: int) -> list[str]:
    """Names of the configuration that the resume changed on purpose."""
    given = [event.fields.get("changed") for event in signals.events("fidelity") if event.step == mark]
    return [str(name) for names in given if isinstance(names, list) for name in names]


def _not_restored(signals: Signals, mark: int) -> list[str]:
    """Parts of the state that the trainer itself found to differ from the checkpoint, and that nobody changed."""
    found = []
    for event in signals.events("fidelity"):
        parts, meant = event.fields.get("parts"), _changed(signals, mark)
        if event.step != mark or not isinstance(parts, dict):
            continue
        found += [
            f"{part} ({str(parts[part])[:80]})"
            for part, section in RESTORED.items()
            if isinstance(parts.get(part), str)
            and parts[part] != "exact"
            and not any(name.startswith(section) for name in meant)
        ]
    return found


def _differences(
    signals: Signals, mark: int, loss_rise: float, norm_ratio: float, lr_ratio: float, z: float
) -> dict[str, tuple[float, float]] | None:
    """(before, after) of each signal that stepped away; None when there is too little to compare."""
    found: dict[str, tuple[float, float]] = {}
    enough = False
    bars = {"train_loss": (1 + loss_rise, math.inf), "grad_norm_preclip": (norm_ratio, norm_ratio)}
    for name, (up, down) in bars.items():
        if name == "train_loss" and loss_is_signed(signals):
            continue
        before, after = _around(signals[name], mark)
        if len(before) < LEAST_ROWS or len(after) < LEAST_ROWS:
            continue
        enough = True
        # The first rows after: what was lost may be learnt again within fifty.
        soon = after[: max(LEAST_ROWS, len(after) // 5)]
        old, new = float(np.median(before)), float(np.median(soon))
        if (new > up * old or new * down < old) and _apart(before, soon, z):
            found[name] = (old, new)
    lr = _lr_step(signals["lr"], mark, lr_ratio)
    if lr is not None:
        found["lr"] = lr
    return found if enough or found else None


def _around(series: Signal, mark: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to 50 positive values up to the resume, and from the step after it."""
    before, after = series.between(None, mark).tail(ROWS).value, series.between(mark + 1, None).value[:ROWS]
    return before[np.isfinite(before) & (before > 0)], after[np.isfinite(after) & (after > 0)]


def _apart(before: np.ndarray, after: np.ndarray, z: float) -> bool:
    """Whether the medians of two samples differ by ``z`` standard errors, in logarithms, a trend before taken off."""
    x = np.log(before)
    rows = np.arange(len(x)) - len(x)
    slope = min(0.0, float(np.median(np.diff(x[:: max(1, len(x) // 5)])) / max(1, len(x) // 5))) if len(x) > 9 else 0.0
    level = x - slope * rows
    sd = max(MAD_TO_SD * float(np.median(np.abs(level - np.median(level)))), 1e-3)
    error = 1.25 * sd * math.sqrt(1 / len(before) + 1 / len(after))
    return abs(float(np.median(np.log(after)) - np.median(level))) > z * error


def _lr_step(lr: Signal, mark: int, ratio: float) -> tuple[float, float] | None:
    """(before, after) of a learning rate that the resume moved."""
    before, after = lr.between(None, mark).tail(3).value, lr.between(mark + 1, None).value[:10]
    if len(before) < 3 or not len(after) or not before[-1] > 0 or not np.isfinite(before).all():
        return None
    old, new = float(before[-1]), float(after[0])
    step = abs(new - old)
    smooth = step <= 2 * abs(before[-1] - before[-2]) + 1e-12 * old
    if smooth or not np.isfinite(new) or (new > 0 and max(new / old, old / new) < ratio):
        return None
    return old, new


_WORDS = {"train_loss": "the loss", "grad_norm_preclip": "the gradient norm", "lr": "the learning rate"}


def _finding(
    signals: Signals, mark: int, difference: dict[str, tuple[float, float]], lost: list[str], frozen: list[str]
) -> Finding:
    told = [f"{_WORDS[name]} went from {number(old)} to {number(new)}" for name, (old, new) in difference.items()]
    if lost:
        names = ", ".join(part.partition(" (")[0] for part in lost)
        told.append(f"the state of {names} is not that of the checkpoint")
    if frozen:
        told.append(f"{named(frozen)} no longer {'get' if len(frozen) > 1 else 'gets'} a gradient")
    remarks = [str(note) for event in signals.events("resume") if event.step == mark for note in _remarks(event.fields)]
    return Finding(
        summary=f"After the resume at step {mark} {', '.join(told)}",
        onset_step=mark + 1,
        first_step=_first_judged(signals, mark),
        last_step=signals.last_step,
        severity=Severity.WARNING,
        evidence={name: list(pair) for name, pair in difference.items()} | ({"remarks": remarks} if remarks else {}),
        layer=frozen[0] if frozen else None,
        causes=_causes(difference, lost, frozen),
        remedy=Remedy(
            "Resume with the optimizer's moments, the scheduler, the gradient scaler, the random states and the data "
            "position, not with the weights alone.",
            {},
            'optimizer.load_state_dict(checkpoint["optimizer"])\nscheduler.load_state_dict(checkpoint["scheduler"])',
        ),
    )


def _remarks(fields: object) -> list[str]:
    given = fields.get("remarks") if hasattr(fields, "get") else None
    return [str(item) for item in given[:5]] if isinstance(given, list | tuple) else []


def _first_judged(signals: Signals, mark: int) -> int:
    after = signals["train_loss"].between(mark + 1, None).step
    return int(after[min(LEAST_ROWS, len(after)) - 1]) if len(after) else mark + 1


def _causes(difference: dict[str, tuple[float, float]], lost: list[str], frozen: list[str]) -> tuple[Cause, ...]:
    supports = [f"not restored exactly: {part}" for part in lost]
    if frozen:
        supports.append(f"{count(len(frozen), 'parameter')} had a gradient in each step before and have none after")
    if lr := difference.get("lr"):
        supports.append(f"the learning rate changed {times(lr[1] / lr[0])}: the scheduler was not restored")
    if loss := difference.get("train_loss"):
        why = "" if lr else " at an unchanged learning rate, as when the optimizer's moments start from zero"
        supports.append(f"the loss is {percent(loss[1] / loss[0] - 1)} higher{why}")
    if norm := difference.get("grad_norm_preclip"):
        supports.append(f"the gradient norm changed {times(norm[1] / norm[0])}")
    return (Cause("wrong-resume", 0.8, tuple(supports)),)


RULE = Rule(
    id="resume-mismatch",
    severity=Severity.WARNING,
    needs=("train_loss|grad_norm_preclip|lr",),
    check=resume_mismatch,
    remedy="Resume with everything that the training changes, not with the weights alone.",
)
