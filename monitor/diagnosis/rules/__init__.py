"""Every rule, in report order. A test compares this tuple with the folder."""

from __future__ import annotations

from monitor.diagnosis.rule import Rule
from monitor.diagnosis.rules import (
    gradient_explosion,
    loss_spike,
    lr_schedule,
    non_finite,
    not_learning,
    overfitting,
    resume_mismatch,
    slow_divergence,
    stale_second_moment,
    update_size,
    vanishing_gradient,
    weight_norm,
)

RULES: tuple[Rule, ...] = (
    non_finite.RULE,
    gradient_explosion.RULE,
    loss_spike.RULE,
    slow_divergence.RULE,
    stale_second_moment.RULE,
    update_size.RULE,
    weight_norm.RULE,
    vanishing_gradient.RULE,
    resume_mismatch.RULE,
    lr_schedule.RULE,
    overfitting.RULE,
    not_learning.RULE,
)
