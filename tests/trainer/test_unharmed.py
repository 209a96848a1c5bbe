"""The monitor changes no bit of any of the trainings that come with it: 200 steps of each, with it and without."""

from __future__ import annotations

import pytest

from tests.trainer.conftest import Desk, assert_same
from trainer.config.sections import DIGIT_KINDS, TEXT_KINDS

SMALL = (
    "steps=200", "batch_size=4", "task.seq_len=16", "model.n_layer=1", "model.d_model=16", "model.dropout=0.1",
    "clip.max_norm=0.5", "evaluation.every_steps=80", "evaluation.batches=1", "checkpoint.every_steps=none",
)  # fmt: skip
DIGITS = ("model.batch_norm=true", "task.noise_std=0.2", "task.val_fraction=0.2")


@pytest.mark.parametrize("kind", [*TEXT_KINDS, *DIGIT_KINDS])
def test_two_hundred_steps_of_every_task_have_the_same_bits(desk: Desk, kind: str) -> None:
    task = [f"task.kind={kind}", *(DIGITS if kind in DIGIT_KINDS else ())]
    watched = desk.train(*SMALL, *task, "monitor.landscape_every=64")
    alone = desk.train(*SMALL, *task, "monitor.enabled=false")
    assert watched.run.last_step == 200
    assert watched.run.layers("adam_rms").present.any()  # what is compared has been measured in full
    assert_same(watched.weights(), alone.weights())
