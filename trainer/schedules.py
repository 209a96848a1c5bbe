"""Learning-rate schedules: pure functions of the step, so that resuming needs one integer."""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.config import ScheduleConfig

Shape = Callable[[float, float], float]
"""``(progress, floor) -> factor``; progress runs from 0 at the end of warm-up towards 1 at the end of training."""


def lr_multiplier(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The factor on the peak learning rate at optimizer step ``step`` (from 1) of ``steps``.

    Linear warm-up reaches 1 at step ``warmup_steps``; the step after it starts the shape, again at 1. A run that is
    shorter than its warm-up ends in the warm-up. Beyond ``steps`` the floor holds.
    """
    done = step - 1
    if done < schedule.warmup_steps:
        return (done + 1) / schedule.warmup_steps
    after_warmup = steps - schedule.warmup_steps
    progress = min(1.0, (done - schedule.warmup_steps) / after_warmup) if after_warmup > 0 else 1.0
    if schedule.kind == "wsd":
        return _warmup_stable_decay(schedule, done, steps)
    return SHAPES[schedule.kind](progress, schedule.min_lr_ratio)


def cosine(progress: float, floor: float) -> float:
    """Half a cosine from 1 to ``floor``.

    Source: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5.
    """
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float, floor: float) -> float:
    """A straight line from 1 to ``floor``."""
    return 1 - (1 - floor) * progress


def constant(progress: float, floor: float) -> float:
    """1 all along; ``floor`` is not used."""
    return 1.0


def _warmup_stable_decay(schedule: ScheduleConfig, done: int, steps: int) -> float:
    """1 until the last ``decay_steps``, then a straight line to the floor.

    Source: Hu et al. 2024 (MiniCPM), https://arxiv.org/abs/2404.06395, section 4; the linear decay is that of
    Hägele et al. 2024, https://arxiv.org/abs/2405.18392.
    """
    decay_steps = schedule.decay_steps or max(1, steps // 5)
    decay_starts = max(schedule.warmup_steps, steps - decay_steps)
    if done < decay_starts:
        return 1.0
    return linear(min(1.0, (done - decay_starts) / max(1, steps - decay_starts)), schedule.min_lr_ratio)


SHAPES: dict[str, Shape] = {"cosine": cosine, "linear": linear, "constant": constant}
"""What follows the warm-up, by the name in the configuration; ``wsd`` counts back from the last step instead."""
