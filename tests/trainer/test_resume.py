"""Everything that a training can switch on goes on after a resume as if it had not been stopped, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainer.conftest import Desk, Trained, assert_same

CLIP = ("clip.kind=adaptive", "clip.warmup_steps=8", "clip.growth=1.0")


@pytest.mark.parametrize(
    "options",
    [
        (*CLIP, "gradient_noise.eta=1e-5", "ema.decay=0.9", "loss.label_smoothing=0.1", "loss.z_loss=1e-3"),
        (*CLIP, "precision.kind=fp16", "precision.growth_interval=7", "precision.init_scale=1e9", "ema.decay=0.9"),
        ("optimizer.kind=lars", "optimizer.lr=1.0", "clip.kind=value", "clip.max_value=0.01"),
        ("optimizer.kind=stable_adamw", "schedule.kind=cosine_restarts", "early_stopping.patience=9"),
        ("optimizer.kind=lamb", "schedule.kind=one_cycle", "compile.enabled=true", "compile.backend=aot_eager"),
    ],
    ids=["adaptive-noise-ema", "fp16-adaptive-ema", "lars-value", "stable-restarts", "lamb-compiled"],
)
def test_forty_steps_are_twenty_and_twenty_more(desk: Desk, options: tuple[str, ...]) -> None:
    straight = desk.train(
        "steps=40", "task.kind=charmlp", "model.dropout=0.2", "grad_accum_steps=2", "batch_size=8",
        "evaluation.every_steps=10", "checkpoint.every_steps=20", "checkpoint.keep_last=9", *options,
    )  # fmt: skip
    weights, training, measured = straight.weights(), training_state(straight), values(straight)
    torch.rand(100)  # whatever the process did in between
    resumed = desk.resume(straight, at_step=20)
    assert resumed.run.attempts[1].resume_step == 20
    assert resumed.run.events("resume")[-1].fields["remarks"] == []
    assert values(resumed) == measured
    assert_same(resumed.weights(), weights)
    assert same(training_state(resumed), training)


def values(trained: Trained) -> dict[str, bytes]:
    """As bytes, because a NaN of fp16 equals nothing else."""
    names = {"train_loss", "val_loss", "val_loss_ema", "grad_norm_postclip", "lr"} & set(trained.run.names)
    return {name: trained.run.series(name).value.tobytes() for name in names}


def training_state(trained: Trained) -> dict[str, Any]:
    """Optimizer, scaler, sampler, clipping, running mean: all that the last checkpoint holds beside the weights."""
    state: dict[str, Any] = torch.load(trained.place.checkpoints / "00000040" / "training.pt", weights_only=True)
    return state


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_what_is_new_at_a_resume_begins_there_and_is_named(desk: Desk) -> None:
    common = ("task.kind=charmlp", "batch_size=4")
    first = desk.train("steps=4", *common)
    second = desk.resume(first, ["steps=6", "ema.decay=0.5"])
    (event,) = second.run.events("resume")
    assert event.fields["remarks"] == ["ema not restored exactly: the checkpoint has none, so it begins here"]
