"""Deliberate mistakes: each does what it says at the steps it says, and nothing before."""

from __future__ import annotations

import itertools
import math
import re
import time
import typing
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

import trainer.faults
from monitor.errors import ConfigError
from tests.trainer.conftest import Desk, Trained
from tests.trainer.test_loop import assert_no_word_of_faults
from trainer.config import FaultConfig, FaultKind
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


KINDS: dict[str, tuple[str, int | None]] = {
    "lr_factor": ("factor=30", ONSET + 1),  # the loss of a step precedes its update
    "no_clipping": ("steps=none", ONSET + 1),
    "skip_zero_grad": ("", ONSET + 2),
    "unreduced": ("", None),  # alone there is nothing to reduce
    "eval_mode": ("", ONSET),
    "grad_factor": ("factor=0", ONSET + 1),
    "nan_gradient": ("", ONSET + 1),
    "fp16_overflow": ("factor=1e12", ONSET + 1),
    "heavy_tails": ("", None),  # clipping undoes a factor on the whole gradient
    "weight_scale": ("factor=1.1", ONSET + 1),
    "weight_shift": ("offset=-1", ONSET + 1),
    "qk_scale": ("factor=100", ONSET + 1),
    "replaced_parameter": ("layer=head", ONSET + 1),
    "weight_decay_factor": ("factor=-1", ONSET + 1),
    "second_moment_factor": ("factor=1e-4", ONSET + 1),
    "lost_optimizer_state": ("", ONSET + 1),
    "repeated_token": ("", ONSET),
    "random_bytes": ("", ONSET),
    "shuffled_labels": ("", ONSET),
    "repeated_batch": ("steps=3", ONSET + 1),
    "nan_activation": ("", ONSET),
    "activation_factor": ("factor=3", ONSET),
    "double_softmax": ("", ONSET),
    "tensor_leak": ("", None),
    "slow_data": ("seconds=0.2", None),
    "slow_layer": ("seconds=0.2", None),
}
"""How each is asked for, and the step whose loss it changes first; None where it changes none."""
NORM_FIRST = {
    **dict.fromkeys(("grad_factor", "nan_gradient", "fp16_overflow", "heavy_tails", "replaced_parameter"), ONSET),
    "skip_zero_grad": ONSET + 1,
}
"""Those that the gradient norm shows a step before the loss, or alone."""
WHOLE = ("steps=10", "model.dropout=0.1", "grad_accum_steps=2", "evaluation.batches=1", "clip.max_norm=0.1")


def test_every_kind_has_its_case_and_its_line_in_the_table() -> None:
    described = {line.split()[0] for line in (trainer.faults.__doc__ or "").splitlines() if re.match(r"\w+ {2,}", line)}
    assert set(typing.get_args(FaultKind)) == described - {"kind"} == {*KINDS, "input_scale"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Trained:
    return Desk(tmp_path_factory.mktemp("whole"), texts).train(*WHOLE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_changes_no_bit_before_its_onset_and_is_in_no_file(desk: Desk, whole: Trained, kind: str) -> None:
    more, changes = KINDS[kind]
    broken = desk.train(*WHOLE, f"fault.kind={kind}", f"fault.step={ONSET}", *([f"fault.{more}"] if more else []))
    assert first_difference(whole, broken, "train_loss") == changes
    assert first_difference(whole, broken, "grad_norm_preclip") == NORM_FIRST.get(kind, changes)
    assert_no_word_of_faults(broken.place.run_dir, kind)


def test_an_attempt_with_a_fault_is_an_attempt_like_any_other(desk: Desk, whole: Trained) -> None:
    resumed = desk.resume(desk.train(*WHOLE), ["steps=12", "fault.kind=lost_optimizer_state", "fault.step=11"])
    assert resumed.run.attempts[1].overrides == {"steps": 12}
    assert_no_word_of_faults(resumed.place.run_dir, "lost_optimizer_state")


def faults_of(desk: Desk, *configs: FaultConfig, rank: int = 0) -> tuple[Faults, nn.Module]:
    model = build_task(desk.config()).build_model()
    return Faults(configs, model, rank), model


def images() -> Batch:
    return Batch(torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3]))


@pytest.mark.parametrize("kind", ["repeated_token", "random_bytes", "shuffled_labels", "input_scale", "repeated_batch"])
def test_faults_of_batches_are_for_images_too(desk: Desk, kind: str) -> None:
    faults, _ = faults_of(desk, FaultConfig.model_validate({"kind": kind, "step": 2, "factor": 1000.0, "offset": 1.0}))
    before, batch = images(), images()
    faults.begin(1)
    assert faults.batch(batch) is batch
    faults.begin(2)
    spoilt = faults.batch(batch)
    assert spoilt.inputs.shape == before.inputs.shape and spoilt.targets.shape == before.targets.shape
    assert torch.equal(batch.inputs, before.inputs)  # not in place: the data may be held in memory
    if kind == "input_scale":
        assert torch.equal(spoilt.inputs, before.inputs * 1000 + 1)
    elif kind == "shuffled_labels":
        assert sorted(spoilt.targets.tolist()) == [0, 1, 2, 3]
    elif kind == "random_bytes":
        assert spoilt.inputs.std() == pytest.approx(float(before.inputs.std()), rel=0.3)
    elif kind == "repeated_token":
        assert spoilt.inputs.std() == 0


def test_a_delay_may_be_a_multiple_of_the_usual_step(desk: Desk) -> None:
    faults, _ = faults_of(desk, FaultConfig.model_validate({"kind": "slow_data", "step": 6, "factor": 11.0}))
    begun = []
    for step in range(1, 7):
        begun.append(time.perf_counter())
        faults.begin(step)
        if step < 6:
            faults.batch(images())
            time.sleep(0.01)
    least = min(after - before for before, after in itertools.pairwise(begun))
    before = time.perf_counter()
    faults.batch(images())
    assert time.perf_counter() - before > 9 * least


def test_images_that_are_not_normalised_show_in_the_loss_of_their_own_step(desk: Desk) -> None:
    digits = ("task.kind=cnn", "model.d_model=16", f"steps={ONSET}", "evaluation.batches=1")
    healthy = desk.train(*digits)
    broken = desk.train(*digits, "fault.kind=input_scale", f"fault.step={ONSET}", "fault.factor=1000")
    assert first_difference(healthy, broken, "train_loss") == ONSET
    assert broken.losses()[-1] > 10 * healthy.losses()[-1]
    assert_no_word_of_faults(broken.place.run_dir, "input_scale")


def test_scaling_inputs_that_are_bytes_is_refused(desk: Desk) -> None:
    with pytest.raises(ConfigError, match=r"input_scale scales real-valued inputs, and this task's are torch\.int64"):
        faulty(desk, "input_scale", "factor=1000")


def test_the_same_batches_come_again(desk: Desk) -> None:
    faults, _ = faults_of(desk, FaultConfig(kind="repeated_batch", step=2, steps=2))
    handed = []
    for step in range(1, 5):
        faults.begin(step)
        mine = [Batch(torch.full((1, 2), 10 * step + micro), torch.zeros(1, 2)) for micro in range(2)]
        handed.append([int(faults.batch(batch).inputs[0, 0]) for batch in mine])
    assert handed == [[10, 11], [20, 21], [20, 21], [40, 41]]


def test_a_fault_of_one_rank_leaves_the_others_healthy(desk: Desk) -> None:
    config = FaultConfig(kind="lr_factor", step=1, factor=3.0, rank=1)
    rates = []
    for rank in (0, 1):
        faults, _ = faults_of(desk, config, rank=rank)
        faults.begin(1)
        rates.append(faults.lr(1.0))
    assert rates == [1.0, 3.0]


def test_only_query_and_key_rows_are_scaled_so_that_logits_grow_and_values_do_not(desk: Desk) -> None:
    faults, model = faults_of(desk, FaultConfig(kind="qk_scale", step=1, factor=2.0, layer="blocks.1"))
    x = torch.randn(1, 5, 32)
    attention = model.get_submodule("blocks.1.attn")
    before = model.get_submodule("blocks.1.attn.qkv")(x).view(1, 5, 2, 3, 16)
    assert attention.n_head == 2
    faults.begin(1)
    faults.after_update(SGD(model.parameters(), lr=0.0))
    after = model.get_submodule("blocks.1.attn.qkv")(x).view(1, 5, 2, 3, 16)
    assert torch.equal(after[..., :2, :], 2 * before[..., :2, :])
    assert torch.equal(after[..., 2, :], before[..., 2, :])


def test_weight_decay_is_as_before_once_the_update_is_done(desk: Desk) -> None:
    faults, model = faults_of(desk, FaultConfig(kind="weight_decay_factor", step=1, factor=-100.0))
    optimizer = SGD(model.parameters(), lr=0.0, weight_decay=0.1)
    faults.begin(1)
    faults.before_update(optimizer)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(-10.0)
    faults.after_update(optimizer)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_a_replaced_parameter_is_never_updated_again(desk: Desk) -> None:
    trained = faulty(desk, "replaced_parameter", "layer=head")
    at_onset = desk.train(f"steps={ONSET - 1}", "schedule.kind=constant", *BASE[1:])
    again = desk.train(
        *BASE, "schedule.kind=constant", "fault.kind=replaced_parameter", f"fault.step={ONSET}", "fault.layer=head"
    )
    assert torch.equal(again.weights()["head.weight"], at_onset.weights()["head.weight"])
    assert not torch.equal(again.weights()["token.weight"], at_onset.weights()["token.weight"])
    assert trained.outcome.word == "finished"


def test_leaked_outputs_are_held_and_pile_up(desk: Desk) -> None:
    faults, model = faults_of(desk, FaultConfig(kind="tensor_leak", step=2, steps=2, layer="head"))
    tokens = torch.zeros(1, 8, dtype=torch.long)
    outputs = []
    for step in range(1, 5):
        faults.begin(step)
        outputs.append(weakref.ref(model(tokens)))
    assert [output() is not None for output in outputs] == [False, True, True, False]


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


@pytest.mark.parametrize("kind", ["grad_factor", "nan_activation", "weight_scale", "qk_scale"])
def test_unknown_layer_is_refused_with_the_names(desk: Desk, kind: str) -> None:
    with pytest.raises(
        ConfigError, match=r"fault.layer = 'nowhere': no \w+ has that in its name. Names: (token|blocks)"
    ):
        faulty(desk, kind, "layer=nowhere")
