"""The model's two ends: output logits and input fingerprints against numpy, and what the modes of modules lead to."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monitor.hook import logits as module
from monitor.hook import output_values
from monitor.hook.inputs import VALUES, Inputs, Modes, _spread
from monitor.hook.logits import OutputLogits, logits_of, sampled
from monitor.hook.output_values import OutputValues
from monitor.runfile.reader import open_run
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import CNN, GPT, MLP, MLP_DROPOUT, Problem
from tests.monitor.hook.watching import outputs, train, watched


def _run(folder: Path, model: nn.Module, problem: Problem, probe, steps=(1,), freeze=()):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    with watched(folder, model, optimizer, [probe]) as mon:
        train(mon, model, optimizer, problem, steps)
    return mon.run_dir


# Logits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [MLP, CNN, GPT], ids=lambda problem: problem.name)
def test_log_z_is_the_mean_of_the_log_of_the_summed_exponentials(tmp_path: Path, problem: Problem) -> None:
    model = problem.made()
    with outputs(model) as seen:
        run = open_run(_run(tmp_path, model, problem, OutputLogits(model), range(1, 11)))
    series = run.series("log_z_mean")
    assert series.step.tolist() == [1, 10]
    slow = [np.log(np.exp(seen[""][step - 1]).sum(-1)).mean() for step in (1, 10)]
    np.testing.assert_allclose(series.value, slow, rtol=1e-5)
    assert run.series("log_classes").value[0] == pytest.approx(math.log(seen[""][0].shape[-1]))
    assert run.series("output_softmax_share").value.tolist() == [0, 0]
    unrelated = [_against_every_class(seen[""][step - 1]) for step in (1, 10)]
    np.testing.assert_allclose(run.series("unrelated_loss").value, unrelated, rtol=1e-5)


def _against_every_class(logits: np.ndarray) -> float:
    """Cross-entropy with each class as the target in turn: what targets cost that say nothing of the logits."""
    rows = torch.as_tensor(logits, dtype=torch.float64).flatten(0, -2)
    of_class = [nn.functional.cross_entropy(rows, torch.full((len(rows),), k)) for k in range(rows.shape[-1])]
    return float(torch.stack(of_class).mean())


def test_probabilities_are_told_from_logits(tmp_path: Path) -> None:
    model = nn.Sequential(MLP.made(), nn.Softmax(-1))
    run = open_run(_run(tmp_path, model, MLP, OutputLogits(model)))
    assert run.series("output_softmax_share").value.tolist() == [1]


@pytest.mark.parametrize("last", [nn.Softmax(0), nn.LogSoftmax(0)])
def test_probabilities_over_the_batch_are_told_from_those_of_a_sample(tmp_path: Path, last: nn.Module) -> None:
    model = nn.Sequential(MLP.made(), last)
    run = open_run(_run(tmp_path, model, MLP, OutputLogits(model)))
    assert run.series("output_batch_softmax_share").value.tolist() == [1]
    assert run.series("output_softmax_share").value.tolist() == [0]


def test_of_a_batch_that_is_not_looked_at_whole_no_column_is_judged(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "POSITIONS", 16)
    monkeypatch.setattr(module, "MOST", 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watched(tmp_path, model, optimizer, [OutputLogits(model)]) as mon:
        model(torch.randn(40, 4)).sum().backward()
        optimizer.step()
        mon.step()
    run = open_run(mon.run_dir)
    assert run.series("output_softmax_share").step.tolist() == [1]
    assert len(run.series("output_batch_softmax_share")) == 0


@pytest.mark.parametrize("problem", [MLP, CNN, GPT], ids=lambda problem: problem.name)
def test_values_of_the_output_are_those_of_all_of_a_small_one(tmp_path: Path, problem: Problem) -> None:
    model = problem.made()
    with outputs(model) as seen:
        run = open_run(_run(tmp_path, model, problem, OutputValues(model), range(1, 11)))
    slow = [seen[""][step - 1] for step in (1, 10)]
    for name, value in {
        "output_mean": [each.mean() for each in slow],
        "output_spread": [each.std(axis=0).mean() for each in slow],
        "output_min": [each.min() for each in slow],
        "output_max": [each.max() for each in slow],
    }.items():
        assert run.series(name).step.tolist() == [1, 10]
        np.testing.assert_allclose(run.series(name).value, value, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (1, 5), (0, 5), (6, 5)])
def test_an_output_of_other_than_several_samples_has_no_spread(tmp_path: Path, shape: tuple[int, ...]) -> None:
    class Constant(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs).sum() * torch.ones(shape)

    model = Constant(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watched(tmp_path, model, optimizer, [OutputValues(model)]) as mon:
        model(torch.ones(3, 2)).sum().backward()
        optimizer.step()
        mon.step()
    assert len(open_run(mon.run_dir).series("output_mean")) == 0


def test_a_large_output_is_looked_at_in_part_and_evenly() -> None:
    values = torch.arange(200 * 60 * 1000.0).view(200, 60, 1000)
    some = output_values.sampled(values)
    assert len(some) == 50 and 2000 < some.shape[1] <= output_values.VALUES
    assert len(set((some[0] % 1000).tolist())) == 1000  # all of the last dimension


def test_what_sums_to_one_and_is_negative_somewhere_is_no_probability() -> None:
    rows = torch.tensor([[0.5, 0.5, 0.0], [1.5, -0.5, 0.0], [0.2, 0.2, 0.2]])
    assert module._summary(rows)[2].item() == pytest.approx(1 / 3)


class _Answer:
    logits = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("output", "shape"),
    [
        (torch.zeros(2, 3), (2, 3)),
        (torch.zeros(2, 4, 3), (2, 4, 3)),
        (_Answer(), (2, 3)),
        ({"loss": torch.zeros(()), "logits": torch.zeros(2, 3)}, (2, 3)),
        ((torch.zeros(()), torch.zeros(2, 3)), (2, 3)),
        ({"hidden": torch.zeros(2, 3)}, None),
        (torch.zeros(2, 1), None),
        (torch.zeros(2, 3, 8, 8), None),
        (torch.zeros(2, 3, dtype=torch.int64), None),
        (torch.zeros(0, 3), None),
        (torch.zeros(()), None),
        (None, None),
    ],
)
def test_what_is_taken_for_logits(output: object, shape: tuple[int, ...] | None) -> None:
    found = logits_of(output)
    assert (None if found is None else tuple(found.shape)) == shape


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(1000, 7), (3, 500, 7), (500, 3, 7), (300, 300, 5), (2, 40, 70_000)])
def test_a_bounded_number_of_rows_is_looked_at(shape: tuple[int, ...], transposed: bool) -> None:
    logits = torch.arange(math.prod(shape[:-1]), dtype=torch.float32).view(*shape[:-1], 1).expand(shape)
    logits = logits.transpose(0, 1) if transposed and len(shape) == 3 else logits.contiguous()
    rows = sampled(logits)
    assert rows.shape[1] == shape[-1]
    assert 8 <= len(rows) <= max(16, min(module.POSITIONS, module.MOST // shape[-1]))
    spread = rows[:, 0].sort().values
    assert spread.unique().numel() == len(rows)
    assert spread[-1] - spread[0] > 0.5 * (math.prod(shape[:-1]) - 1)


def test_no_position_of_the_sequences_is_preferred() -> None:
    positions = torch.arange(256.0).view(1, 256, 1).expand(1024, 256, 4)
    seen = sampled(positions.contiguous())[:, 0]
    assert seen.unique().numel() == len(seen) > 200
    assert abs(seen.mean() - 127.5) < 10


# Inputs --------------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_batch(tmp_path: Path) -> None:
    model = CNN.made()
    run = open_run(_run(tmp_path, model, CNN, Inputs(), range(1, 5)))
    for step in range(1, 5):
        batch = CNN.batch(step)[0].double().numpy()
        for name, slow in {
            "input_mean": batch.mean(), "input_std": batch.std(), "input_absmax": np.abs(batch).max(),
            "input_unique_share": len(np.unique(batch)) / batch.size,
        }.items():  # fmt: skip
            assert run.series(name).value[step - 1] == pytest.approx(slow, rel=1e-6), name


def test_equal_batches_have_equal_hashes_and_others_do_not(tmp_path: Path) -> None:
    model = GPT.made()
    hashes = open_run(_run(tmp_path, model, GPT, Inputs(), [1, 2, 3, 1, 2])).series("input_hash").value
    assert hashes[0] == hashes[3] and hashes[1] == hashes[4]
    assert len(set(hashes)) == 3
    assert (hashes == np.floor(hashes)).all() and hashes.max() < 2**52


def test_a_batch_with_a_nan_shows_it(tmp_path: Path) -> None:
    def batch(number: int) -> tuple[Tensor, Tensor]:
        x, y = MLP.batch(number)
        x[number, 2] = torch.nan
        return x, y

    model = MLP.made()
    run = open_run(_run(tmp_path, model, Problem("nan", MLP.model, batch, MLP.loss), Inputs()))
    assert np.isnan(run.series("input_absmax").value).all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(5,), (4096,), (10_000,), (64, 3, 32, 32), (2, 1, 300_000)])
def test_a_large_batch_is_sampled_evenly(shape: tuple[int, ...], transposed: bool) -> None:
    batch = torch.arange(math.prod(shape)).view(shape)
    picked = _spread(batch.transpose(0, -1) if transposed else batch)
    assert min(VALUES, batch.numel()) / 8 <= len(picked) <= VALUES
    assert picked.unique().numel() == len(picked)
    assert picked.max() - picked.min() >= 0.75 * (batch.numel() - 1)


def test_the_sample_is_a_copy_because_a_loader_fills_its_buffer_again() -> None:
    buffer = torch.ones(100)
    picked = _spread(buffer)
    buffer.zero_()
    assert picked.sum() == 100


def test_the_first_tensor_is_found_among_keywords_and_mappings(tmp_path: Path) -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MLP.made()

        def forward(self, flag: bool, *, batch: dict[str, Tensor]) -> Tensor:
            return self.inner(batch["x"])

    model = Keywords()
    problem = Problem("keywords", MLP.model, MLP.batch, lambda m, x, y: m(True, batch={"x": x}).square().mean())
    run = open_run(_run(tmp_path, model, problem, Inputs()))
    assert run.series("input_mean").value[0] == pytest.approx(MLP.batch(1)[0].mean().item(), rel=1e-5)


# Modes ---------------------------------------------------------------------------------------------------------------


def _told(run_dir: Path) -> list[tuple[str, list[str]]]:
    return [
        (event["kind"], event["modules"]) for event in recorded.events(run_dir) if event.get("about") == "mode"
    ]  # fmt: skip


def test_a_model_left_in_evaluation_mode_is_told_of_once(tmp_path: Path) -> None:
    model = MLP_DROPOUT.made().eval()
    run_dir = _run(tmp_path, model, MLP_DROPOUT, Modes(model), range(1, 4))
    assert _told(run_dir) == [("warning", ["2"])]


def test_dropout_in_evaluation_mode_is_a_warning_and_batch_normalisation_a_note(tmp_path: Path) -> None:
    model = nn.Sequential(CNN.made(), nn.Dropout(0.1), nn.Dropout(0.0))
    model[0][1].eval(), model[1].eval(), model[2].eval()
    told = _told(_run(tmp_path, model, CNN, Modes(model), range(1, 4)))
    assert sorted(told) == [("note", ["0.1"]), ("warning", ["1"])]


@pytest.mark.parametrize("made", [CNN.made, MLP.made, MLP_DROPOUT.made], ids=["batch norm", "no mode", "dropout"])
def test_a_model_that_is_as_it_should_be_is_not_told_of(tmp_path: Path, made) -> None:
    model = made()
    problem = CNN if isinstance(model[0], nn.Conv2d) else MLP
    assert _told(_run(tmp_path, model, problem, Modes(model), range(1, 4))) == []


def test_where_evaluation_mode_makes_no_difference_nothing_is_told(tmp_path: Path) -> None:
    model = MLP.made().eval()
    assert _told(_run(tmp_path, model, MLP, Modes(model))) == []


def test_a_frozen_backbone_in_evaluation_mode_is_meant(tmp_path: Path) -> None:
    backbone = nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)).eval().requires_grad_(False)
    model = nn.Sequential(backbone, nn.Linear(8, 5))
    assert _told(_run(tmp_path, model, MLP, Modes(model))) == []
    backbone[0].weight.requires_grad_(True)
    assert len(_told(_run(tmp_path, model, MLP, Modes(model)))) == 2


def test_an_evaluation_with_gradients_is_no_training(tmp_path: Path) -> None:
    model = MLP_DROPOUT.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(tmp_path, model, optimizer, [Modes(model)]) as mon:
        model.eval()
        model(MLP.batch(0)[0])
        model.train()
        train(mon, model, optimizer, MLP, [1])
    assert _told(mon.run_dir) == []


def test_an_evaluation_in_training_mode_is_told_of_once(tmp_path: Path) -> None:
    model = nn.Sequential(CNN.made(), nn.Dropout(0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(tmp_path, model, optimizer, [Modes(model)]) as mon:
        for step in range(1, 4):
            train(mon, model, optimizer, CNN, [step])
            with mon.phase("checkpoint"):
                model(CNN.batch(0)[0])
            if step < 2:
                model.eval()
            with mon.phase("eval"), torch.no_grad():
                model(CNN.batch(0)[0])
            model.train()
    told = recorded.events(mon.run_dir, "warning")
    assert [(event["step"], event["modules"]) for event in told] == [(2, ["0.1", "1"])]
    assert "while the model is evaluated" in told[0]["text"]
