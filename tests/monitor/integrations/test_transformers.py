"""A real Trainer with a real (tiny) GPT-2: what it logs itself is what the run must hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from monitor.integrations.transformers import GradiometerCallback
from monitor.runfile.reader import Run, open_run

STEPS = 8


class Counting(Dataset[dict[str, torch.Tensor]]):
    """Rows that count up, learnable in a few steps; of different lengths, so that micro-batches weigh differently."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(16) + index) % 37
        labels = ids.clone()
        labels[: index % 9] = -100
        return {"input_ids": ids, "labels": labels}


class Heard(TrainerCallback):
    """What the Trainer says itself."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append((state.global_step, dict(logs)))

    def series(self, name: str) -> dict[int, float]:
        return {step: log[name] for step, log in self.logs if name in log}


def _train(folder: Path, *callbacks: TrainerCallback, **arguments: Any) -> GPT2LMHeadModel:
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=37, n_positions=16, n_embd=16, n_layer=2, n_head=2))
    args = TrainingArguments(
        str(folder / "out"), max_steps=STEPS, per_device_train_batch_size=4, logging_steps=1, report_to=[],
        use_cpu=True, disable_tqdm=True, learning_rate=1e-2, max_grad_norm=0.5,
        **{"save_strategy": "no", **arguments},
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=Counting(), eval_dataset=Counting(), callbacks=[*callbacks])
    trainer.train()
    return model


def _run(callback: GradiometerCallback) -> Run:
    assert callback.monitor is not None
    return open_run(callback.monitor.run_dir)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_loss_and_norm_are_those_that_the_trainer_logs(tmp_path: Path, accumulation: int) -> None:
    ours, heard = GradiometerCallback(tmp_path / "runs", task="counting"), Heard()
    _train(
        tmp_path,
        ours,
        heard,
        gradient_accumulation_steps=accumulation,
        run_name="tiny",
        include_num_input_tokens_seen="all",
    )
    run = _run(ours)
    assert (run.name, run.state.word, run.last_step) == ("tiny", "finished", STEPS)
    for name, theirs in {"train_loss": "loss", "grad_norm_preclip": "grad_norm", "lr": "learning_rate"}.items():
        logged = heard.series(theirs)
        series = run.series(name)
        assert series.step.tolist() == list(logged) == list(range(1, STEPS + 1))
        np.testing.assert_allclose(
            series.value[: STEPS - 1] if name == "lr" else series.value, _expected(name, logged), rtol=2e-3
        )
    assert run.series("clip_coef").value.min() < 1
    assert dict(zip(*_pairs(run, "tokens"), strict=True)) == heard.series("num_input_tokens_seen")
    assert run.layers("grad_norm_preclip").value.shape[0] == STEPS


def _expected(name: str, logged: dict[int, float]) -> list[float]:
    # The Trainer logs the rate of the step to come; the run has the rate that the step was taken with.
    return list(logged.values())[: STEPS - 1] if name == "lr" else list(logged.values())


def test_the_weights_are_bitwise_those_without_it(tmp_path: Path) -> None:
    with_it = _train(tmp_path, GradiometerCallback(tmp_path / "runs"))
    without = _train(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(with_it.parameters(), without.parameters(), strict=True))
    assert not with_it._forward_hooks
    assert not with_it._forward_pre_hooks


def test_evaluations_checkpoints_and_a_resume_are_recorded(tmp_path: Path) -> None:
    ours, heard = GradiometerCallback(tmp_path / "runs"), Heard()
    _train(tmp_path, ours, heard, eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=3)
    run = _run(ours)
    assert dict(zip(*_pairs(run, "val_loss"), strict=True)) == pytest.approx(heard.series("eval_loss"), rel=1e-3)
    assert [event.step for event in run.events("checkpoint")] == [3, 6, 8]
    assert [event.step for event in run.events("phase")] == [3, 6, 8]
    assert run.last_step == STEPS
    set_seed(0)
    again = GradiometerCallback(run.path)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=37, n_positions=16, n_embd=16, n_layer=2, n_head=2))
    args = TrainingArguments(
        str(tmp_path / "out"), max_steps=STEPS, per_device_train_batch_size=4, logging_steps=1, report_to=[],
        use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    Trainer(model, args, train_dataset=Counting(), callbacks=[again]).train(
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6")
    )
    resumed = _run(again)
    assert [attempt.resume_step for attempt in resumed.attempts] == [0, 6]
    assert resumed.last_step == STEPS


def test_without_a_loss_of_the_model_the_log_tells_it(tmp_path: Path) -> None:
    ours, heard = GradiometerCallback(tmp_path / "runs"), Heard()
    _train(tmp_path, ours, heard, label_smoothing_factor=0.1)
    series = _run(ours).series("train_loss")
    assert dict(zip(series.step.tolist(), series.value, strict=True)) == pytest.approx(heard.series("loss"), rel=1e-3)


def _pairs(run: Run, name: str) -> tuple[list[int], list[float]]:
    series = run.series(name)
    return series.step.tolist(), series.value.tolist()
