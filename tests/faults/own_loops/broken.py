"""Loops that break, most of them at step 300: what would be right to say of each stands beside it."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import monitor
from tests.faults.cases import ids
from tests.faults.own_loops.parts import (
    CLASSES,
    PIXELS,
    Attach,
    Loop,
    batch,
    classifier,
    descend,
    fit,
    perceptron,
    training_set,
    validation_loss,
)

ONSET = 300
STEPS = 500
BY_HEART_STEPS = 1500
"""The data are wrong from the first step on; when that begins to cost is not known beforehand, so any step is right."""


def rate_times_sixty(attach: Attach) -> None:
    """A schedule that multiplies where it should divide."""
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss_of(step: int) -> Tensor:
        if step == ONSET:
            optimizer.param_groups[0]["lr"] *= 60
        images, labels = batch()
        return F.cross_entropy(model(images), labels)

    fit(attach, model, optimizer, STEPS, loss_of)


def rate_of_nothing(attach: Attach) -> None:
    """A schedule that ends long before the training does."""
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def loss_of(step: int) -> Tensor:
        if step == ONSET:
            optimizer.param_groups[0]["lr"] = 0.0
        images, labels = batch()
        return F.cross_entropy(model(images), labels)

    fit(attach, model, optimizer, STEPS, loss_of)


def logarithm_of_less_than_zero(attach: Attach) -> None:
    """A loss written with ``log`` and without a floor, in one batch alone."""
    model = classifier()

    def loss_of(step: int) -> Tensor:
        images, labels = batch()
        likelihood = model(images).softmax(1).gather(1, labels[:, None])
        return -torch.log(likelihood - float(step == ONSET)).mean()

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=1e-3), STEPS, loss_of)


def labels_of_other_images(attach: Attach) -> None:
    """Images are shuffled without their labels."""
    model = classifier()

    def loss_of(step: int) -> Tensor:
        images, labels = batch()
        return F.cross_entropy(model(images), labels if step < ONSET else labels[torch.randperm(len(labels))])

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=1e-3), STEPS, loss_of)


def pixels_up_to_255(attach: Attach) -> None:
    """A second part of the data, of which no one has divided the pixels."""
    model = classifier()

    def loss_of(step: int) -> Tensor:
        images, labels = batch()
        return F.cross_entropy(model(images if step < ONSET else 255 * images), labels)

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=1e-3), STEPS, loss_of)


def gradients_kept(attach: Attach) -> None:
    """``zero_grad`` is called no more."""
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with attach(model, optimizer) as mon:
        for step in range(1, STEPS + 1):
            images, labels = batch()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            if step < ONSET:
                optimizer.zero_grad()
            mon.step(loss=loss, batch_id=step)


def first_layer_detached(attach: Attach) -> None:
    """A ``detach`` cuts off all that comes before the second layer."""
    model = classifier()

    def loss_of(step: int) -> Tensor:
        images, labels = batch()
        hidden = model[:2](images)
        return F.cross_entropy(model[2:](hidden if step < ONSET else hidden.detach()), labels)

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=1e-3), STEPS, loss_of)


def weights_times_thirty(attach: Attach) -> None:
    """Something that is no optimizer writes over a layer."""
    model = classifier()

    def loss_of(step: int) -> Tensor:
        if step == ONSET:
            with torch.no_grad():
                model.get_parameter("2.weight").mul_(30)
        images, labels = batch()
        return F.cross_entropy(model(images), labels)

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=1e-3), STEPS, loss_of)


def data_that_comes_late(attach: Attach) -> None:
    """Each batch is waited for ten times as long as it is trained on."""
    model = classifier()

    def loss_of(step: int) -> Tensor:
        if step >= ONSET:
            time.sleep(0.01)
        images, labels = batch(512)
        return F.cross_entropy(model(images), labels)

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=1e-3), 700, loss_of)


def learnt_by_heart(attach: Attach) -> None:
    """300 images, two labels in five of them wrong, a network that has room for all, and no one who stops it."""
    model = perceptron(PIXELS, 256, CLASSES)
    images, labels = training_set()
    wrong = torch.rand(len(labels)) < 0.4
    labels = torch.where(wrong, torch.randint(0, CLASSES, labels.shape), labels)

    def loss_of(step: int) -> Tensor:
        index = torch.randint(0, 300, (64,))
        return F.cross_entropy(model(images[index]), labels[index])

    def evaluate(mon: monitor.Monitor, step: int) -> None:
        if step % 50 == 0:
            mon.log({"val_loss": validation_loss(model)})

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=3e-3), BY_HEART_STEPS, loss_of, after=evaluate)


class UnbalancedExperts(nn.Module):
    """float32[B, 64] to float32[B, 10] by the best of eight experts; nothing makes the gate use all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(PIXELS, 8)
        self.experts = nn.ModuleList(perceptron(PIXELS, 32, CLASSES) for _ in range(8))

    def forward(self, images: Tensor) -> Tensor:
        share, best = self.gate(images).softmax(1).max(1)
        answer = images.new_zeros(len(images), CLASSES)
        for number, expert in enumerate(self.experts):
            (chosen,) = torch.where(best == number)
            if len(chosen):
                answer = answer.index_put((chosen,), expert(images[chosen]) * share[chosen, None])
        return answer


def experts_that_are_never_asked(attach: Attach) -> None:
    """A mixture of experts without a loss that balances them."""
    model = UnbalancedExperts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    with attach(model, optimizer) as mon:
        for step in range(1, STEPS + 1):
            images, labels = batch(16)
            loss = F.cross_entropy(model(images), labels)
            descend(optimizer, loss)
            mon.step(loss=loss, batch_id=step)


BROKEN: tuple[Loop, ...] = (
    Loop("rate-x60", rate_times_sixty, ONSET, ids("loss-spike gradient-explosion lr-schedule update-size")),
    Loop("rate-0", rate_of_nothing, ONSET, ids("lr-schedule")),
    Loop("nan", logarithm_of_less_than_zero, ONSET, ids("non-finite")),
    Loop("labels", labels_of_other_images, ONSET, ids("loss-spike")),
    Loop("pixels", pixels_up_to_255, ONSET, ids("odd-input")),
    Loop("no-zero-grad", gradients_kept, ONSET, ids("missing-zero-grad")),
    Loop("detached", first_layer_detached, ONSET, ids("vanishing-gradient")),
    Loop("weights-x30", weights_times_thirty, ONSET, ids("weights-overwritten")),
    Loop("late-data", data_that_comes_late, ONSET, ids("slower-steps input-bound")),
    Loop("by-heart", learnt_by_heart, onset=1, right=ids("overfitting"), window=BY_HEART_STEPS),
    Loop("unused-experts", experts_that_are_never_asked, onset=1, right=ids("unmoved-parameters")),
)
