"""Sequences that grow: how long at which step, and that training, resuming and the record follow it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import ConfigError
from tests.trainer.conftest import Desk, assert_same
from trainer.config import CurriculumConfig
from trainer.curriculum import STRIDES, length_at

GROWING = ("curriculum.kind=linear", "curriculum.first_len=8", "curriculum.steps=6")


@given(st.sampled_from(["linear", "step"]), st.integers(2, 300), st.integers(0, 3000), st.integers(1, 400))
def test_length_grows_from_the_first_to_the_full_one(kind: str, first: int, more: int, steps: int) -> None:
    config = CurriculumConfig.model_validate({"kind": kind, "first_len": first, "steps": steps})
    lengths = [length_at(config, first + more, step) for step in range(1, steps + 2)]
    assert lengths[0] == first and lengths[-1] == first + more
    assert lengths == sorted(lengths)
    assert len(set(lengths)) <= STRIDES + 1
    if kind == "step":
        assert all(length == first + more or length in {first << k for k in range(12)} for length in lengths)


def test_steps_double_at_equal_intervals() -> None:
    config = CurriculumConfig(kind="step", first_len=32, steps=400)
    assert [length_at(config, 128, step) for step in (1, 200, 201, 400, 401)] == [32, 32, 64, 64, 128]


def test_training_follows_the_lengths_and_says_so(desk: Desk) -> None:
    run = desk.train(*GROWING, "steps=8").run
    told = {event.step: event.fields["seq_len"] for event in run.events("data_stage")}
    lengths = [length_at(CurriculumConfig(kind="linear", first_len=8, steps=6), 32, step) for step in range(1, 9)]
    assert run.series("tokens").value.tolist() == [16 * sum(lengths[: step + 1]) for step in range(8)]
    assert told == {1: 8} | {step + 1: lengths[step] for step in range(1, 8) if lengths[step] != lengths[step - 1]}
    assert told[7] == 32


def test_resume_goes_on_at_the_length_of_its_step(desk: Desk) -> None:
    whole = desk.train(*GROWING, "steps=8")
    resumed = desk.resume(desk.train(*GROWING, "steps=4"), ["steps=8"])
    assert_same(whole.weights(), resumed.weights())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("curriculum.first_len=64", "curriculum.first_len = 64 is more than task.seq_len = 32"),
        ("task.kind=cnn", "curriculum.kind = linear needs sequences, and task.kind = cnn has none"),
    ],
)
def test_what_cannot_grow_is_refused(desk: Desk, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        desk.config(*GROWING, override)
