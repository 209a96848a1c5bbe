"""How long training sequences are at a step: a pure function of the step, so that a resumed run goes on alike.

Source: Li et al. 2022, https://arxiv.org/abs/2108.06084, which cuts sequences as is done here.
"""

from __future__ import annotations

import math

from trainer.config import CurriculumConfig

STRIDES = 16
"""A linear growth takes at most that many strides: each is an event, and new shapes cost where kernels are compiled."""


def length_at(config: CurriculumConfig, seq_len: int, step: int) -> int:
    """Tokens of a training sequence at ``step``, which begins at 1; ``seq_len`` when the curriculum is over or off."""
    if config.kind is None or step > config.steps:
        return seq_len
    done = (step - 1) / config.steps  # in [0, 1)
    growth = seq_len - config.first_len
    if config.kind == "linear":
        return config.first_len + math.floor(done * STRIDES) * growth // STRIDES
    doublings = math.ceil(math.log2(seq_len / config.first_len))
    return min(seq_len, config.first_len * 2 ** math.floor(done * doublings))
