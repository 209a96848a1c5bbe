"""What a resumed training says of itself: bit for bit, going on, or not the same any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.charts.story import story_marks
from monitor.diagnosis.engine import diagnose
from tests.trainer.conftest import Desk, Trained
from tests.trainer.test_checkpoint import ALONE, ROUGH, recommit
from trainer.checkpoint import _difference, restore
from trainer.fidelity import _moved
from trainer.loop import build_session

CHECKPOINT = 20
BASE = (*ROUGH, "schedule.kind=constant", "checkpoint.every_steps=20", "checkpoint.keep_last=9", "evaluation.batches=1")


@pytest.fixture
def first(desk: Desk) -> Trained:
    """Went on for five steps after its checkpoint."""
    return desk.train("steps=25", *BASE)


def check_of(resumed: Trained) -> dict[str, Any]:
    (event,) = resumed.run.events("fidelity")
    assert event.step == CHECKPOINT
    return dict(event.fields)


def test_steps_that_are_made_again_are_found_equal_bit_for_bit(
    desk: Desk, first: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    told = check_of(desk.resume(first, ["name=renamed"], at_step=CHECKPOINT))
    assert told["verdict"] == "bitwise"
    assert set(told["parts"].values()) == {"exact"}
    assert set(told["parts"]) == {
        "weights", "optimizer", "loss scaler", "data position", "clipping", "early stopping", "random states",
        "arithmetic",
    }  # fmt: skip
    for signal in ("train_loss", "grad_norm_preclip"):
        assert (told["compared"][signal]["repeated"], told["compared"][signal]["steps"]) == (5, [21, 25])
    line = (
        "resumed after step 20, bitwise: loss and gradient norm of the 5 repeated steps from 21 equal the attempt "
        "before bit for bit; all state restored exactly"
    )
    assert line in capsys.readouterr().out


def test_a_training_that_only_goes_on_is_continuous(desk: Desk) -> None:
    resumed = desk.resume(desk.train("steps=20", *BASE), ["steps=32"])
    told = check_of(resumed)
    assert told["verdict"] == "continuous"
    loss = resumed.run.series("train_loss").value
    assert told["compared"]["train_loss"] == {
        "steps": [21, 30], "repeated": 0, "differs_at": None,
        "before": np.median(loss[10:20]), "after": np.median(loss[20:30]),
    }  # fmt: skip
    assert "changed on purpose: steps" in told["text"]
    assert [attempt.number for attempt in resumed.run.attempts] == [0, 1]


def lose_weights(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    spoilt = {name: 0.3 * torch.randn_like(weight) for name, weight in weights.items()}
    safetensors.torch.save_file(spoilt, folder / "model.safetensors")


def other_random_states(folder: Path) -> None:
    states = torch.load(folder / "rank-00000.pt", weights_only=True)
    states["torch"] = torch.Generator().manual_seed(1).get_state()
    torch.save(states, folder / "rank-00000.pt")


@pytest.mark.parametrize(
    ("spoil", "verdict", "differs_at"),
    [(lose_weights, "discontinuous", 21), (other_random_states, "continuous", 21)],
)
def test_what_was_lost_shows_in_the_first_steps(
    desk: Desk, first: Trained, spoil: Callable[[Path], None], verdict: str, differs_at: int
) -> None:
    folder = first.place.checkpoints / f"{CHECKPOINT:08d}"
    spoil(folder)
    recommit(folder)
    resumed = desk.resume(first, at_step=CHECKPOINT)
    told = check_of(resumed)
    assert (told["verdict"], told["compared"]["train_loss"]["differs_at"]) == (verdict, differs_at)
    report = diagnose(resumed.run)
    assert report.resumes == ({"step": CHECKPOINT, "verdict": verdict, "text": told["text"]},)
    assert f"resumed after step {CHECKPOINT}, {verdict}" in report.to_text()
    (mark,) = (mark for mark in story_marks(resumed.run, []) if mark.kind == "fidelity")
    assert mark.severity == ("warning" if verdict == "discontinuous" else "info")
    assert mark.text == f"after the resume: {verdict}, {told['text']}"


def test_a_change_on_purpose_is_named_and_shows_after_its_first_update(desk: Desk, first: Trained) -> None:
    told = check_of(desk.resume(first, ["optimizer.lr=1e-4", "checkpoint.keep_last=3"], at_step=CHECKPOINT))
    assert told["changed"] == ["optimizer.lr"]
    assert told["compared"]["train_loss"]["differs_at"] == 22  # the loss of a step precedes its update
    assert told["verdict"] != "bitwise"


def test_what_decides_rounding_is_named_where_it_is_another(desk: Desk, first: Trained) -> None:
    told = check_of(desk.resume(first, ["threads=2"], at_step=CHECKPOINT))
    torch.set_num_threads(1)
    assert told["parts"]["arithmetic"] == "CPU threads 1 then, 2 now"
    assert told["parts"]["weights"] == "exact"
    assert "not restored exactly: arithmetic (CPU threads 1 then, 2 now)" in told["text"]


def test_another_number_of_processes_is_not_bitwise_and_is_said(desk: Desk, first: Trained) -> None:
    path = first.place.checkpoints / f"{CHECKPOINT:08d}"
    state = build_session(first.config, ALONE).state
    for rank, random_states, arithmetic in [
        (0, None, "processes 1 then, 2 now"),
        (1, "the checkpoint has none of this process", "the checkpoint has none of this process"),
    ]:
        parts = {part.name: part.problem for part in restore(path, state, replace(ALONE, rank=rank, world_size=2))}
        assert parts["weights"] is parts["optimizer"] is parts["data position"] is None
        assert str(parts["random states"]).startswith(str(random_states))
        assert str(parts["arithmetic"]).startswith(arithmetic)


def test_a_training_from_the_start_says_nothing_of_a_resume(first: Trained) -> None:
    assert not first.run.events("fidelity")
    assert diagnose(first.run).resumes == ()


def test_too_few_rows_are_no_verdict(desk: Desk) -> None:
    told = check_of(desk.resume(desk.train("steps=20", *BASE), ["steps=22"]))
    assert told["verdict"] == "cannot tell"


@pytest.mark.parametrize(
    ("then", "now", "where"),
    [
        ({"a": [torch.tensor([1.0, float("nan")])]}, {"a": [torch.tensor([1.0, float("nan")])]}, None),
        ({"a": [torch.tensor([0.0])]}, {"a": [torch.tensor([-0.0])]}, " at a.0"),
        ({"a": torch.tensor([1.0])}, {"a": torch.tensor([1.0], dtype=torch.float64)}, " at a"),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, " at a.b.c"),
        ({"a": 1}, {"a": 1, "b": 2}, " in the names ['b']"),
        ((1, 2), (1,), " in length"),
    ],
)
def test_a_difference_is_found_at_its_place(then: Any, now: Any, where: str | None) -> None:
    assert _difference(then, now) == where


@given(st.integers(0, 2**32 - 1), st.floats(1.0, 8.0), st.floats(1e-3, 0.1))
def test_rows_of_one_level_have_not_moved_and_twice_the_level_has(seed: int, level: float, scatter: float) -> None:
    rows = level * (1 + scatter * np.random.default_rng(seed).standard_normal(60))
    before, after = rows[:50], rows[50:]
    assert not _moved(before, before[-10:], after, 0.5)
    assert _moved(before, before[-10:], 2 * after, 0.5)
    assert _moved(before, before[-10:], 2 * after, 0.03)
    assert not _moved(before, before[-10:], after / 2, 0.03)  # a loss may fall
