"""Largest entries, zeros and non-finite ones of gradients, counted here one parameter at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import monitor
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import CNN, GPT, MLP, PROBLEMS, Problem

STATS = ("grad_abs_max", "grad_zero_share", "grad_nonfinite_share")


def _truth(model: nn.Module, divisor: float = 1.0) -> dict[str, list[float]]:
    grads = [p.grad.to_dense().double().numpy().copy() for p in model.parameters() if p.grad is not None]
    return {
        "grad_abs_max": [float(np.max(np.abs(grad))) / divisor for grad in grads],
        "grad_zero_share": [float(np.mean(grad == 0)) for grad in grads],
        "grad_nonfinite_share": [float(np.mean(~np.isfinite(grad))) for grad in grads],
    }


def _same(run_dir: Path, truth: dict[int, dict[str, list[float]]]) -> None:
    found = {stat: recorded.layers(run_dir, stat=stat) for stat in STATS}
    scalars = recorded.scalars(run_dir)
    for step, values in truth.items():
        for stat in STATS:
            np.testing.assert_allclose(np.array(found[stat][step], float), values[stat], rtol=1e-6, err_msg=stat)
        assert scalars[step]["grad_abs_max"] == pytest.approx(np.max(values["grad_abs_max"]), rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("micro_steps", [1, 4])
def test_before_clipping_and_over_all_micro_steps(tmp_path: Path, problem: Problem, micro_steps: int) -> None:
    model = problem.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    truth = {}
    with monitor.attach(model, optimizer, run=tmp_path, detail="full") as mon:
        for step in range(1, 5):
            optimizer.zero_grad()
            for micro in range(micro_steps):
                problem.loss(model, *problem.batch(10 * step + micro)).backward()
            truth[step] = _truth(model)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            mon.step()
    _same(mon.run_dir, truth)
    if problem is CNN:
        assert any(share > 0 for values in truth.values() for share in values["grad_zero_share"])


@pytest.mark.parametrize("told", [True, False])
def test_the_loss_scale_is_divided_out(tmp_path: Path, told: bool) -> None:
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    truth = {}
    with monitor.attach(model, optimizer, run=tmp_path, scaler=scaler if told else None, detail="full") as mon:
        for step in range(1, 7):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = MLP.loss(model, *MLP.batch(step)) * (1e35 if step == 3 else 1)
            scaler.scale(loss).backward()
            truth[step] = _truth(model, scaler.get_scale())
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            mon.step()
    assert not np.isfinite(truth[3]["grad_abs_max"]).all()
    assert max(truth[3]["grad_nonfinite_share"]) > 0
    _same(mon.run_dir, truth)


def test_a_single_nan_is_seen_and_counted(tmp_path: Path) -> None:
    model = GPT.made().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path, detail="full") as mon:
        model.blocks[1].mlp[0].weight.register_hook(
            lambda grad: grad.index_put((torch.tensor(3),) * 2, grad.new_tensor(torch.nan))
        )
        GPT.loss(model, *GPT.batch(0)).backward()
        truth = _truth(model)
        mon.step()
    _same(mon.run_dir, {1: truth})
    row = recorded.layer_names(mon.run_dir).index("blocks.1.mlp.0.weight")
    assert truth["grad_nonfinite_share"][row] * model.blocks[1].mlp[0].weight.numel() == 1
    assert sum(share > 0 for share in truth["grad_nonfinite_share"]) == 1


def test_sparse_gradients_count_what_they_do_not_store_as_zero(tmp_path: Path) -> None:
    model = nn.Embedding(100, 3, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path, detail="full") as mon:
        model(torch.tensor([1, 1, 7])).sum().backward()
        truth = _truth(model)
        optimizer.step()
        mon.step()
    assert truth["grad_zero_share"] == [0.98]
    assert truth["grad_abs_max"] == [2.0]
    _same(mon.run_dir, {1: truth})


def test_each_of_two_optimizers_has_the_gradients_that_it_uses(tmp_path: Path) -> None:
    """As in a GAN: the second backward leaves more in the first half's gradients, which its optimizer never sees."""
    model = MLP.made()
    first, second = torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.SGD(model[3:].parameters(), lr=0.1)
    with monitor.attach(model, [first, second], run=tmp_path, detail="full") as mon:
        MLP.loss(model, *MLP.batch(0)).backward()
        expected = {stat: values[:2] for stat, values in _truth(model).items()}
        first.step()
        second.zero_grad()
        MLP.loss(model, *MLP.batch(1)).backward()
        for stat, values in _truth(model).items():
            expected[stat] = expected[stat] + values[2:]
        second.step()
        mon.step()
    _same(mon.run_dir, {1: expected})


def test_a_layer_without_a_gradient_is_absent(tmp_path: Path) -> None:
    model = MLP.made()
    model[3].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        MLP.loss(model, *MLP.batch(0)).backward()
        optimizer.step()
        mon.step()
    values = recorded.layers(mon.run_dir, stat="grad_abs_max")[1]
    assert [value is None for value in values] == [False, False, True, True, False, False]
    assert recorded.layers(mon.run_dir, stat="grad_nonfinite_share") == {}  # of detail="full" only
