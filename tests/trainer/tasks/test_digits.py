"""Handwritten digits: the data and their augmentation, the models, and a task without its library."""

from __future__ import annotations

import sys

import pytest
import torch

from monitor.errors import ConfigError
from tests.trainer.conftest import Desk, assert_same
from trainer.config import ModelConfig, TaskConfig, load_config
from trainer.tasks import Batch, build_task
from trainer.tasks.digits import SIDE, VIEWS, DigitsCNN, DigitsTask, augmented, load_digits

DIGITS = ("task.val_fraction=0.2", "batch_size=32", "optimizer.lr=3e-3", "schedule.kind=constant")


def digits(*overrides: str) -> DigitsTask:
    task = build_task(load_config(None, ["task.kind=cnn", "task.val_fraction=0.2", *overrides]))
    assert isinstance(task, DigitsTask)
    return task


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_both_models_learn_to_read(desk: Desk, kind: str) -> None:
    trained = desk.train(*DIGITS, f"task.kind={kind}", "steps=60", "model.batch_norm=true", "evaluation.every_steps=30")
    run = trained.run
    assert run.series("train_loss").value[-5:].mean() < 0.75 * run.series("train_loss").value[0]
    accuracy = run.series("val_accuracy")
    assert accuracy.step.tolist() == [30, 60]
    assert 0.5 < accuracy.value[-1] <= 1.0
    assert run.series("tokens").value.tolist() == [32 * step for step in range(1, 61)]  # images
    assert run.problems == ()


def test_resume_sees_the_same_shifts_and_noise(desk: Desk) -> None:
    common = (*DIGITS, "task.kind=cnn", "task.shift_px=1", "task.noise_std=0.2", "model.batch_norm=true")
    whole = desk.train(*common, "steps=8")
    resumed = desk.resume(desk.train(*common, "steps=5"), ["steps=8"])
    assert_same(whole.weights(), resumed.weights())  # the running statistics of BatchNorm too


def test_every_index_has_its_own_fixed_version() -> None:
    task, again, other = (digits("task.shift_px=2", "task.noise_std=0.1", f"seed={seed}") for seed in (1, 1, 2))
    assert task.train_size == VIEWS * (1797 - task.val_size)
    indices = torch.tensor([5, 1000, 5])
    batch = task.train_batch(indices)
    assert torch.equal(batch.inputs, again.train_batch(indices).inputs)
    assert torch.equal(batch.inputs[0], batch.inputs[2])
    assert not torch.equal(batch.inputs, other.train_batch(indices).inputs)


def test_shifts_move_whole_images_and_bring_in_empty_margin() -> None:
    image = torch.zeros(1, 1, SIDE, SIDE)
    image[0, 0, 3, 4] = 1.0
    moved = augmented(Batch(image, torch.tensor([7])), TaskConfig(kind="cnn", shift_px=2), seed=0)
    assert moved.targets.tolist() == [7] * VIEWS
    places = {tuple(torch.nonzero(one[0])[0].tolist()) for one in moved.inputs}
    assert moved.inputs.sum(dim=(1, 2, 3)).tolist() == [1.0] * VIEWS
    assert len(places) > 4
    assert all(abs(row - 3) <= 2 and abs(column - 4) <= 2 for row, column in places)


def test_no_held_out_image_is_trained_on_whatever_the_seed() -> None:
    images, _ = load_digits()
    task, other = digits("seed=1"), digits("seed=2")
    rows = torch.arange(task.val_size)
    assert torch.equal(task.val_batch(rows).inputs, other.val_batch(rows).inputs)
    held_out = {image.numpy().tobytes() for image in task.val_batch(rows).inputs}
    train = [image.numpy().tobytes() for image in task.train_batch(torch.arange(task.train_size)).inputs]
    assert sorted([*held_out, *train]) == sorted(image.numpy().tobytes() for image in images)


def test_evaluation_of_the_cnn_uses_running_statistics() -> None:
    torch.manual_seed(0)
    model = DigitsCNN(ModelConfig(n_layer=2, d_model=8, batch_norm=True)).eval()
    images = torch.rand(6, 1, SIDE, SIDE)
    assert torch.allclose(model(images)[:1], model(images[:1]), atol=1e-6)
    model.train()
    assert not torch.allclose(model(images)[:1], model(images[:1]), atol=1e-3)


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        ConfigError, match=r"it is not installed. Install it with: pip install 'gradiometer\[digits\]'$"
    ):
        digits()
