"""The situation of a measurement: warm-up, restarts, changes of data; and the tracks that several rules share."""

from __future__ import annotations

import math
import re

import numpy as np

from monitor.diagnosis.primitives import (
    DriftSettings,
    DriftTrack,
    Spike,
    SpikeSettings,
    SpikeTrack,
    anchored_cusum,
    expanding_median,
    jumps_to_new_height,
    restarts,
    robust_spikes,
    rows_at,
    steady_then_changed,
    warmup_rows,
)
from monitor.diagnosis.view import Signals
from monitor.signals import Signal

GATE_EVENTS = (
    "data_stage", "batch_size", "batch_size_change", "seq_len", "seq_len_change", "sequence_length", "param_group",
)  # fmt: skip
"""Event kinds after which old levels no longer apply. "resume" is not among them on purpose: a clean resume leaves no
mark, so one that does is a fault, and the cause ranking names it. "lr_change" counts where no learning rate is
recorded; where it is, its values decide."""

EARLY_ROWS = 50
"""Rows at the start of a run in which the loss may still go up before it goes down; our judgement."""
UNKNOWN_WARMUP_ROWS = 100
"""The same where no learning rate is recorded, so that a warm-up cannot be excluded; our judgement."""

MOST_EARLY_ROWS = 200
"""Rows after which a sudden event is no longer excused by a warm-up, however long; our judgement."""
EARLY_SPIKE = 0.5
"""Smallest relative rise of the loss that counts as a spike up to twice the warm-up; our judgement."""
LOSS_NEAR_ZERO = 0.2
"""Share of the first losses. A loss that has been learnt down to nearly nothing is made of a few hard samples, so its
ratios are huge and mean nothing; a rise counts only above this share. Our judgement."""
GRADIENT_NEAR_ZERO = 0.5
"""The same for a gradient norm, as a share of the run's median so far."""


def span(signals: Signals, steps: int) -> int:
    """``steps``, or three rows of a sparse log where that is more: what counts as near in time."""
    return max(steps, 3 * signals.remember("spacing", lambda: _spacing(signals)))


def _spacing(signals: Signals) -> int:
    step = max((signals["train_loss"].step, signals["grad_norm_preclip"].step), key=len)
    return int(np.median(np.diff(step[:10_000]))) if len(step) > 1 else 1


def gate_steps(signals: Signals) -> tuple[int, ...]:
    """Steps at which a new situation begins: restarts of the learning rate, changes of data, batch, sequence length."""
    return signals.remember("gate_steps", lambda: _gate_steps(signals))


def _gate_steps(signals: Signals) -> tuple[int, ...]:
    kinds = GATE_EVENTS if "lr" in signals else (*GATE_EVENTS, "lr_change")
    steps = {event.step for event in signals.events(*kinds) if event.step is not None}
    lr = signals["lr"]
    steps.update(lr.step[restarts(lr.value)].tolist())
    tokens = signals["tokens"]
    if len(tokens) > 1:
        per_step = np.diff(tokens.value) / np.diff(tokens.step)
        steps.update(tokens.step[1:][steady_then_changed(per_step)].tolist())
    return tuple(sorted(steps))


def lr_jump_steps(signals: Signals) -> tuple[int, ...]:
    """Steps at which the learning rate more than doubles to a height the run had never seen, after warm-up."""
    lr = signals["lr"]
    rows = jumps_to_new_height(lr.value)
    return tuple(lr.step[rows[rows >= warmup_rows(lr.value)]].tolist())


def warmup_end(signals: Signals) -> int | None:
    """Last step of the rise of the learning rate from the start; 0 without warm-up, None without a learning rate."""
    lr = signals["lr"]
    if len(lr) == 0:
        return None
    rows = warmup_rows(lr.value)
    return int(lr.step[rows - 1]) if rows else 0


def early_bar(
    signals: Signals, step: np.ndarray, *, early: float, later: float, most_rows: int | None = None, fall: float = 1.0
) -> np.ndarray:
    """float64[T]: ``early`` up to twice the warm-up, then falling in a straight line to ``later`` over ``fall`` times
    that long.

    A loss hump in warm-up is healthy: the learning rate rises faster than the model adapts. What lies beyond
    ``early`` is not. ``most_rows`` bounds the first part, for events of a step or two: a warm-up over a third of the
    run must not hide them.
    """
    zone = early_steps(signals, step)
    if most_rows is not None and len(step):
        zone = max(1.0, min(zone, float(step[min(most_rows, len(step)) - 1])))
    share = np.clip((step - zone) / (fall * zone), 0.0, 1.0)
    return early + (later - early) * share


def early_steps(signals: Signals, step: np.ndarray) -> float:
    """Steps at the start in which a loss may still climb: twice the warm-up, or so many rows."""
    end = warmup_end(signals)
    rows = UNKNOWN_WARMUP_ROWS if end is None else EARLY_ROWS
    by_rows = float(step[min(rows, len(step)) - 1]) if len(step) else 0.0
    return max(2.0 * (end or 0), by_rows, 1.0)


def _sudden_bar(signals: Signals, step: np.ndarray, early: float, later: float) -> np.ndarray:
    """The early bar for events of a step or two."""
    return early_bar(signals, step, early=early, later=later, most_rows=MOST_EARLY_ROWS, fall=0.5)


REWARDED = re.compile(
    r"reward|advantage|(^|[/_])(kl|return|returns|policy_loss|value_loss|entropy_loss)($|[/_])", re.IGNORECASE
)
"""Names that only reinforcement learning logs; its policy loss may be 0 or negative in health."""


def is_reinforcement(signals: Signals) -> bool:
    """Whether the run logs what only reinforcement learning has, such as a reward."""
    return any(REWARDED.search(name) for name in signals.names)


_OF_POLICY = re.compile(
    r"reward|(^|[/_])(advantages?|ep_rew_mean|returns?|policy_loss|policy_gradient_loss)($|[/_])", re.I
)
_PREFERENCES = re.compile(r"rewards/(chosen|rejected|margins)")


def loss_follows_policy(signals: Signals) -> bool:
    """Whether the loss is that of a policy or its value function, which is as large as the returns are: it grows while
    the policy gets better. Not so in preference learning, whose "rewards" are log ratios and whose loss is a loss."""
    names = signals.names
    return any(_OF_POLICY.search(name) for name in names) and not any(_PREFERENCES.search(name) for name in names)


def loss_may_rise(signals: Signals) -> bool:
    """Whether a higher loss need not be a worse model: it follows a policy, or other losses are minimised in turn with
    it and raise it (a GAN's)."""
    return loss_follows_policy(signals) or bool(signals.events("objectives"))


_RETURNS = re.compile(
    r"(^|[/_ ])(ep_rew_mean|ep(isode)?_?(rewards?|returns?)(_mean)?|(mean|average|avg)_(episode_)?(rewards?|returns?)"
    r"|(rewards?|returns?)(_mean)?)$",
    re.I,
)


def returns_of(signals: Signals) -> Signal | None:
    """The first reward or return that a policy gets; None without one. Those of preference learning are none."""
    if any(_PREFERENCES.search(name) for name in signals.names):
        return None
    return next((signals[name] for name in signals.names if _RETURNS.search(name)), None)


def returns_change(signals: Signals, onset: int) -> float:
    """By how much a reward or return is higher at the end than before step ``onset``, medians of both; 0 where none was
    recorded on both sides. A policy whose returns rise has not been lost, whatever its loss does."""
    returns = returns_of(signals)
    if returns is None:
        return 0.0
    before, after = returns.between(None, onset - 1).value, returns.between(onset, None).value
    before, after = before[np.isfinite(before)], after[np.isfinite(after)]
    return float(np.median(after[len(after) // 2 :]) - np.median(before)) if len(before) and len(after) else 0.0


def loss_is_signed(signals: Signals, *, share: float = 0.02, zeros: float = 0.3) -> bool:
    """Whether the training loss is often <= 0, so that its ratios have no meaning (reinforcement learning, densities).

    Counted over the first rows up to the last. Exact zeros count where a reward is logged or where they are many;
    a few of them in a positive loss are another thing, such as a NaN that was logged as 0.
    """
    finite = signals["train_loss"].value
    finite = finite[np.isfinite(finite)]
    if len(finite) == 0:
        return False
    low = float(np.mean(finite <= 0))
    negative = bool((finite < 0).any())
    return low > share and (negative or low > zeros or is_reinforcement(signals))


def first_level(loss: Signal, rows: int = 10) -> float:
    """Median of the first finite losses; NaN when there is none."""
    finite = loss.value[np.isfinite(loss.value)][:rows]
    return float(np.median(finite)) if len(finite) else math.nan


LOST_RATIO = 10.0
"""A loss this many times its old level that does not come back is lost, however few rows are left. Our judgement."""
LOST_ROWS = 5
"""Losses that must have stayed up there; our judgement."""


def is_lost(loss: Signal, onset: int, base: float) -> bool:
    """Whether the loss rose from ``base`` by an order of magnitude at step ``onset`` and is still there at the end.

    Judged by the last ten finite losses since ``onset``; False with fewer than five.
    """
    after = loss.between(onset, None).value
    after = after[np.isfinite(after)][-10:]
    if len(after) < LOST_ROWS or not base > 0:
        return False
    return float(np.median(after)) > max(LOST_RATIO * base, 1.5 * LOSS_NEAR_ZERO * first_level(loss))


def loss_is_lost(signals: Signals, onset: int) -> bool:
    """``is_lost`` for an event of another signal at step ``onset``, judged against the losses before it.

    It must have happened within fifty steps, so that a loss that is lost later is not put down to this event.
    """
    loss = signals["train_loss"]
    before = loss.between(None, onset - 1).value
    before = before[np.isfinite(before)][-20:]
    if len(before) < LOST_ROWS or loss_is_signed(signals) or returns_change(signals, onset) > 0:
        return False
    base = float(np.median(before))
    soon = loss.between(None, onset + span(signals, 50))
    return is_lost(soon, onset, base) and is_lost(loss, onset, base)


def loss_spikes(signals: Signals, settings: SpikeSettings) -> SpikeTrack:
    """Primitive Z on the training loss, gated; rises to a nearly zero loss do not count."""
    return signals.remember(("loss_spikes", settings), lambda: _loss_spikes(signals, settings))


def _loss_spikes(signals: Signals, settings: SpikeSettings) -> SpikeTrack:
    loss = signals["train_loss"]
    start = first_level(loss)
    least = np.full(len(loss), LOSS_NEAR_ZERO * start if start > 0 else -math.inf)
    effect = _sudden_bar(signals, loss.step, EARLY_SPIKE, settings.effect)
    gates = rows_at(loss.step, gate_steps(signals)).tolist()
    # In warm-up both are restless, so that one is no witness for the other.
    settled = effect < EARLY_SPIKE
    confirmed = settled & np.isin(loss.step, _raised_gradient_steps(signals, settings.z_confirmed))
    return robust_spikes(
        loss.value, settings, effect=effect, least_value=least, confirmed=confirmed, gates=gates,
        continued=signals.continued(("loss_spikes", settings)),
    )  # fmt: skip


def _raised_gradient_steps(signals: Signals, z: float) -> np.ndarray:
    """int64[N]: steps at which the gradient norm is above robust z and twice what is expected."""
    norm, track = gradient_signal(signals), gradient_spikes(signals, GRADIENT_SETTINGS)
    with np.errstate(invalid="ignore"):
        return norm.step[(track.z > z) & (norm.value > 2 * track.expected)]


def loss_drifts(signals: Signals, settings: DriftSettings, *, early_effect: float) -> DriftTrack:
    """Primitive C on the training loss, gated, with a higher bar while a warm-up hump is to be expected."""
    return signals.remember(
        ("loss_drifts", settings, early_effect), lambda: _loss_drifts(signals, settings, early_effect)
    )


def _loss_drifts(signals: Signals, settings: DriftSettings, early_effect: float) -> DriftTrack:
    loss = signals["train_loss"]
    effect = early_bar(signals, loss.step, early=early_effect, later=settings.effect)
    gates = rows_at(loss.step, gate_steps(signals)).tolist()
    kept = signals.continued(("loss_drifts", settings, early_effect))
    return anchored_cusum(loss.value, settings, effect=effect, gates=gates, continued=kept)


def gradient_signal(signals: Signals) -> Signal:
    """The pre-clip gradient norm without its zeros: a norm of exactly 0 is a step without a gradient."""
    norm = signals["grad_norm_preclip"]
    keep = norm.value != 0
    return Signal(norm.name, norm.step[keep], norm.value[keep], norm.unit)


def gradient_spikes(signals: Signals, settings: SpikeSettings) -> SpikeTrack:
    """Primitive Z on the global pre-clip gradient norm (rows of ``gradient_signal``), gated."""
    return signals.remember(("gradient_spikes", settings), lambda: _gradient_spikes(signals, settings))


def _gradient_spikes(signals: Signals, settings: SpikeSettings) -> SpikeTrack:
    norm = gradient_signal(signals)
    effect = _sudden_bar(signals, norm.step, 3 * settings.effect, settings.effect)
    least = GRADIENT_NEAR_ZERO * expanding_median(norm.value)
    gates = rows_at(norm.step, gate_steps(signals)).tolist()
    kept = signals.continued(("gradient_spikes", settings))
    return robust_spikes(norm.value, settings, effect=effect, least_value=least, gates=gates, continued=kept)


def gradient_moved(signals: Signals, onset: int, *, before: int = 20, z: float = 3.5) -> int | None:
    """First step at which the gradient norm rose in connection with an event of another signal at step ``onset``.

    Given that something happened at ``onset``, a gradient norm needs less to be called raised: a robust ``z`` and
    twice what is expected, within ``before`` steps before or two after, with at most three calm rows to the onset.
    None when it did not rise.
    """
    norm, track = gradient_signal(signals), gradient_spikes(signals, GRADIENT_SETTINGS)
    low, high = np.searchsorted(norm.step, [onset - span(signals, before), onset + span(signals, 2) + 1])
    with np.errstate(invalid="ignore"):
        raised = (track.z[low:high] > z) & (norm.value[low:high] > 2 * track.expected[low:high])
    rows = np.flatnonzero(raised) + int(low)
    start = int(np.searchsorted(norm.step, onset))
    first: int | None = None
    for row in rows[::-1].tolist():
        if row < (start if first is None else first) - 4:
            break
        first = row
    return None if first is None else int(norm.step[first])


LOSS_SETTINGS = SpikeSettings()
GRADIENT_SETTINGS = SpikeSettings(effect=1.0, scale_floor=0.05, gate_effect=9.0)
"""Gradient norm: x2 is the smallest rise that counts (x10 after a gate). Scale floor 0.05: five published healthy lines
of BLOOM-176B have a log standard deviation of 0.06."""
DRIFT_SETTINGS = DriftSettings()


def joined(spikes: tuple[Spike, ...], *, gap: int = 20, after_shift: int = 200) -> list[list[Spike]]:
    """Excursions that belong together: at most ``gap`` rows apart, or a further rise soon after an accepted level."""
    groups: list[list[Spike]] = []
    for spike in spikes:
        reach = after_shift if groups and groups[-1][-1].accepted else gap
        if groups and spike.onset - groups[-1][-1].last <= reach:
            groups[-1].append(spike)
        else:
            groups.append([spike])
    return groups


def when_between(signals: Signals, before: int, found: int) -> int | None:
    """The step at which something happened that is measured seldom, ``found`` changed and at ``before`` not yet: the
    first one after ``before`` at which the loss or the gradient left its baseline. None when neither did."""
    loss, norm = signals["train_loss"], gradient_signal(signals)
    onsets = [int(norm.step[spike.onset]) for spike in gradient_spikes(signals, GRADIENT_SETTINGS).spikes]
    if not loss_is_signed(signals):
        onsets += [int(loss.step[spike.onset]) for spike in loss_spikes(signals, LOSS_SETTINGS).spikes]
    return min((step for step in onsets if before < step <= found), default=None)
