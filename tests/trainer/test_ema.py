"""The running mean of the weights."""

from __future__ import annotations

import torch
from torch import nn

from tests.trainer.conftest import Desk
from trainer.config import EmaConfig
from trainer.ema import build_ema
from trainer.loop import build_session, held_out, training_step
from trainer.parallel import Parallel
from trainer.progress import Silent
from trainer.unmonitored import Unmonitored


def test_off_keeps_no_copy() -> None:
    assert build_ema(nn.Linear(2, 2), EmaConfig()) is None


def test_mean_is_the_geometric_sum_over_the_weights_of_every_step(desk: Desk) -> None:
    config = desk.config("task.kind=charmlp", "ema.decay=0.8", "steps=9", "optimizer.lr=0.01")
    session = build_session(config, Parallel(rank=0, world_size=1, device=torch.device("cpu")))
    state = session.state
    assert state.ema is not None
    history = []
    for _ in range(9):
        training_step(session, Unmonitored(state.model), Silent())
        history.append(state.model.get_parameter("head.weight").detach().double().clone())
    expected = 0.8**8 * history[0] + sum(0.2 * 0.8 ** (8 - i) * history[i] for i in range(1, 9))
    assert torch.allclose(state.ema.module.get_parameter("head.weight").double(), expected, atol=1e-6)
    assert held_out(session, state.ema.module) != held_out(session, state.model)
    assert state.ema.n_averaged.device.type == "cpu"


def test_mean_is_evaluated_beside_the_weights_and_changes_nothing_in_them(desk: Desk) -> None:
    common = ("task.kind=charmlp", "steps=20", "evaluation.every_steps=10", "optimizer.lr=5e-3")
    without, beside = desk.train(*common), desk.train(*common, "ema.decay=0.99")
    assert beside.losses() == without.losses()
    raw, mean = beside.run.series("val_loss"), beside.run.series("val_loss_ema")
    assert mean.step.tolist() == raw.step.tolist() == [10, 20]
    assert raw.value.tolist() == without.run.series("val_loss").value.tolist()
    assert mean.value[-1] > raw.value[-1]  # after a few steps of fast learning the mean lags behind
