"""The weights shrink towards zero or grow without bound."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from monitor.diagnosis.context import warmup_end
from monitor.diagnosis.lasting import measured
from monitor.diagnosis.remedies import configured
from monitor.diagnosis.rule import Abstained, Cause, Finding, Remedy, Rule, Severity, Verdict
from monitor.diagnosis.view import Signals
from monitor.diagnosis.wording import number, percent
from monitor.signals import Signal

LEAST_ROWS = 6
LEAST_STEPS = 50
"""Steps that growth must last."""
FROM_THE_START = 3.0
"""Multiple of the first norm that growth from the first step on must reach: what learns in one direction d beside
random first weights w has the norm sqrt(|w|^2 + |d|^2), whose relative growth gains pace up to 1.4 times the first norm
and has lost a third of that by three times; where d itself comes up to its pace, as Adam's steps agree more and more,
to twice or more."""
FIRST_STEPS = 20
"""Growth that begins within so many steps is one from the first step on: that norm's pace begins at nought, and is a
fifth of its highest after 12 steps at the latest where growth is fast enough to be told."""
RISING_ROWS = 4
"""Measurements in which weights must have grown before a fall of them is told."""
APART_STEPS = 10
"""Between two measurements that a fall is seen from: single steps go either way."""


def weight_norm(
    signals: Signals, *, shrunk: float = 0.6, growth: float = 0.5, rows: int = 4, decay: float = 0.1
) -> Verdict:
    """The norm of all weights together falls to a fraction of what it was, or grows exponentially.

    Why it matters: a decay that is too strong erases what was learnt and leaves a model that predicts nothing; one of
    the wrong sign, or none at a high learning rate, lets the weights grow until an activation overflows.

    Stays silent: on the growth of a training under way, which slows down (healthy small models double their norm in
    some 500 steps, and one that learns its whole data in each step in 100); in a warm-up, which speeds it up; on
    growth from the first step on up to three times the first norm; on a norm that settles a little lower. Frozen
    weights are not counted, and one that is thawed begins a new first norm.

    Thresholds: ``shrunk``, share of the highest norm so far below which it has shrunk, while still falling; ``growth``,
    relative growth per hundred steps over ``rows`` measurements running, at the end no slower than its fastest: what is
    exponential keeps its pace; ``decay``, relative fall per hundred steps over two measurements running of weights that
    had grown until then, where it is also three times what the configured decay can bring about. Our judgement.

    Source: design notes F11; TheDeepChecker (Ben Braiek and Khomh 2023): weights that double per check.
    """
    norm = _finite(signals["weight_norm"])
    if len(norm) < LEAST_ROWS:
        return Abstained(f"{len(norm)} weight norms recorded, at least {LEAST_ROWS} are needed")
    fell = _shrunk(norm, shrunk)
    if fell is None:
        fell = _decayed(signals, norm, decay)
    found = [] if fell is None else [_finding(signals, norm, fell, "fell")]
    for part in _parts(signals, norm):
        if (grew := _grew(part, growth, rows, warmup_end(signals) or 0)) is not None:
            return [*found, _finding(signals, part, grew, "grew")]
    return found


def _finite(series: Signal) -> Signal:
    keep = np.isfinite(series.value) & (series.value > 0)
    return Signal(series.name, series.step[keep], series.value[keep], series.unit)


def _shrunk(norm: Signal, share: float) -> int | None:
    highest = np.maximum.accumulate(norm.value)
    low = norm.value < share * highest
    falling = np.concatenate([[False], norm.value[1:] < norm.value[:-1]])
    rows = np.flatnonzero(low & falling)
    return int(rows[0]) if len(rows) else None


def _decayed(signals: Signals, norm: Signal, decay: float) -> int | None:
    """The second of two measurements at which weights that had grown fall faster than their decay can make them."""
    kept = [0]
    for row in range(1, len(norm)):
        if norm.step[row] - norm.step[kept[-1]] >= APART_STEPS:
            kept.append(row)
    thin = Signal(norm.name, norm.step[kept], norm.value[kept], norm.unit)
    rate = _rates(thin)
    known = configured(signals, "optimizer", "weight_decay")
    configured_decay = float(known) if isinstance(known, int | float) else 0.0
    lr = signals["lr"]
    for row in range(RISING_ROWS + 1, len(rate)):
        highest = float(np.nanmax(lr.between(int(thin.step[row - 1]), int(thin.step[row + 1])).value, initial=0.0))
        bar = max(decay, 3 * 100 * highest * configured_decay)
        if (rate[row - 1 : row + 1] < -bar).all() and (rate[row - 1 - RISING_ROWS : row - 1] > 0).all():
            return kept[row + 1]
    return None


def _parts(signals: Signals, norm: Signal) -> list[Signal]:
    """``norm`` in parts in which no tensor came to be counted: a thawed one, or of a group that was added."""
    matrix = signals.layers("weight_norm")
    if matrix is None:
        return [norm]
    row = np.searchsorted(matrix.step, norm.step, side="right") - 1
    counted = np.where(row >= 0, np.maximum.accumulate(matrix.present).sum(axis=1)[row], 0)
    bounds = [0, *(np.flatnonzero((counted[1:] > counted[:-1]) & (row[:-1] >= 0)) + 1).tolist(), len(norm)]
    return [
        Signal(norm.name, norm.step[first:last], norm.value[first:last], norm.unit) for first, last in pairwise(bounds)
    ]


def _grew(norm: Signal, growth: float, rows: int, warm: int) -> int | None:
    rate = _rates(norm)
    fast = rate > np.log1p(growth)
    for end in range(rows, len(rate) + 1):
        lasting = norm.step[end] - norm.step[end - rows] >= LEAST_STEPS
        window = slice(end - rows, end)
        if (
            lasting
            and norm.step[end - rows] >= warm
            and fast[window].all()
            and rate[end - 1] > 0.9 * rate[window].max()
            and (
                norm.step[_start(norm, end)] > norm.step[0] + FIRST_STEPS
                or norm.value[end] > FROM_THE_START * norm.value[0]
            )
        ):
            return end
    return None


def _rates(norm: Signal) -> np.ndarray:
    """float64[T - 1]: change of the logarithm per hundred steps, from each row to the next."""
    return np.diff(np.log(norm.value)) / np.diff(norm.step) * 100


def _finding(signals: Signals, norm: Signal, row: int, kind: str) -> Finding:
    start = _start(norm, row)
    before, after = float(norm.value[start]), float(norm.value[row])
    last = float(norm.value[-1])
    layer = _layer(signals, int(norm.step[start]), int(norm.step[row]), kind)
    decay = configured(signals, "optimizer", "weight_decay")
    known = f", with weight_decay {number(float(decay))}" if isinstance(decay, int | float) else ""
    supports = f"the norm of all weights went from {number(before)} to {number(after)}{known}"
    return Finding(
        summary=f"The weights {'shrank' if kind == 'fell' else 'grew'} from a norm of {number(before)} at step "
        f"{int(norm.step[start])} to {number(after)} ({percent(after / before - 1)}) at step {int(norm.step[row])}",
        onset_step=int(norm.step[start]) + 1,
        first_step=int(norm.step[row]),
        last_step=int(norm.step[-1]),
        severity=Severity.WARNING,
        layer=layer,
        evidence={"before": before, "after": after, "last": last},
        causes=(_cause(signals, kind, supports),),
        remedy=Remedy(
            "Use decoupled weight decay between 0.01 and 0.1 on matrices only, and check its sign: the decay of a step "
            "is learning rate x weight_decay.",
            {"optimizer.weight_decay": 0.1},
            "optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.1)  # norms and biases in a group with 0",
        ),
    )


def _cause(signals: Signals, kind: str, told: str) -> Cause:
    """Decay makes weights shrink; they grow by one below zero, or by their updates."""
    if kind == "fell":
        return Cause("weight-decay", 0.7, supports=(told,))
    decays = _decays(signals)
    if decays and min(decays) >= 0:
        return Cause("lr-too-high", 0.5, supports=(told, "no decay is below zero, so that the updates make them grow"))
    return Cause("weight-decay", 0.5, supports=(told,))


def _decays(signals: Signals) -> list[float]:
    """Every weight decay that a parameter group was seen with; empty where the groups were not recorded."""
    seen: list[object] = []
    for event in signals.events("optimizer", "optimizer_change"):
        groups = event.fields.get("groups")
        seen += [group.get("weight_decay") for group in groups or () if isinstance(group, dict)]
        if event.fields.get("name") == "weight_decay":
            seen.append(event.fields.get("after"))
    return [float(decay) for decay in seen if isinstance(decay, int | float)]


def _start(norm: Signal, row: int) -> int:
    """Row from which the norm has moved the same way, at a fifth of the pace at ``row`` or more."""
    rate = _rates(norm)
    pace = rate[row - 1]
    while row > 0 and rate[row - 1] / pace > 0.2:
        row -= 1
    return row


def _layer(signals: Signals, first: int, last: int, kind: str) -> str | None:
    """The tensor whose norm changed the furthest in that direction; None without norms per layer."""
    matrix = signals.layers("weight_norm")
    if matrix is None:
        return None
    rows = np.flatnonzero((matrix.step >= first) & (matrix.step <= last))
    if len(rows) < 2:
        return None
    value = measured(matrix)[rows]
    with np.errstate(invalid="ignore", divide="ignore"):
        change = np.log(value[-1] / value[0])
    usable = np.isfinite(change)
    if not usable.any():
        return None
    change = np.where(usable, change if kind == "grew" else -change, -np.inf)
    return matrix.names[int(change.argmax())]


RULE = Rule(
    id="weight-norm",
    severity=Severity.WARNING,
    needs=("weight_norm",),
    check=weight_norm,
    remedy="Check weight decay: its size, its sign, and which parameters it is for.",
)
