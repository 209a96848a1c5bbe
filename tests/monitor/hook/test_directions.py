"""Cosines with known answers, and beside those of whole gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import monitor
from monitor.hook.directions import Sample
from monitor.hook.layers import layer_table
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import GPT, MLP, PROBLEMS


def _flat(tensors) -> np.ndarray:
    return np.concatenate([tensor.detach().double().numpy().ravel() for tensor in tensors])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_the_sample_estimates_the_cosine_of_the_whole(tmp_path: Path, problem) -> None:
    model = problem.made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    gradients, updates = [], []
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for step in range(1, 9):
            optimizer.zero_grad()
            problem.loss(model, *problem.batch(step)).backward()
            before = _flat(model.parameters())
            optimizer.step()
            mon.step()
            gradients.append(_flat(parameter.grad for parameter in model.parameters()))
            updates.append(_flat(model.parameters()) - before)
    rows = recorded.scalars(mon.run_dir)
    assert "grad_cosine" not in rows[1]
    # Standard error of a cosine from the 256 entries sampled of each of 6 layers or more: about 0.03.
    for step in range(2, 9):
        assert rows[step]["grad_cosine"] == pytest.approx(_cosine(gradients[step - 1], gradients[step - 2]), abs=0.15)
    for step in range(1, 9):
        assert rows[step]["update_cosine"] == pytest.approx(_cosine(gradients[step - 1], -updates[step - 1]), abs=0.15)


def test_known_directions(tmp_path: Path) -> None:
    """The loss is linear, so that its gradient is what we say: the same, turned round, orthogonal, none at all."""
    model = nn.Linear(400, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    even = torch.tensor([1.0, 0.0]).repeat(200)
    wanted = [even, even, -3 * even, 1 - even, torch.zeros(400), even]
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for gradient in wanted:
            optimizer.zero_grad()
            model(gradient).sum().backward()
            optimizer.step()
            mon.step()
    found = recorded.layers(mon.run_dir, stat="grad_cosine")
    assert {step: values[0] for step, values in found.items()} == pytest.approx({2: 1.0, 3: -1.0, 4: 0.0}, abs=1e-6)
    descent = recorded.layers(mon.run_dir, stat="update_cosine")
    assert {step: values[0] for step, values in descent.items()} == pytest.approx(dict.fromkeys((1, 2, 3, 4, 6), 1.0))


def test_gradients_that_are_never_zeroed_point_the_same_way(tmp_path: Path) -> None:
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for step in range(1, 10):
            MLP.loss(model, *MLP.batch(step)).backward()
            optimizer.step()
            mon.step()
    assert recorded.scalars(mon.run_dir)[9]["grad_cosine"] > 0.9


def test_two_steps_in_a_row_are_kept_for_one_cosine(tmp_path: Path) -> None:
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for step in range(1, 42):
            optimizer.zero_grad()
            MLP.loss(model, *MLP.batch(step)).backward()
            optimizer.step()
            mon.step()
    assert list(recorded.layers(mon.run_dir, stat="grad_cosine")) == [*range(2, 11), 20, 40]
    assert list(recorded.layers(mon.run_dir, stat="update_cosine")) == [*range(1, 11), 20, 40]


def test_a_parameter_that_has_changed_its_size_is_left_out(tmp_path: Path) -> None:
    """As sharding does: the coordinates drawn at the start are not there any more."""
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for step in (1, 2):
            optimizer.zero_grad()
            MLP.loss(model, *MLP.batch(step)).backward()
            if step == 2:
                model[0].bias.grad = None
                model[0].bias.data = torch.zeros(3)
                model[0].bias.grad = torch.ones(3)
            optimizer.step()
            mon.step()
    found = recorded.layers(mon.run_dir, stat="update_cosine")[2]
    assert [value is None for value in found] == [False, True, False, False, False, False]


def test_the_sample_is_fixed_bounded_and_its_own() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = GPT.made()
    after = torch.get_rng_state()
    table = layer_table(model)
    one, two = Sample(table), Sample(table)
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(after, state)
    parameters, rows = list(model.parameters()), range(len(table))
    with torch.no_grad():
        values = one.of(parameters, rows)
        assert torch.equal(values, two.of(parameters, rows))
    assert values.shape == (len(table), 256)
    for row, parameter in enumerate(parameters):
        assert torch.isin(values[row], parameter).all()
    deep = layer_table(nn.Sequential(*(nn.Linear(2, 2) for _ in range(2000))))
    assert Sample(deep).count * len(deep) <= max(16384, 8 * 4000)
