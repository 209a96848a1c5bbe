"""Every rule, in report order. A test compares this tuple with the folder."""

from __future__ import annotations

from monitor.diagnosis.rule import Rule
from monitor.diagnosis.rules import gradient_explosion, loss_spike, non_finite, slow_divergence

RULES: tuple[Rule, ...] = (
    non_finite.RULE,
    gradient_explosion.RULE,
    loss_spike.RULE,
    slow_divergence.RULE,
)
