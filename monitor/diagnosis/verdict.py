"""Whether a change has mended a training: the incident it was made for, looked for in the steps trained with it.

    trouble = Trouble.of(incident, findings)             of the run that went wrong, from the doctor's JSON
    signals = continued(parent, child, fork)             its rows up to the fork, then those of the child
    judge(trouble, signals, fork, before=parent)         gone, moved, came back, or not decided yet

The rules see the child with its parent's past, as if the run had been rewound: a child that begins ten steps before the
onset has no baseline of its own. So the verdict is a function of rows alone; at a step s it is the same while the child
trains (``signals.until(s)``) and ever after.

How many steps it takes (:func:`steps_needed`): twice as many past the onset as the alarm took in the broken run, at
least 60. Fewer where the training ends before, but never below 20.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from monitor.diagnosis.engine import diagnose
from monitor.diagnosis.incidents import Incident
from monitor.diagnosis.primitives import MAD_TO_SD
from monitor.diagnosis.rule import Severity
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number
from monitor.signals import LayerMatrix, Signal

Word = Literal["gone", "moved", "came back", "not decided"]
LEAST_PAST, LEAST_AT_END, MOST_PAST = 60, 20, 400
"""Steps past the onset: for any incident, for one so late that the training ends before, and at most. A sudden fault is
to be told within 20 steps and a drift within 100 (design notes, 3.4); the alarm's own delay says which it was."""
NEAR_STEPS = 20
"""An incident this close to where it was has come back; as alarms are merged in the benchmark."""
LEVEL_ROWS = 20
"""Rows whose median is the level of the loss."""
ROOM, SDS = 0.10, 3.0
"""The loss may end above its level before the onset by a tenth, or by three times its scatter. Our judgement: a mended
training goes on falling, and a level is of twenty rows."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What was wrong: as much of an incident as its return is recognised by."""

    onset_step: int
    first_step: int
    """Step of the first alarm."""
    kinds: frozenset[str]
    """Ids of its findings of warning or worse, and of the one that explains the others."""
    severity: Severity
    layer: str | None = None

    @classmethod
    def of(cls, incident: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> Trouble:
        """Of an incident of the doctor's JSON, whose findings lie in ``findings``."""
        own = [findings[place] for place in incident["findings"]]
        kinds = [
            f["id"] for f in own if Severity(f["severity"]).at_least(Severity.WARNING) or f["id"] == incident["id"]
        ]
        return cls(
            incident["onset_step"],
            incident["first_step"],
            frozenset(kinds),
            Severity(incident["severity"]),
            incident["layer"],
        )

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Trouble:
        """Of :meth:`record`.

        Raises:
            ValueError: it is none.
        """
        onset, first, kinds = fields.get("onset_step"), fields.get("first_step"), fields.get("kinds")
        layer, severity = fields.get("layer"), fields.get("severity")
        if type(onset) is not int or type(first) is not int or not isinstance(kinds, list) or len(kinds) > 100:
            raise ValueError("onset_step, first_step or kinds is missing")
        if not isinstance(severity, str) or severity not in list(Severity):
            raise ValueError(f"severity {severity!r} is none")
        return cls(
            onset, first, frozenset(map(str, kinds)), Severity(severity), layer if isinstance(layer, str) else None
        )

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "kinds": sorted(self.kinds), "severity": str(self.severity)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the trouble. Losses are medians of 20 rows; NaN where there are none."""

    word: Word
    text: str
    step: int
    """Last step that was looked at."""
    past: int
    """Steps trained past the onset, 0 before it."""
    needed: int
    loss: float = math.nan
    """At the end of what was trained with the change."""
    loss_before: float = math.nan
    """Of the broken run before the onset."""
    loss_broken: float = math.nan
    """Of the broken run at the same steps as ``loss``."""
    onset_step: int | None = None
    """Where the incident is now, when it is not gone."""
    layer: str | None = None

    @property
    def decided(self) -> bool:
        return self.word != "not decided"


def steps_needed(trouble: Trouble) -> int:
    """Steps past the onset that have to be trained before the trouble is called gone."""
    return min(MOST_PAST, max(LEAST_PAST, 2 * (trouble.first_step - trouble.onset_step)))


def continued(parent: Signals, child: Signals, fork: int) -> Signals:
    """The rows of ``parent`` up to step ``fork``, then those of ``child``: the child with its past.

    Layers and modules are joined where both have the same ones. The machine's samples are the child's.
    """
    past = parent.until(fork)
    ranks = {
        number: partial(lambda n: continued(parent.of_rank(n), child.of_rank(n), fork), number)
        for number in child.ranks
        if number in parent.ranks
    }
    return Signals(
        lambda name: _joined(past[name], child[name], fork),
        dict.fromkeys([*past.names, *child.names]),
        layers=lambda stat: _stacked(past.layers(stat), child.layers(stat), fork),
        modules=lambda stat: _stacked(past.modules(stat), child.modules(stat), fork),
        system=child.system,
        ranks=ranks,
        events=[*past.events(), *child.events()],
        facts=child.facts,
    )


def judge(
    trouble: Trouble, signals: Signals, fork: int, *, before: Signals | None = None, ended: bool = False
) -> Outcome:
    """What became of ``trouble`` in the steps after ``fork``.

    Args:
        signals: the training with the change, with its past: of :func:`continued`, or a run that was rewound itself.
        before: the broken run, for the level of its loss; None takes ``signals`` up to the onset.
        ended: whether no further step will come.
    """
    last, needed = max(signals.last_step, fork), steps_needed(trouble)
    past = max(0, last - trouble.onset_step)
    broken = before if before is not None else signals
    own = signals["train_loss"].between(max(fork, trouble.onset_step) + 1, None)
    rows = own.tail(LEVEL_ROWS)
    outcome = Outcome(
        "not decided",
        "",
        last,
        past,
        needed,
        _level(rows),
        _level(broken["train_loss"].between(None, trouble.onset_step - 1).tail(LEVEL_ROWS)),
        _level(before["train_loss"].between(int(rows.step[0]), int(rows.step[-1])))
        if before and len(rows)
        else math.nan,
    )
    report = diagnose(signals)
    back = [one for one in report.incidents if one.onset_step > fork and _is_same(trouble, one)]
    if back:
        return _back(trouble, min(back, key=lambda one: one.onset_step), outcome)
    if trouble.kinds.isdisjoint(report.checked):
        silent = ", ".join(sorted(trouble.kinds))
        return replace(outcome, text=f"{silent} cannot be looked for: what it needs is not recorded")
    enough = past >= needed or (ended and past >= min(needed, LEAST_AT_END))
    if not enough:
        why = "and the training has ended" if ended else "so far"
        return replace(outcome, text=f"{past} of {needed} steps past the onset at step {trouble.onset_step} {why}")
    others = [one for one in report.incidents if one.onset_step > fork and one.severity is Severity.CRITICAL]
    if others:
        worst = others[0]
        return replace(
            outcome,
            word="moved",
            text=f"another incident instead, from step {worst.onset_step}: {worst.summary}",
            onset_step=worst.onset_step,
            layer=worst.layer,
        )
    return _gone_or_raised(trouble, outcome, broken)


def _gone_or_raised(trouble: Trouble, outcome: Outcome, broken: Signals) -> Outcome:
    allowed = outcome.loss_before + max(ROOM * abs(outcome.loss_before), SDS * _scatter(trouble, broken))
    losses = _losses(outcome)
    if outcome.loss > allowed:
        text = f"no rule speaks, but the loss stays raised: {losses}"
        return replace(outcome, word="came back", text=text, onset_step=trouble.onset_step)
    return replace(
        outcome, word="gone", text=f"{outcome.past} steps past step {trouble.onset_step} without it; {losses}"
    )


def _back(trouble: Trouble, found: Incident, outcome: Outcome) -> Outcome:
    moved = _moved(trouble, found)
    where = f"at step {found.onset_step}" + (f" in {found.layer}" if found.layer else "")
    then = f"it was at step {trouble.onset_step}" + (f" in {trouble.layer}" if trouble.layer else "")
    return replace(
        outcome,
        word="moved" if moved else "came back",
        text=f"the same incident {where}; {then}",
        onset_step=found.onset_step,
        layer=found.layer,
    )


def _is_same(trouble: Trouble, found: Incident) -> bool:
    """Whether ``found`` is the trouble again: of one of its kinds, and as severe.

    What was critical and is a warning now has been bounded, as a gradient that jumps is by clipping; whether that was
    enough the loss says.
    """
    same = [f for f in found.findings if f.id in trouble.kinds and f.severity is not None]
    return any(f.severity.at_least(trouble.severity) for f in same if f.severity is not None)


def _moved(trouble: Trouble, found: Incident) -> bool:
    """Whether the trouble is later than before, or at the same time in another layer."""
    if found.onset_step > trouble.onset_step + NEAR_STEPS:
        return True
    elsewhere = bool(found.layer and trouble.layer and found.layer != trouble.layer)
    return elsewhere and found.onset_step >= trouble.onset_step - NEAR_STEPS


def _losses(outcome: Outcome) -> str:
    told = f"loss {number(outcome.loss)}, {number(outcome.loss_before)} before the onset"
    if not math.isnan(outcome.loss_broken):
        told += f", {number(outcome.loss_broken)} at these steps in the run that broke"
    return told


def _level(rows: Signal) -> float:
    """The median, infinite where a row is not finite; NaN for none."""
    if not len(rows):
        return math.nan
    return float(np.median(rows.value)) if np.isfinite(rows.value).all() else math.inf


def _scatter(trouble: Trouble, broken: Signals) -> float:
    value = broken["train_loss"].between(None, trouble.onset_step - 1).tail(5 * LEVEL_ROWS).value
    steps = np.diff(value[np.isfinite(value)])
    return MAD_TO_SD * float(np.median(np.abs(steps))) / math.sqrt(2) if len(steps) else 0.0


def _joined(past: Signal, then: Signal, fork: int) -> Signal:
    then = then.between(fork + 1, None)
    step, value = np.concatenate([past.step, then.step]), np.concatenate([past.value, then.value])
    return Signal(then.name, step, value, then.unit)


def _stacked(past: LayerMatrix | None, then: LayerMatrix | None, fork: int) -> LayerMatrix | None:
    """The rows of both; those of one alone where the other has none or other names."""
    if past is None or then is None or past.names != then.names:
        return then if then is not None else past
    keep = then.step > fork
    since = None
    if past.since is not None or then.since is not None:
        since = np.concatenate([past.begins, then.begins[keep]])
    nonfinite = None
    if past.nonfinite is not None or then.nonfinite is not None:
        nonfinite = np.concatenate([_nonfinite(past), _nonfinite(then)[keep]])
    return replace(
        then,
        step=np.concatenate([past.step, then.step[keep]]),
        value=np.concatenate([past.value, then.value[keep]]),
        present=np.concatenate([past.present, then.present[keep]]),
        since=since,
        nonfinite=nonfinite,
    )


def _nonfinite(matrix: LayerMatrix) -> np.ndarray:
    """uint32[T, L]: counts, from the values where they are not given."""
    if matrix.nonfinite is not None:
        return matrix.nonfinite
    return (~np.isfinite(matrix.value) & matrix.present).astype(np.uint32)


def ranked(outcomes: Sequence[Outcome]) -> list[int]:
    """The places of ``outcomes``, best first: gone before not decided before moved before came back, then by loss."""
    order = ("gone", "not decided", "moved", "came back")
    loss = [math.inf if math.isnan(one.loss) else one.loss for one in outcomes]
    return sorted(range(len(outcomes)), key=lambda n: (order.index(outcomes[n].word), loss[n]))
