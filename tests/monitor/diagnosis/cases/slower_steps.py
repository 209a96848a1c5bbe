"""Cases of slower-steps: a new level of the step time."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Mark, Signals
from monitor.signals import LayerMatrix
from tests.monitor.diagnosis.cases.drawn import Case, changed, level, only
from tests.monitor.diagnosis.cases.timed import AT, STEPS, evaluated, seconds, timed


def paused():
    time, more = evaluated(seconds())
    return timed(time, **more)


def short(more: float) -> Signals:
    """Steps of a millisecond, longer from row AT + 10 on."""
    time = changed(seconds(usual=0.001), slice(AT + 10, None), more)
    return timed(time, 0.0 * time)


def doubled(backward: float, cpu_pct: float) -> Signals:
    """Twice the step time from row AT on, of which backward's own factor is given; 80 % of a core before."""
    late = np.arange(STEPS) >= AT
    time = changed(seconds(), slice(AT, None), 2.0)
    back = 0.5 * np.where(late, backward / 2, 1.0) * time
    step = np.arange(10, STEPS + 1, 10)
    series = {"step_time_s": time, "data_wait_s": 0.0 * time, "backward_s": back, "forward_s": time - back}
    return Signals.from_arrays(series, system={"cpu_pct": (step, np.where(step > AT, cpu_pct, 80.0))})


def shared(more: float, taken: float) -> Signals:
    """A host that takes the processor away for a third of each step, and from row AT on for ``taken`` more of it, by
    its own count; the step itself takes ``more`` from then on."""
    late = np.arange(STEPS) >= AT
    own = seconds() * np.where(late, more, 1.0)
    waits = np.random.default_rng(1).gamma(1.0, 1 / 3, STEPS) * seconds() + np.where(late, taken, 0.0) * seconds()
    return timed(own + waits, cpu_wait_s=waits)


def monitored(more: float, own: float) -> Signals:
    """From row 150 on the monitor takes a step's time times ``more`` - 1, from AT on the step itself ``own`` times."""
    row = np.arange(STEPS)
    time = seconds() * np.where(row >= AT, own, 1.0)
    cost = np.where(row >= 150, more - 1, 0.0) * seconds()
    return timed(time + cost, monitor_s=cost)


def trained(before: int, after: int) -> Signals:
    """Half as long again from row AT on, with a gradient in so many of eight layers before and after."""
    present = np.arange(8) < np.where(np.arange(STEPS) < AT, before, after)[:, None]
    matrix = LayerMatrix(
        "grad_norm_preclip", np.arange(1, STEPS + 1), tuple("abcdefgh"), np.ones(present.shape, np.float32), present
    )
    time = changed(seconds(), slice(AT, None), 1.5)
    return Signals.from_arrays({"step_time_s": time}, layers={"grad_norm_preclip": matrix})


FIRES = (
    Case("half as long again with fewer layers to train", lambda: trained(8, 2), "warning", onset=AT + 11),
    Case("twice as long, on as much of a core", lambda: doubled(2.0, 80), "warning", onset=AT + 11),
    Case("backward alone, the process idle", lambda: doubled(3.0, 40), "warning", onset=AT + 11),
    Case("5 % for good, and the monitor takes longer before", lambda: monitored(1.2, 1.05), "warning", onset=AT + 11),
    Case("5 % for good on a host that others use", lambda: shared(1.05, 0.0), "warning", onset=AT + 11),
    Case("a fifth of a millisecond", lambda: short(1.2), "warning", onset=AT + 11),
    Case("5 % for good", lambda: timed(changed(seconds(), slice(AT + 10, None), 1.05)), "warning", onset=AT + 11),
    Case(
        "two thirds for good, on a restless machine",
        lambda: timed(changed(seconds(sd=0.2, wander=0.03), slice(AT + 10, None), 1.65)),
        "warning",
        onset=AT + 11,
        words="longer",
    ),
)

NEAR_MISSES = (
    Case("half as long again with more layers to train", lambda: trained(2, 8)),
    Case("half as long again for 200 steps, early on", lambda: timed(changed(seconds(), slice(150, 350), 1.5))),
    Case("twice as long, on half as much of a core", lambda: doubled(2.0, 40)),
    Case("half as long again, all of it the monitor's", lambda: monitored(1.5, 1.0)),
    Case("half as long again without a processor", lambda: shared(1.0, 0.5)),
    Case("5 % of a millisecond", lambda: short(1.05)),
    Case("2 % for good", lambda: timed(changed(seconds(), slice(AT, None), 1.02))),
    Case("5 % on a machine that wanders by 10 %", lambda: timed(changed(seconds(wander=0.1), slice(AT, None), 1.05))),
    Case("half as long again for 150 steps", lambda: timed(changed(seconds(), slice(AT, AT + 150), 1.5))),
    Case("evaluation every 50 steps", paused),
    Case(
        "longer sequences, logged",
        lambda: timed(changed(seconds(), slice(AT, None), 1.5), events=(Mark("seq_len", AT + 1),)),
    ),
    Case(
        "more tokens per step",
        lambda: timed(
            changed(seconds(), slice(AT, None), 1.5), tokens=np.cumsum(np.where(np.arange(STEPS) < AT, 100.0, 200.0))
        ),
    ),
    Case("faster", lambda: timed(changed(seconds(), slice(AT, None), 0.7))),
)

ABSTAINS = (
    Case("not timed", lambda: only(train_loss=level()), words="step_time_s not recorded"),
    Case("200 steps", lambda: timed(seconds()).until(200), words="190 training steps"),
)
