"""Learning-rate schedules: pure functions of the step, so that resuming needs one integer."""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.config import ScheduleConfig

Shape = Callable[[ScheduleConfig, int, int], float]
"""``(schedule, done, steps) -> factor``: ``done`` of ``steps`` optimizer steps after the warm-up are behind."""


def lr_multiplier(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The factor on the peak learning rate at optimizer step ``step`` (from 1) of ``steps``.

    Linear warm-up reaches the shape's first value at step ``warmup_steps``; the step after it has that value again. A
    run that is shorter than its warm-up ends in the warm-up. No shape falls below the floor. Beyond ``steps`` the value
    that the shape has there holds.
    """
    shape, done = SHAPES[schedule.kind], step - 1 - schedule.warmup_steps
    after_warmup = max(1, steps - schedule.warmup_steps)
    if done < 0:
        return shape(schedule, 0, after_warmup) * step / schedule.warmup_steps
    return shape(schedule, min(done, after_warmup), after_warmup)


def constant(schedule: ScheduleConfig, done: int, steps: int) -> float:
    """1 all along."""
    return 1.0


def linear(schedule: ScheduleConfig, done: int, steps: int) -> float:
    """A straight line from 1 to the floor."""
    return _line(1.0, schedule.min_lr_ratio, done / steps)


def cosine(schedule: ScheduleConfig, done: int, steps: int) -> float:
    """Half a cosine from 1 to the floor.

    Source: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5.
    """
    return _half_cosine(1.0, schedule.min_lr_ratio, done / steps)


def cosine_restarts(schedule: ScheduleConfig, done: int, steps: int) -> float:
    """Half cosines from 1 to the floor, one after another, each ``cycle_factor`` times as long as the one before.

    Source: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, section 3.
    """
    length = _period(schedule, steps)
    if schedule.cycle_factor == 1:
        done %= length
    while done >= length:
        done, length = done - length, length * schedule.cycle_factor
    return _half_cosine(1.0, schedule.min_lr_ratio, done / length)


def steps_down(schedule: ScheduleConfig, done: int, steps: int) -> float:
    """``gamma`` once more after every ``period_steps``, not below the floor."""
    return max(schedule.min_lr_ratio, schedule.gamma ** (done // _period(schedule, steps)))


def exponential(schedule: ScheduleConfig, done: int, steps: int) -> float:
    """``gamma`` over every ``period_steps``, by the same factor in each step, not below the floor."""
    return max(schedule.min_lr_ratio, schedule.gamma ** (done / _period(schedule, steps)))


def inverse_sqrt(schedule: ScheduleConfig, done: int, steps: int) -> float:
    """The root of the warm-up's steps over all steps so far, not below the floor.

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 5.3.
    """
    timescale = max(1, schedule.warmup_steps)
    return max(schedule.min_lr_ratio, math.sqrt(timescale / (timescale + done)))


def one_cycle(schedule: ScheduleConfig, done: int, steps: int) -> float:
    """Half a cosine up from ``start_ratio`` to 1, then one down to the floor, which the last step has.

    Source: Smith and Topin 2018, https://arxiv.org/abs/1708.07120; with cosines, as in fastai and torch's OneCycleLR.
    """
    top, end = max(0.0, schedule.peak_at * steps - 1), steps - 1
    if done <= top:
        return _half_cosine(schedule.start_ratio, 1.0, done / top if top else 1.0)
    if done < end:
        return _half_cosine(1.0, schedule.min_lr_ratio, (done - top) / (end - top))
    return schedule.min_lr_ratio


def warmup_stable_decay(schedule: ScheduleConfig, done: int, steps: int) -> float:
    """1 until the last ``decay_steps``, then a straight line to the floor.

    Source: Hu et al. 2024 (MiniCPM), https://arxiv.org/abs/2404.06395, section 4; the linear decay is that of
    Hägele et al. 2024, https://arxiv.org/abs/2405.18392.
    """
    decay_steps = min(steps, schedule.decay_steps or max(1, (schedule.warmup_steps + steps) // 5))
    return _line(1.0, schedule.min_lr_ratio, max(0, done - (steps - decay_steps)) / decay_steps)


SHAPES: dict[str, Shape] = {
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "linear": linear,
    "step": steps_down,
    "exponential": exponential,
    "inverse_sqrt": inverse_sqrt,
    "one_cycle": one_cycle,
    "wsd": warmup_stable_decay,
    "constant": constant,
}
"""What follows the warm-up, by the name in the configuration."""


def _line(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _period(schedule: ScheduleConfig, steps: int) -> int:
    """``period_steps``, by default a third of the steps after the warm-up."""
    return schedule.period_steps or max(1, steps // 3)
