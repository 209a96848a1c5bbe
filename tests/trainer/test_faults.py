"""Deliberate mistakes: each does what it says at the steps it says, and nothing before."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monitor.errors import ConfigError
from tests.trainer.conftest import Desk, Trained
from trainer.config import FaultConfig
from trainer.faults import Faults
from trainer.tasks import Batch, build_task

STEPS = 12
ONSET = 8
BASE = (f"steps={STEPS}", "clip.max_norm=none", "optimizer.lr=1e-3")


@pytest.fixture
def healthy(desk: Desk) -> Trained:
    return desk.train(*BASE)


def faulty(desk: Desk, kind: str, *more: str) -> Trained:
    return desk.train(*BASE, f"fault.kind={kind}", f"fault.step={ONSET}", *(f"fault.{one}" for one in more))


def first_difference(one: Trained, other: Trained, name: str) -> int | None:
    a, b = one.run.series(name), other.run.series(name)
    differs = ~((a.value == b.value) | (np.isnan(a.value) & np.isnan(b.value)))
    return int(a.step[differs][0]) if differs.any() else None


def test_lr_factor_for_its_steps_only(desk: Desk, healthy: Trained) -> None:
    broken = faulty(desk, "lr_factor", "factor=30", "steps=2")
    ratio = broken.run.series("lr").value / healthy.run.series("lr").value
    assert ratio == pytest.approx([1.0] * 7 + [30.0] * 2 + [1.0] * 3)
    assert first_difference(healthy, broken, "train_loss") == ONSET + 1  # the loss of a step precedes its update


def test_gradient_factor_in_one_layer(desk: Desk, healthy: Trained) -> None:
    layer = "blocks.1.mlp.up.weight"
    broken = faulty(desk, "grad_factor", "factor=1000", f"layer={layer}")
    before, after = healthy.run.layers("grad_norm_preclip"), broken.run.layers("grad_norm_preclip")
    ratio = after.value[ONSET - 1] / before.value[ONSET - 1]
    hit = after.names.index(layer)
    assert ratio[hit] == pytest.approx(1000, rel=1e-4)
    assert np.delete(ratio, hit) == pytest.approx(np.ones(len(ratio) - 1), rel=1e-5)
    assert first_difference(healthy, broken, "grad_norm_preclip") == ONSET
    assert first_difference(healthy, broken, "train_loss") == ONSET + 1


@pytest.mark.parametrize("kind", ["repeated_token", "random_bytes", "shuffled_labels"])
def test_bad_batch_shows_in_the_loss_of_its_own_step(desk: Desk, healthy: Trained, kind: str) -> None:
    broken = faulty(desk, kind)
    assert first_difference(healthy, broken, "train_loss") == ONSET
    assert first_difference(healthy, broken, "batch_id") is None
    loss = broken.losses()
    assert loss[ONSET - 1] > max(loss[ONSET - 2], loss[ONSET])


def test_nan_in_one_activation_makes_the_loss_nan_from_its_step(desk: Desk) -> None:
    loss = faulty(desk, "nan_activation", "layer=blocks.0.mlp").losses()
    assert [math.isnan(value) for value in loss] == [False] * (ONSET - 1) + [True] * (STEPS - ONSET + 1)


def test_gradients_add_up_when_not_reset(desk: Desk, healthy: Trained) -> None:
    broken = faulty(desk, "skip_zero_grad", "steps=none")
    ratio = broken.run.series("grad_norm_preclip").value / healthy.run.series("grad_norm_preclip").value
    assert ratio[:ONSET] == pytest.approx(np.ones(ONSET))
    assert ratio[ONSET] > 1.2
    assert ratio[-1] > 2


def test_weights_grow_by_the_factor_per_step(desk: Desk, healthy: Trained) -> None:
    broken = desk.train(
        f"steps={ONSET}", *BASE[1:], "schedule.kind=constant", "fault.kind=weight_scale", f"fault.step={ONSET}",
        "fault.factor=1.5", "fault.layer=blocks.0.attn.qkv",
    )  # fmt: skip
    whole = desk.train(f"steps={ONSET}", *BASE[1:], "schedule.kind=constant")
    for name, weight in broken.weights().items():
        factor = 1.5 if "blocks.0.attn.qkv" in name else 1.0
        assert torch.equal(weight, whole.weights()[name] * factor), name


def test_faults_compose_and_sleep_outside_their_window(desk: Desk) -> None:
    config = desk.config()
    task = build_task(config)
    faults = Faults(
        [
            FaultConfig(kind="lr_factor", step=3, factor=10.0),
            FaultConfig(kind="lr_factor", step=3, steps=None, factor=2.0),
        ],
        task.build_model(),
    )
    rates = []
    for step in range(1, 6):
        faults.begin(step)
        rates.append(faults.lr(1.0))
    assert rates == [1.0, 1.0, 20.0, 2.0, 2.0]


def test_without_faults_a_batch_is_handed_through_untouched(desk: Desk) -> None:
    faults = Faults([], build_task(desk.config()).build_model())
    faults.begin(1)
    batch = Batch(torch.zeros(1, 2).long(), torch.zeros(1, 2).long())
    assert faults.batch(batch) is batch
    assert not faults.keep_gradients


@pytest.mark.parametrize("kind", ["grad_factor", "nan_activation", "weight_scale"])
def test_unknown_layer_is_refused_with_the_names(desk: Desk, kind: str) -> None:
    with pytest.raises(ConfigError, match=r"fault.layer = 'nowhere': no \w+ has that in its name. Names: token"):
        faulty(desk, kind, "layer=nowhere")
