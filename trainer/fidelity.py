"""Whether a resumed training is the same training: what was restored, and whether its first steps go on as before.

Two kinds of evidence. Each part of the state is held against the checkpoint when it is restored. Then the first steps
are held against the rows of the attempt before: equal, bit for bit, where that attempt had made the same steps (it was
killed after its checkpoint, or the run is rewound); otherwise their level against that of the last rows before the
resume. Without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monitor.errors import RunError
from monitor.runfile.format import check_run_id
from monitor.runfile.reader import Run, open_run
from monitor.signals import Signal

FIRST_STEPS = 10
"""Steps after the resume that are looked at, and rows before it that make up the level. Our judgement."""
LEAST_ROWS = 5
"""Fewer on either side are no level."""
SCATTER_ROWS = 50
"""Rows before the resume that the scatter is taken from."""
MAD_TO_SD = 1.4826
SDS = 6.0
"""Standard errors that a level may move by; more than a small move must also be one by ``ROOM``."""
ROOM = {"train_loss": 0.03, "grad_norm_preclip": 0.5}
"""Relative move that is none, however little the rows scatter: the bars of the rule ``resume-mismatch``."""
WORDS = {"train_loss": "loss", "grad_norm_preclip": "gradient norm"}


@dataclass(frozen=True, slots=True)
class Continuity:
    """How one signal goes on."""

    name: str
    steps: tuple[int, int]
    """First and last step that was looked at."""
    repeated: int = 0
    """How many of these steps the attempt before had made as well."""
    differs_at: int | None = None
    """The first of the repeated steps with another value; None when every bit is the same."""
    before: float = math.nan
    """Median of the last rows before the resume; NaN when there are too few."""
    after: float = math.nan
    """Median of the first rows after it; NaN when there are too few."""
    moved: bool = False
    """The level moved by more than the rows scatter."""

    @property
    def bitwise(self) -> bool:
        return self.repeated > 0 and self.differs_at is None

    @property
    def judged(self) -> bool:
        return self.bitwise or not math.isnan(self.before + self.after) or self.moved


def follow_on(run: Run, attempt: int) -> list[Continuity]:
    """Loss and gradient norm of the first steps of ``attempt`` against the rows of the attempt that it goes on from.

    Of a run that was forked from another one, which must be beside it: against those of the other run. Empty when the
    attempt goes on from none or has no rows yet.
    """
    record = next((one for one in run.attempts if one.number == attempt), None)
    if record is None:
        return []
    then, parent = run, record.parent
    if parent is None:
        if not run.forked_after or not isinstance(parent := (run.parent or {}).get("attempt"), int):
            return []
        try:
            then = open_run(run.path.parent / check_run_id(str((run.parent or {}).get("run"))))
        except RunError:  # it is elsewhere, or gone
            return []
    found = []
    for name in WORDS:
        own = run.series(name, attempt=attempt)
        own = Signal(name, own.step[:FIRST_STEPS], own.value[:FIRST_STEPS])
        if len(own):
            again = then.series(name, attempt=parent).between(record.resume_step + 1, None)
            before = then.series(name).between(None, record.resume_step)
            found.append(_compare(name, own, again, before))
    return found


def _compare(name: str, own: Signal, again: Signal, before: Signal) -> Continuity:
    _, mine, theirs = np.intersect1d(own.step, again.step, assume_unique=True, return_indices=True)
    differs = mine[~_same(own.value[mine], again.value[theirs])]
    level, now = before.tail(FIRST_STEPS).value, own.value
    finite_before = bool(len(level)) and bool(np.isfinite(level).all())
    broke = finite_before and not np.isfinite(now).all()
    enough = finite_before and not broke and min(len(level), len(now)) >= LEAST_ROWS
    return Continuity(
        name,
        (int(own.step[0]), int(own.step[-1])),
        repeated=len(mine),
        differs_at=int(own.step[differs[0]]) if len(differs) else None,
        before=float(np.median(level)) if enough else math.nan,
        after=float(np.median(now)) if enough else math.nan,
        moved=broke or (enough and _moved(before.tail(SCATTER_ROWS).value, level, now, ROOM[name])),
    )


def _same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one == other) | (np.isnan(one) & np.isnan(other))


def _moved(rows: np.ndarray, before: np.ndarray, after: np.ndarray, room: float) -> bool:
    """Whether the medians lie further apart than ``room`` and than the scatter from one row to the next explains.

    Of the loss a fall is none: it is what training does. The scatter is taken from differences, which no trend widens.
    """
    steps = np.diff(rows[np.isfinite(rows)])
    scatter = MAD_TO_SD * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2) if len(steps) else 0.0
    error = (
        1.25 * scatter * math.sqrt(1 / len(before) + 1 / len(after))
    )  # of a median: sqrt(pi / 2) wider than a mean's
    old, new = float(np.median(before)), float(np.median(after))
    rise = new - old if room == ROOM["train_loss"] else abs(new - old)
    return rise > max(SDS * error, room * abs(old))


def verdict(parts: Mapping[str, str | None], changed: Sequence[str], found: Sequence[Continuity]) -> tuple[str, str]:
    """One word, and one line that says why.

    ``bitwise``: every repeated step is equal. ``continuous``: the levels go on. ``discontinuous``: one does not.
    ``cannot tell``: too few rows.

    Args:
        parts: what of the state was restored; None for exactly, else why not.
        changed: configuration fields that this attempt changes on purpose.
        found: of :func:`follow_on`.
    """
    word = _word(found)
    inexact = [f"{name} ({problem})" for name, problem in parts.items() if problem]
    notes = [f"not restored exactly: {', '.join(inexact)}" if inexact else "all state restored exactly"]
    if changed:
        notes.append(f"changed on purpose: {', '.join(changed)}")
    return word, "; ".join([_evidence(word, found), *notes])


def _word(found: Sequence[Continuity]) -> str:
    if any(one.moved and not one.bitwise for one in found):
        return "discontinuous"
    if found and all(one.bitwise for one in found):
        return "bitwise"
    return "continuous" if any(one.judged for one in found) else "cannot tell"


def _evidence(word: str, found: Sequence[Continuity]) -> str:
    if word == "cannot tell":
        return f"too few rows to tell whether the training goes on as before (fewer than {LEAST_ROWS} on one side)"
    names = " and ".join(WORDS[one.name] for one in found)
    if word == "bitwise":
        count = min(one.repeated for one in found)
        return f"{names} of the {count} repeated steps from {found[0].steps[0]} equal the attempt before bit for bit"
    told = [_told(one) for one in found if one.judged]
    goes_on = "go on as before" if word == "continuous" else "do not go on as before"
    return f"{names} {goes_on}: {', '.join(told)}"


def _told(one: Continuity) -> str:
    text = f"{WORDS[one.name]} {one.before:.4g}, then {one.after:.4g}"
    if math.isnan(one.before + one.after):
        text = f"{WORDS[one.name]} not finite" if one.moved else f"{WORDS[one.name]} the same bit for bit"
    return text if one.differs_at is None else f"{text} (another one from step {one.differs_at})"


def fields(parts: Mapping[str, str | None], changed: Sequence[str], found: Sequence[Continuity]) -> dict[str, Any]:
    """The ``fidelity`` event."""
    word, text = verdict(parts, changed, found)
    return {
        "verdict": word,
        "text": text,
        "parts": {name: problem or "exact" for name, problem in parts.items()},
        "changed": list(changed),
        "compared": {
            one.name: {
                "steps": list(one.steps),
                "repeated": one.repeated,
                "differs_at": one.differs_at,
                "before": one.before,
                "after": one.after,
            }
            for one in found
        },
    }
