"""RMS of g²/v and the share held by ε beside second moments that are kept here, in float64, from the gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import monitor
from monitor.hook.adam import AdamRms, leading_rows
from monitor.hook.layers import layer_table
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import GPT, MLP, PROBLEMS


class Twin:
    """Adam's second moment of every parameter, from the definition."""

    def __init__(self, model: nn.Module, beta2: float, eps: float, coupled: float = 0.0, sign: float = 1.0) -> None:
        self.model, self.beta2, self.eps, self.coupled, self.sign = model, beta2, eps, coupled, sign
        self.v = [np.zeros(tuple(p.shape)) for p in model.parameters()]
        self.t = 0

    def step(self) -> tuple[list[float], list[float]]:
        """RMS_t and floor share of each layer for the gradients that are there; before the optimizer steps."""
        self.t += 1
        rms, floor = [], []
        for index, parameter in enumerate(self.model.parameters()):
            assert parameter.grad is not None
            g = self.sign * parameter.grad.double().numpy()
            entered = g + self.coupled * parameter.detach().double().numpy()
            self.v[index] = self.beta2 * self.v[index] + (1 - self.beta2) * entered**2
            corrected = self.v[index] / (1 - self.beta2**self.t)
            rms.append(float(np.sqrt(np.mean(g * g / np.maximum(corrected, self.eps**2)))))
            floor.append(float(np.mean(np.sqrt(corrected) < 10 * self.eps)))
        return rms, floor


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {"foreach": False}),
        (torch.optim.AdamW, {"foreach": True, "amsgrad": True, "eps": 1e-3}),
        (torch.optim.AdamW, {"fused": True, "betas": (0.9, 0.7)}),
        (torch.optim.Adam, {"weight_decay": 0.1, "foreach": False}),
        (torch.optim.Adam, {"weight_decay": 0.1, "maximize": True, "fused": True, "eps": 1e-2}),
        (torch.optim.NAdam, {}),
        (torch.optim.RAdam, {"foreach": True}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_they_are_what_their_definition_says(tmp_path: Path, kind, options) -> None:
    model = MLP.made()
    optimizer = kind(model.parameters(), lr=1e-4, **options)
    group = optimizer.param_groups[0]
    coupled = group["weight_decay"] if kind is torch.optim.Adam else 0.0
    twin = Twin(model, group["betas"][1], group["eps"], coupled, -1.0 if group.get("maximize") else 1.0)
    truth: dict[int, tuple[list[float], list[float]]] = {}
    with monitor.attach(model, optimizer, run=tmp_path, detail="full") as mon:
        for step in range(1, 9):
            optimizer.zero_grad()
            MLP.loss(model, *MLP.batch(step)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            truth[step] = twin.step()
            optimizer.step()
            mon.step()
    rms = recorded.layers(mon.run_dir, stat="adam_rms")
    floor = recorded.layers(mon.run_dir, stat="adam_floor_share")
    assert (list(rms), list(floor)) == (list(truth), [1, 5])
    for step, values in rms.items():
        np.testing.assert_allclose(values, truth[step][0], rtol=1e-4)
        if step in floor:
            np.testing.assert_allclose(floor[step], truth[step][1], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_no_more_than_the_state_does(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Linear(500, 300, bias=False).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    gradient = torch.randn(1, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        model(gradient).sum().backward()
        optimizer.step()
        mon.step()
    g, v = gradient.double(), optimizer.state[model.weight]["exp_avg_sq"].double() / (1 - 0.999)
    expected = float((g * g / v.clamp(min=1e-16)).mean().sqrt())
    assert recorded.layers(mon.run_dir, stat="adam_rms")[1][0] == pytest.approx(expected, rel=1e-4)
    below = float((v.sqrt() < 1e-7).double().mean())
    assert recorded.layers(mon.run_dir, stat="adam_floor_share")[1][0] == pytest.approx(below, abs=1e-6)


def test_an_entry_without_a_gradient_so_far_is_no_nan(tmp_path: Path) -> None:
    model = nn.Embedding(50, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=0.0)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for step in (1, 2, 3):
            optimizer.zero_grad()
            model(torch.tensor([step, step + 1])).sum().backward()
            optimizer.step()
            mon.step()
    # One row in 50 has a gradient for the first and one for the second time: mean of g²/v̂ in closed form.
    v = [(1 - 0.999**t) / (1 - 0.999) for t in (1, 2, 3)]
    expected = [(2 / 50) ** 0.5, *(((v[t] + v[t] / (1 + 0.999)) / 50) ** 0.5 for t in (1, 2))]
    rms = recorded.layers(mon.run_dir, stat="adam_rms")
    np.testing.assert_allclose([rms[step][0] for step in (1, 2, 3)], expected, rtol=1e-5)


def test_a_fused_step_unscales_the_gradient_itself(tmp_path: Path) -> None:
    model = MLP.made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, eps=1e-12)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    twin = Twin(model, 0.999, 1e-12)
    truth = {}
    with monitor.attach(model, optimizer, run=tmp_path, scaler=scaler) as mon:
        for step in range(1, 5):
            optimizer.zero_grad()
            scaler.scale(MLP.loss(model, *MLP.batch(step)) * (1e38 if step == 3 else 1.0)).backward()
            if step != 3:
                for parameter in model.parameters():
                    parameter.grad /= scaler.get_scale()
                truth[step], _ = twin.step()
                for parameter in model.parameters():
                    parameter.grad *= scaler.get_scale()  # a power of two: the same bits again
            scaler.step(optimizer)
            scaler.update()
            mon.step()
    rms = recorded.layers(mon.run_dir, stat="adam_rms")
    assert list(rms) == [1, 2, 4]
    for step, values in rms.items():
        np.testing.assert_allclose(values, truth[step], rtol=1e-4)


def test_sgd_has_none(tmp_path: Path) -> None:
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        MLP.loss(model, *MLP.batch(0)).backward()
        optimizer.step()
        mon.step()
    assert recorded.layers(mon.run_dir, stat="adam_rms") == recorded.layers(mon.run_dir, stat="adam_floor_share") == {}


def test_the_embedding_and_both_ends_are_looked_at_more_often(tmp_path: Path) -> None:
    model = GPT.made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for step in range(1, 21):
            optimizer.zero_grad()
            GPT.loss(model, *GPT.batch(step)).backward()
            optimizer.step()
            mon.step()
    rms = recorded.layers(mon.run_dir, stat="adam_rms")
    assert list(rms) == [*range(1, 11), 12, 16, 20]
    names = recorded.layer_names(mon.run_dir)
    often = [name for name, value in zip(names, rms[12], strict=True) if value is not None]
    assert often == ["place", "token.weight", "blocks.1.mlp.2.weight"]  # the head is the embedding's own weight
    assert None not in rms[20]


def test_slowed_down_the_embedding_is_looked_at_less_often_too():
    model = GPT.made()
    table = layer_table(model)
    probe = AdamRms(table, leading_rows(model, table))
    due = [step for step in range(11, 81) if probe.due(step, step)]
    probe.every = 40  # as the budget does
    assert [step for step in range(11, 81) if probe.due(step, step)] == [16, 32, 40, 48, 64, 80]
    assert due == sorted({*range(20, 81, 10), *range(12, 81, 4)})


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_leading_rows_are_few(problem):
    model = problem.made()
    table = layer_table(model)
    rows = leading_rows(model, table)
    matrices = [row for row, shape in enumerate(table.shapes) if len(shape) > 1]
    assert {matrices[0], matrices[-1]} <= rows
    assert len(rows) <= 3

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(1 << 12, 1 << 10)  # 4 M entries: not every few steps on a CPU
            self.out = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x

    wide = Wide()
    assert leading_rows(wide, layer_table(wide)) == frozenset()
