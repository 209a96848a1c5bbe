"""Every rule, in report order. A test compares this tuple with the folder, and this table with both.

Faults of the catalogue in the design notes, the rules that see them, and what no recorded signal shows:

    F01 non-finite number                  non-finite
    F02 learning rate too high             slow-divergence, update-size, gradient-growth, loss-spike
    F03 gradient explosion                 gradient-explosion, gradient-growth
    F04 vanishing gradient                 vanishing-gradient
    F05 fp16 overflow and underflow        loss-scale, non-finite
    F06 stale second moment of Adam        stale-second-moment
    F07 epsilon floor of Adam              epsilon-floor
    F08 edge of stability                  oscillation, edge-of-stability
    F09 loss spike                         loss-spike
    F10 unequal update ratios              update-imbalance
    F11 weight norm runs away              weight-norm, optimizer-change
    F12 dead units                         dead-units, constant-output
    F13 saturated units                    saturated-units, constant-output
    F14 attention collapses                attention-collapse
    F15 output logits drift                output-logits
    F16 poor initialisation                initialisation
    F17 bad batch                          odd-input, loss-spike; not seen: losses per sample
    F18 input not normalised               odd-input where it changes; not seen: what range was meant
    F19 label noise, label leak            not-learning, validation-too-good; not seen: a noisy part of the labels
    F20 class imbalance, order             data-order; not seen: the targets, so no class imbalance
    F21 parameters that never move         unmoved-parameters
    F22 missing zero_grad                  missing-zero-grad
    F23 loss on probabilities              loss-on-probabilities
    F24 schedule bug                       lr-schedule
    F25 wrong mode                         mode-mismatch; not seen: buffers of BatchNorm
    F26 resume mismatch                    resume-mismatch
    F27 not learning                       not-learning
    F28 learning rate too low              not-learning, update-size
    F29 overfitting                        overfitting
    F30 batch too small or large           batch-size
    F31 loss of plasticity                 dead-units, returns-collapse; not seen: rank of the features
    F32 oscillation                        oscillation
    F33 silent corruption, flaky device    rank-outlier, machine-trouble, weights-overwritten
    F34 replicas apart                     replicas-apart
    F35 straggler                          straggler
    F36 hang                               stall
    F37 exposed communication              exposed-communication
    F38 input-bound                        input-bound
    F39 memory leak                        memory-growth
    F40 memory nearly full                 machine-trouble
    F41 slower steps                       slower-steps
    F42 uneven steps                       stall, slower-steps; not seen: recompilation and garbage collection
    F43 low device use                     low-device-use
"""

from __future__ import annotations

from monitor.diagnosis.rule import Rule
from monitor.diagnosis.rules import (
    attention_collapse,
    batch_size,
    constant_output,
    data_order,
    dead_units,
    edge_of_stability,
    epsilon_floor,
    exposed_communication,
    gradient_explosion,
    gradient_growth,
    initialisation,
    input_bound,
    loss_on_probabilities,
    loss_scale,
    loss_spike,
    low_device_use,
    lr_schedule,
    machine_trouble,
    memory_growth,
    missing_zero_grad,
    mode_mismatch,
    non_finite,
    not_learning,
    odd_input,
    optimizer_change,
    oscillation,
    output_logits,
    overfitting,
    rank_outlier,
    replicas_apart,
    resume_mismatch,
    returns_collapse,
    saturated_units,
    slow_divergence,
    slower_steps,
    stale_second_moment,
    stall,
    straggler,
    unmoved_parameters,
    update_imbalance,
    update_size,
    validation_too_good,
    vanishing_gradient,
    weight_norm,
    weights_overwritten,
)

RULES: tuple[Rule, ...] = (
    non_finite.RULE,
    loss_scale.RULE,
    gradient_explosion.RULE,
    loss_spike.RULE,
    slow_divergence.RULE,
    gradient_growth.RULE,
    stale_second_moment.RULE,
    epsilon_floor.RULE,
    attention_collapse.RULE,
    output_logits.RULE,
    update_size.RULE,
    update_imbalance.RULE,
    oscillation.RULE,
    edge_of_stability.RULE,
    weight_norm.RULE,
    weights_overwritten.RULE,
    vanishing_gradient.RULE,
    dead_units.RULE,
    saturated_units.RULE,
    constant_output.RULE,
    unmoved_parameters.RULE,
    missing_zero_grad.RULE,
    mode_mismatch.RULE,
    loss_on_probabilities.RULE,
    initialisation.RULE,
    odd_input.RULE,
    data_order.RULE,
    resume_mismatch.RULE,
    lr_schedule.RULE,
    optimizer_change.RULE,
    overfitting.RULE,
    returns_collapse.RULE,
    validation_too_good.RULE,
    not_learning.RULE,
    replicas_apart.RULE,
    rank_outlier.RULE,
    straggler.RULE,
    exposed_communication.RULE,
    stall.RULE,
    memory_growth.RULE,
    machine_trouble.RULE,
    slower_steps.RULE,
    input_bound.RULE,
    low_device_use.RULE,
    batch_size.RULE,
)
