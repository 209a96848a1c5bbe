"""Landscape samples: right numbers at the places said, and a training that does not notice."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

import monitor
from monitor.landscape.directions import Mover, filter_normalised
from monitor.landscape.sample import sample_landscape
from monitor.landscape.undisturbed import undisturbed
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import CNN, GPT, MLP, MLP_DROPOUT, Problem


def _everything(model: nn.Module) -> list:
    """All that a sample might disturb, as copies."""
    tensors = [t.detach().clone() for t in [*model.parameters(), *model.buffers()]]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    numpy_state = [part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()]
    return [
        tensors,
        grads,
        versions,
        modes,
        torch.get_rng_state(),
        numpy_state,
        random.getstate(),
        torch.is_grad_enabled(),
    ]


def _same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_a_curvature_out_of_time_has_no_sharpness_and_the_next_goes_on_from_it(tmp_path):
    model = GPT.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss() -> torch.Tensor:
        return GPT.loss(model, *GPT.batch(0))

    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for budget_s in (0.0, math.inf, 0.0, math.inf):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            mon.step()
            mon.curvature_sample(loss, budget_s=budget_s, tolerance=1e-3)
    samples = [json.loads(sample["detail"]) for sample in recorded.landscape(mon.run_dir)]
    assert ["sharpness" in sample for sample in samples] == [False, True, False, True]
    assert all({"limit", "along_gradient"} <= sample.keys() for sample in samples)
    assert samples[1]["residual"] <= 1e-3 and samples[0]["products"] == 1 < samples[3]["products"]


@pytest.mark.parametrize("problem", [MLP_DROPOUT, CNN, GPT], ids=lambda problem: problem.name)
def test_nothing_is_disturbed(problem: Problem):
    model = problem.made()
    model.train()
    if problem is CNN:
        model[1].eval()  # one module in another mode than the rest: each has its own restored
    loss = problem.loss(model, *problem.batch(0))
    loss.backward(retain_graph=True)
    before = _everything(model)

    def noisy_loss():
        torch.rand(3), np.random.rand(2), random.random()
        return problem.loss(model, *problem.batch(1))

    sample_landscape(model, noisy_loss)
    assert _same(before, _everything(model))
    loss.backward()  # the graph that was alive is still valid


def test_everything_is_given_back_when_the_loss_fails():
    model = CNN.made()
    before = _everything(model)
    calls = []

    def fails_late():
        calls.append(1)
        if len(calls) == 5:
            raise ValueError("no more data")
        return CNN.loss(model, *CNN.batch(0))

    with pytest.raises(ValueError, match="no more data"):
        sample_landscape(model, fails_late)
    assert _same(before, _everything(model))


def test_losses_are_those_of_the_perturbed_model():
    """Against a model that is built anew with the weights said."""
    model = MLP.made()
    sample = sample_landscape(model, lambda: MLP.loss(model, *MLP.batch(0)), radius=0.1, points=5, seed=7)
    weights = [p.detach().clone() for p in model.parameters()]
    assert sample.baseline == pytest.approx(MLP.loss(model, *MLP.batch(0)).item())
    assert sample.line.coords.tolist() == [-0.5, -0.25, 0.0, 0.25, 0.5]
    assert sample.line.loss[2] == sample.baseline
    direction = filter_normalised(weights, 7 * 1_000_003)
    for coord, loss in zip(sample.line.coords, sample.line.loss, strict=True):
        other = MLP.made()
        with torch.no_grad():
            for parameter, weight, along in zip(other.parameters(), weights, direction, strict=True):
                parameter.copy_(weight + coord * along)
        assert loss == pytest.approx(MLP.loss(other, *MLP.batch(0)).item(), rel=1e-5)
    assert sample.mean == pytest.approx(np.mean(sample.perturbation.loss))
    assert sample.variance == pytest.approx(np.var(sample.perturbation.loss, ddof=1))
    assert len(set(sample.perturbation.loss)) == 8  # eight different directions


def test_mean_and_variance_of_a_quadratic_are_known():
    """loss = |w|^2 / 2 for w of norm 1: at relative radius r its mean is (1 + r^2) / 2, its variance near r^2 / n."""

    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((400,), 0.05))  # norm 1, one dimension: scaled as one tensor

    model = Bowl()
    sample = sample_landscape(
        model, lambda: model.weight.double().square().sum() / 2, radius=0.2, perturbations=600, points=3
    )
    assert sample.mean == pytest.approx((1 + 0.2**2) / 2, rel=2e-3)
    assert sample.variance == pytest.approx(0.2**2 / 400, rel=0.2)


def test_directions_have_the_norm_of_each_filter():
    torch.manual_seed(0)
    weights = [
        torch.randn(6, 10), torch.randn(4, 3, 3, 3), torch.randn(9), torch.tensor(2.0), torch.zeros(3, 5),
        torch.randn(8, 4).bfloat16(), torch.zeros(0, 4), torch.arange(3),
    ]  # fmt: skip
    directions = filter_normalised(weights, seed=1)
    for weight, direction in zip(weights[:2], directions[:2], strict=True):
        of_weight, of_direction = (t.flatten(1).norm(dim=1) for t in (weight, direction))
        torch.testing.assert_close(of_direction, of_weight)
    torch.testing.assert_close(directions[2].norm(), weights[2].norm())
    torch.testing.assert_close(directions[3].abs(), weights[3])
    assert not directions[4].any()
    torch.testing.assert_close(directions[5].float().norm(dim=1), weights[5].float().norm(dim=1), rtol=1e-2, atol=1e-3)
    assert [d.dtype for d in directions] == [w.dtype for w in weights]
    assert [d.shape for d in directions] == [w.shape for w in weights]
    again = filter_normalised(weights, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(directions, again, strict=True))
    assert not torch.equal(directions[0], filter_normalised(weights, seed=2)[0])


def test_distance_zero_is_the_origin_bit_for_bit():
    origin = [torch.tensor([1e-30, -0.0, 3.0])]
    weights = [torch.zeros(3)]
    Mover(weights, origin, [torch.full((3,), 1e30)]).to(0.0)
    assert torch.equal(weights[0].view(torch.int32), origin[0].view(torch.int32))


def test_non_finite_losses_are_kept():
    model = MLP.made()
    losses = iter([1.0] + [float("nan")] * 3 + [float("inf")] * 3)
    sample = sample_landscape(model, lambda: next(losses), perturbations=3, points=3)
    assert np.isnan(sample.mean)
    assert np.isinf(sample.line.loss).all()


@pytest.mark.parametrize("options", [{"radius": 0.0}, {"perturbations": 1}, {"points": 4}, {"line_radius": -1.0}])
def test_refused_options_say_what_is_accepted(options):
    model = MLP.made()
    with pytest.raises(ValueError, match="accepted are"):
        sample_landscape(model, lambda: 1.0, **options)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        sample_landscape(model, lambda: torch.zeros(2))


def test_borrowed_models_are_in_eval_mode_without_gradients():
    model = MLP_DROPOUT.made()
    with undisturbed(model):
        assert not model.training
        assert not torch.is_grad_enabled()
    assert model.training


def test_recorded_through_the_monitor(tmp_path):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    due = []
    with monitor.attach(model, optimizer, run=tmp_path, landscape_every=3) as mon:
        for step in range(1, 8):
            optimizer.zero_grad()
            MLP.loss(model, *MLP.batch(step)).backward()
            optimizer.step()
            mon.step()
            if mon.landscape_due:
                due.append(step)
                mon.landscape_sample(lambda: MLP.loss(model, *MLP.batch(0)), perturbations=4, points=5)
    assert due == [3, 6]
    samples = recorded.landscape(mon.run_dir)
    assert [(s["step"], s["kind"], len(s["coords"]), len(s["loss"])) for s in samples] == [
        (3, "perturbation", 4, 4), (3, "line", 5, 5), (6, "perturbation", 4, 4), (6, "line", 5, 5),
    ]  # fmt: skip
    rows = recorded.scalars(mon.run_dir)
    logged = {
        e["step"]: e["values"] for e in recorded.events(mon.run_dir, "log")
    }  # on a slow machine, too late for the row
    for sample in samples[::2]:
        values = {**rows[sample["step"]], **logged.get(sample["step"], {})}
        assert values["landscape_loss_mean"] == pytest.approx(np.mean(sample["loss"]))
        assert values["landscape_loss_variance"] == pytest.approx(np.var(sample["loss"], ddof=1))
    assert all("landscape_loss_mean" not in rows[step] for step in (1, 2, 4, 5, 7))
    assert rows[3]["step_time_s"] > 0


@pytest.mark.parametrize("problem", [MLP_DROPOUT, CNN, GPT], ids=lambda problem: problem.name)
def test_a_training_with_landscapes_and_curvature_has_the_same_weights(problem: Problem, tmp_path):
    trained = []
    for watched in (False, True):
        model = problem.made()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        mon = monitor.attach(model, optimizer, run=tmp_path) if watched else None
        for step in range(1, 5):
            optimizer.zero_grad()
            loss = problem.loss(model, *problem.batch(step))
            loss.backward()
            optimizer.step()
            if mon is not None:
                mon.step(loss=loss)
                fixed = problem.batch(0)
                mon.landscape(
                    lambda batch, model=model: problem.loss(model, *batch), fixed, curvature=step % 2 == 0,
                    perturbations=2, points=3,
                )  # fmt: skip
        trained.append([t.clone() for t in (*model.parameters(), *model.buffers())])
    assert _same(*trained)
    assert mon is not None
    mon.close()
    run = monitor.open_run(mon.run_dir)
    looks = run.landscape("curvature")
    assert [one.step for one in looks] == [2, 4] and run.problems == ()
    for one in looks:
        assert one.detail["limit"] == pytest.approx(38 / 1e-2) and one.detail["preconditioned"]
        ahead = {line.direction: line for line in run.landscape("line") if line.step == one.step and line.detail}
        assert set(ahead) == {"update", "gradient"}
        assert one.baseline == pytest.approx(ahead["gradient"].loss[len(ahead["gradient"].loss) // 2], rel=1e-4)
        assert ahead["gradient"].loss.min() < one.baseline, "there is a lower place down the gradient"
        logged = {name: run.series(name).between(one.step, one.step).value for name in ("sharpness", "sharpness_limit")}
        assert logged["sharpness"] == one.detail["sharpness"] and logged["sharpness_limit"] == one.detail["limit"]
    assert len(run.series("landscape_loss_mean")) == 4


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_model_that_has_blown_up_is_sampled_without_an_error(tmp_path, weight: float):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        with torch.no_grad():
            next(model.parameters()).fill_(weight)
        mon.step()
        mon.landscape(lambda batch: MLP.loss(model, *batch), MLP.batch(0), curvature=True)
    (look,) = monitor.open_run(mon.run_dir).landscape("curvature")
    assert not math.isfinite(look.baseline)


def test_a_model_whose_weights_cannot_be_moved_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("monitor.guard.STRICT", False)
    model = MLP.made().requires_grad_(False)
    head = nn.Linear(2, 2)
    with monitor.attach(model, torch.optim.SGD(head.parameters(), lr=0.1), run=tmp_path) as mon:
        mon.step()
        with pytest.warns(monitor.MonitorWarning, match="every weight of the model is frozen"):
            mon.landscape(lambda batch: MLP.loss(model, *batch), MLP.batch(0), curvature=True)
    assert monitor.open_run(mon.run_dir).landscape() == []
