"""When training ends before its last step, and with which weights."""

from __future__ import annotations

import math

import pytest
import torch

from tests.trainer.conftest import Desk, Trained, assert_same
from trainer.config import EarlyStoppingConfig
from trainer.early_stopping import EarlyStopping
from trainer.loop import attach, build_session, run
from trainer.on_critical import Critical
from trainer.parallel import Parallel
from trainer.place import new_run
from trainer.progress import Silent
from trainer.stop import StopFlag


def ends_after(losses: list[float], patience: int | None, min_delta: float = 0.0) -> int | None:
    """The number of the evaluation that ends training."""
    early = EarlyStopping(EarlyStoppingConfig(patience=patience, min_delta=min_delta))
    for number, loss in enumerate(losses, start=1):
        if early.evaluated(loss):
            return number
    return None


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "end"),
    [
        ([5, 4, 3, 2, 1], 1, 0.0, None),
        ([5, 5], 1, 0.0, 2),
        ([5, 4, 4.1, 4.2, 3.9, 4.0], 3, 0.0, None),
        ([5, 4, 4.1, 4.2, 4.0, 3.9], 3, 0.0, 5),
        ([5, 4.9, 4.8, 4.7], 3, 0.5, 4),  # falls, but by less than min_delta since the last progress
        ([5, 4.9, 4.8, 4.4, 4.3], 3, 0.5, None),  # small falls that add up to one are progress
        ([5, math.nan, math.nan], 2, 0.0, 3),
        ([math.nan, math.nan], 2, 0.0, 2),
        ([5, 6, 7, 8, 9], None, 0.0, None),
    ],
)
def test_training_ends_when_patience_is_over(
    losses: list[float], patience: int | None, min_delta: float, end: int | None
) -> None:
    assert ends_after(losses, patience, min_delta) == end


def test_reason_names_the_evaluations_and_the_fall_that_counts() -> None:
    early = EarlyStopping(EarlyStoppingConfig(patience=2, min_delta=0.01))
    assert [early.evaluated(loss) for loss in (3.0, 3.0, 2.995)] == [
        None,
        None,
        "early stopping: the held-out loss has not fallen by more than 0.01 in 2 evaluations",
    ]


def test_counting_goes_on_after_a_resume() -> None:
    config = EarlyStoppingConfig(patience=3)
    before, after = EarlyStopping(config), EarlyStopping(config)
    for loss in (2.0, 2.5, 2.5):
        assert before.evaluated(loss) is None
    after.load_state_dict(before.state_dict())
    assert (after.evaluated(2.1) or "goes on") == before.evaluated(2.1)


@pytest.mark.parametrize("restore_best", [True, False])
def test_training_that_gets_worse_ends_with_its_best_weights(desk: Desk, restore_best: bool) -> None:
    """A rate far too high after a good start: the held-out loss rises again."""
    config = desk.config(
        "steps=400", "task.kind=charmlp", "evaluation.every_steps=5", "checkpoint.every_steps=none",
        "early_stopping.patience=3", f"early_stopping.restore_best={str(restore_best).lower()}", "optimizer.lr=5e-3",
        "fault.kind=lr_factor", "fault.step=31", "fault.steps=none", "fault.factor=300", "checkpoint.keep_last=1",
    )  # fmt: skip
    place = new_run(config, desk.runs)
    session = build_session(config, Parallel(rank=0, world_size=1, device=torch.device("cpu")))
    with attach(session, place, critical := Critical(config), Silent()) as mon:
        outcome = run(session, place, [], mon, Silent(), StopFlag(), critical)
        mon.close(outcome.word, outcome.reason)
    trained = Trained(config, place, outcome)
    val_loss = trained.run.series("val_loss")
    best = int(val_loss.step[val_loss.value.argmin()])
    assert (outcome.word, outcome.step) == ("finished", best + 3 * 5)
    assert outcome.reason == (
        "early stopping: the held-out loss has not fallen in 3 evaluations; "
        f"the lowest was {min(val_loss.value):.4f} after step {best}"
    )
    (event,) = trained.run.events("early_stop")
    assert (event.step, event.fields["text"], event.fields["best_step"]) == (outcome.step, outcome.reason, best)
    assert sorted(path.name for path in place.checkpoints.iterdir()) == [f"{best:08d}", f"{outcome.step:08d}"]
    assert_same(session.state.model.state_dict(), trained.weights(best if restore_best else outcome.step))
    resumed = desk.resume(trained, [f"steps={outcome.step + 2}"])
    assert resumed.run.attempts[1].resume_step == outcome.step  # from the last weights, not from the best
