"""The training step: weighting, precision, what the monitor changes (nothing), and what is recorded."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.conftest import Desk, Targetless, Uneven, assert_same
from trainer.loop import build_session, evaluate, training_step
from trainer.parallel import Parallel
from trainer.progress import Silent
from trainer.stop import StopFlag
from trainer.unmonitored import Unmonitored

ALONE = Parallel(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.mark.parametrize("kind", ["gpt", "charmlp"])
def test_training_learns_and_is_recorded(desk: Desk, kind: str) -> None:
    trained = desk.train("steps=60", f"task.kind={kind}", "optimizer.lr=5e-3", "evaluation.every_steps=20")
    losses = trained.losses()
    assert len(losses) == 60
    assert losses[0] == pytest.approx(math.log(256), abs=0.1)
    assert losses[-1] < 4.2
    run = trained.run
    val_loss = run.series("val_loss")
    assert val_loss.step.tolist() == [20, 40, 60]
    assert run.series("val_perplexity").value == pytest.approx([math.exp(loss) for loss in val_loss.value])
    assert run.series("val_bits_per_byte").value == pytest.approx(val_loss.value / math.log(2))
    assert run.series("val_accuracy").value[-1] > 0.1  # of a byte that is a blank
    assert [event.step for event in run.events("sample")] == [20, 40, 60]
    assert run.series("tokens").value[-1] == 60 * 16 * 32
    assert run.series("lr").value[:4] == pytest.approx([5e-3 * k / 4 for k in (1, 2, 3, 4)])
    assert run.problems == ()
    assert (run.state.word, run.last_step, run.planned_steps) == ("finished", 60, 60)
    assert [checkpoint.step for checkpoint in run.checkpoints() if checkpoint.complete] == [40, 60]
    # each evaluation found the loss lower than ever
    assert [event.fields["path"] for event in run.events("checkpoint")] == [
        f"checkpoints/{step:08d}" for step in (20, 40, 60)
    ]


def test_same_seed_gives_the_same_losses_and_another_seed_others(desk: Desk) -> None:
    first, again, other = (desk.train("steps=5", f"seed={seed}").losses() for seed in (7, 7, 8))
    assert first == again != other


def test_monitor_changes_no_bit(desk: Desk) -> None:
    common = ("steps=12", "model.dropout=0.1", "grad_accum_steps=2", "evaluation.every_steps=5", "clip.max_norm=0.5")
    on = desk.train(*common, "monitor.landscape_every=4", "monitor.landscape_share=1")
    assert len(on.run.series("sharpness"))
    off = desk.train(*common, "monitor.enabled=false")
    assert_same(on.weights(), off.weights())


def test_accumulating_four_of_eight_equals_thirty_two(desk: Desk) -> None:
    whole = desk.train("steps=10", "batch_size=32", "optimizer.kind=sgd", "optimizer.lr=0.1")
    parts = desk.train("steps=10", "batch_size=32", "optimizer.kind=sgd", "optimizer.lr=0.1", "grad_accum_steps=4")
    assert parts.losses() == pytest.approx(whole.losses(), rel=2e-6)
    for name, weight in whole.weights().items():
        assert torch.allclose(weight, parts.weights()[name], atol=1e-6), name


def test_tokens_weigh_the_same_however_they_fall_into_micro_batches(desk: Desk) -> None:
    """With unequal token counts a mean of means would be wrong: the step must be that of one batch."""
    weights = []
    for accumulated in ("grad_accum_steps=1", "grad_accum_steps=4"):
        session = build_session(
            desk.config("batch_size=32", "optimizer.kind=sgd", "optimizer.lr=1.0", "clip.max_norm=none", accumulated),
            ALONE,
        )
        session = dataclasses.replace(session, task=Uneven(session.task))
        for _ in range(3):
            training_step(session, Unmonitored(session.state.model), Silent())
        weights.append(session.state.model.state_dict())
        assert session.state.tokens < 3 * 32 * 32
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-6), name


def test_a_step_without_any_target_changes_nothing_but_the_count_of_steps(desk: Desk) -> None:
    session = build_session(desk.config("optimizer.kind=sgd", "optimizer.lr=1.0", "optimizer.weight_decay=0"), ALONE)
    session = dataclasses.replace(session, task=Targetless(session.task))
    before = {name: weight.clone() for name, weight in session.state.model.state_dict().items()}
    training_step(session, Unmonitored(session.state.model), Silent())
    assert (session.state.step, session.state.tokens) == (1, 0)
    assert_same(before, session.state.model.state_dict())


def test_evaluation_is_the_mean_over_held_out_tokens_without_dropout(desk: Desk) -> None:
    session = build_session(desk.config("model.dropout=0.5", "evaluation.batches=3", "batch_size=4"), ALONE)
    values = [evaluate(session, Unmonitored(session.state.model), Silent()) for _ in range(2)]
    indices = torch.linspace(0, session.task.val_size - 1, min(12, session.task.val_size)).long()
    batch = session.task.val_batch(indices)
    model = session.state.model
    assert model.training
    model.eval()
    with torch.no_grad():
        expected = float(session.task.loss(model, batch)) / batch.tokens
    assert values == [pytest.approx(expected, rel=1e-6)] * 2


def test_fp16_on_cpu_skips_overflowing_steps_and_goes_on(desk: Desk) -> None:
    trained = desk.train("steps=30", "precision.kind=fp16", "precision.init_scale=4294967296.0", "optimizer.lr=5e-3")
    scale = trained.run.series("loss_scale").value
    assert scale[0] == 2.0**32
    assert scale[-1] < 2.0**32
    assert trained.run.series("skipped_steps").value[-1] >= 1
    assert trained.losses()[-1] < trained.losses()[0] - 0.5


def test_bf16_learns_like_fp32_with_weights_in_fp32(desk: Desk) -> None:
    bf16 = desk.train("steps=20", "precision.kind=bf16", "optimizer.lr=5e-3")
    fp32 = desk.train("steps=20", "optimizer.lr=5e-3")
    assert bf16.losses() != fp32.losses()
    assert bf16.losses() == pytest.approx(fp32.losses(), rel=0.02)
    assert {weight.dtype for weight in bf16.weights().values()} == {torch.float32}


def test_clipping_off_leaves_the_gradient_alone(desk: Desk) -> None:
    trained = desk.train("steps=5", "clip.max_norm=none")
    run = trained.run
    assert run.series("grad_norm_postclip").value == pytest.approx(run.series("grad_norm_preclip").value)
    assert run.series("clip_coef").value == pytest.approx([1.0] * 5)


def test_landscape_is_sampled_on_schedule(desk: Desk) -> None:
    run = desk.train("steps=6", "monitor.landscape_every=3", "monitor.landscape_share=1").run
    for kind in ("perturbation", "curvature"):
        assert [sample.step for sample in run.landscape(kind)] == [3, 6]
    lr = run.series("lr").value[[2, 5]]
    assert run.series("sharpness_limit").value == pytest.approx(38 / lr)  # Adam, beta1 = 0.9
    assert np.isfinite(run.series("sharpness").value).all() and len(run.series("curvature_along_update")) == 2
    loss = run.series("train_loss").value
    assert run.series("landscape_loss_mean").value[0] == pytest.approx(loss[2], abs=0.5)


def test_stop_before_the_first_step_trains_nothing(desk: Desk) -> None:
    stop = StopFlag()
    stop.request()
    trained = desk.train("steps=5", stop=stop)
    assert (trained.outcome.word, trained.outcome.step) == ("stopped", 0)
    assert trained.outcome.reason == "asked to stop by SIGTERM, before the first step"
    assert not list(trained.place.checkpoints.iterdir())


def test_run_records_the_resolved_configuration_and_no_fault(desk: Desk) -> None:
    trained = desk.train("steps=2", "fault.kind=lr_factor", "fault.step=2", "fault.factor=2", "optimizer.lr=0.001")
    record = json.loads((trained.place.run_dir / "run.json").read_text())
    assert record["config"] == trained.config.record()
    assert_no_word_of_faults(trained.place.run_dir)


def assert_no_word_of_faults(run_dir: Path, kind: str = "lr_factor") -> None:
    files = [file for file in run_dir.rglob("*") if file.is_file()]
    assert any(file.name == "run.json" for file in files)
    for file in files:
        content = file.read_bytes()
        assert b"fault" not in content.replace(b"default", b""), file
        assert kind.encode() not in content, file
