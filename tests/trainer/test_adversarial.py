"""Adversarial examples: against the definition, and that nothing but the examples is changed."""

from __future__ import annotations

import pytest
import torch

from monitor.errors import ConfigError
from tests.trainer.conftest import Desk, assert_same
from trainer.adversarial import attacked
from trainer.config import AdversarialConfig
from trainer.tasks import Batch, Task, build_model, build_task

OFF = torch.amp.GradScaler("cpu", enabled=False)


def prepared(desk: Desk, *overrides: str) -> tuple[Task, torch.nn.Module, Batch]:
    config = desk.config("task.val_fraction=0.2", *overrides)
    torch.manual_seed(0)
    task = build_task(config)
    return task, build_model(task, config), task.train_batch(torch.arange(8))


def test_pixels_move_along_the_sign_of_their_gradient(desk: Desk) -> None:
    task, model, batch = prepared(desk, "task.kind=cnn", "model.batch_norm=true")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved = attacked(task, model, batch, AdversarialConfig(epsilon=0.1, share=0.5), OFF)
    images = batch.inputs.clone().requires_grad_()
    model.eval()
    task.loss(model, Batch(images, batch.targets)).backward()
    assert images.grad is not None
    expected = 0.1 * images.grad.sign()
    expected[4:] = 0
    assert moved.shift is not None
    assert torch.equal(moved.shift, expected)
    assert torch.equal(moved.inputs, batch.inputs)
    model.zero_grad()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["gpt", "charmlp", "mlp", "cnn"])
def test_loss_rises_and_neither_gradients_nor_random_numbers_are_touched(desk: Desk, kind: str) -> None:
    task, model, batch = prepared(desk, f"task.kind={kind}", "model.dropout=0.5")
    state = torch.get_rng_state()
    moved = attacked(task, model, batch, AdversarialConfig(epsilon=1e-3, share=1.0), OFF)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        assert task.loss(model, moved) > task.loss(model, batch)


@pytest.mark.parametrize("kind", ["gpt", "cnn"])
def test_training_learns_and_the_monitor_changes_no_bit(desk: Desk, kind: str) -> None:
    common = ("task.val_fraction=0.2", f"task.kind={kind}", "adversarial.epsilon=0.02", "steps=12", "optimizer.lr=5e-3")
    on = desk.train(*common, "grad_accum_steps=2")
    off = desk.train(*common, "grad_accum_steps=2", "monitor.enabled=false")
    assert_same(on.weights(), off.weights())
    assert on.losses()[-1] < on.losses()[0]
    run = on.run
    assert run.series("train_loss").step.tolist() == list(range(1, 13))
    assert [event for event in run.events("phase") if event.fields["name"] == "adversarial"] == []
    plain = desk.train(*common[:2], *common[3:], "grad_accum_steps=2")
    assert plain.losses()[1:] != on.losses()[1:]


def test_a_task_that_cannot_be_moved_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    task, model, batch = prepared(desk)
    monkeypatch.setattr(type(task), "no_shift", Task.no_shift)
    with pytest.raises(ConfigError, match=r"task gpt has no inputs that can be moved"):
        attacked(task, model, batch, AdversarialConfig(epsilon=0.1), OFF)
