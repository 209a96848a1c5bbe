"""Every rule, in report order. A test compares this tuple with the folder."""

from __future__ import annotations

from monitor.diagnosis.rule import Rule
from monitor.diagnosis.rules import (
    attention_collapse,
    dead_units,
    gradient_explosion,
    initialisation,
    loss_on_probabilities,
    loss_spike,
    lr_schedule,
    missing_zero_grad,
    mode_mismatch,
    non_finite,
    not_learning,
    odd_input,
    output_logits,
    overfitting,
    resume_mismatch,
    saturated_units,
    slow_divergence,
    stale_second_moment,
    unmoved_parameters,
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
    attention_collapse.RULE,
    output_logits.RULE,
    update_size.RULE,
    weight_norm.RULE,
    vanishing_gradient.RULE,
    dead_units.RULE,
    saturated_units.RULE,
    unmoved_parameters.RULE,
    missing_zero_grad.RULE,
    mode_mismatch.RULE,
    loss_on_probabilities.RULE,
    initialisation.RULE,
    odd_input.RULE,
    resume_mismatch.RULE,
    lr_schedule.RULE,
    overfitting.RULE,
    not_learning.RULE,
)
