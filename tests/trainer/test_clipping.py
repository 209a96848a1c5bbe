"""Clipping against torch's own and a slow twin, what the monitor says of it, and noise on the gradient."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import monitor
from tests.trainer.conftest import Desk
from trainer.clipping import Clipping
from trainer.config import ClipConfig, GradientNoiseConfig
from trainer.gradient_noise import add_gradient_noise
from trainer.unmonitored import Unmonitored

SHAPES = ((3, 4), (5,), (2, 2))


def model_of(shapes: tuple[tuple[int, ...], ...] = SHAPES) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.ones(shape)) for shape in shapes)


def gradients(step: int) -> list[torch.Tensor]:
    """Of one step: the third tensor has none before step 9, step 12 is a spike, step 15 is not finite."""
    generator = torch.Generator().manual_seed(step)
    grads = [torch.randn(shape, generator=generator) for shape in SHAPES]
    if step < 9:
        grads[2].zero_()
    if step == 12:
        grads[0] *= 1000
    if step == 15:
        grads[1][0] = torch.inf
    return grads


def adagc(steps: int, warmup: int, max_norm: float, growth: float, beta: float) -> list[list[np.ndarray]]:
    """Algorithm 1 of the paper in float64, one tensor after another; the clipped gradients of every step."""
    usual: list[float | None] = [None] * len(SHAPES)
    every = []
    for step in range(1, steps + 1):
        grads = [grad.double().numpy() for grad in gradients(step)]
        total = math.sqrt(sum((grad**2).sum() for grad in grads))
        for i, grad in enumerate(grads):
            norm = math.sqrt((grad**2).sum())
            mean = usual[i]
            if step <= warmup:
                grads[i] = grad = grad * min(1.0, max_norm / (total + 1e-6))
                norm *= min(1.0, max_norm / (total + 1e-6))
                if norm:
                    usual[i] = norm if mean is None else min(mean, norm)
            elif mean is None:
                usual[i] = norm or None
            else:
                with np.errstate(invalid="ignore"):
                    grads[i] = grad * min(1.0, growth * mean / norm)
                if norm < math.inf:
                    usual[i] = beta * mean + (1 - beta) * min(norm, growth * mean)
        every.append(grads)
    return every


def test_adaptive_clipping_follows_its_slow_twin() -> None:
    model = model_of()
    config = ClipConfig(kind="adaptive", warmup_steps=5, max_norm=2.0, growth=1.1, beta=0.9)
    clipping = Clipping(config, model)
    mon = Unmonitored(model)
    expected = adagc(20, 5, 2.0, 1.1, 0.9)
    for step in range(1, 21):
        for parameter, grad in zip(model, gradients(step), strict=True):
            parameter.grad = grad
        norm = clipping.clip(mon)
        assert norm is not None
        total = math.sqrt(sum(float(grad.double().square().sum()) for grad in gradients(step)))
        assert float(norm) == pytest.approx(total, rel=1e-5)
        for parameter, twin in zip(model, expected[step - 1], strict=True):
            np.testing.assert_allclose(parameter.grad.numpy(), twin, rtol=1e-4)
    assert bool(torch.isfinite(clipping.state_dict()["usual"]).all())


def test_adaptive_clipping_lets_a_tensor_begin_after_the_warmup() -> None:
    """As LoRA's first factor does, whose gradient is 0 until the second has moved."""
    model = model_of(((4,),))
    clipping = Clipping(ClipConfig(kind="adaptive", warmup_steps=2), model)
    for size in (0.0, 0.0, 0.0, 3.0, 3.0):
        model[0].grad = torch.full((4,), size)
        clipping.clip(Unmonitored(model))
    assert model[0].grad is not None
    assert torch.equal(model[0].grad, torch.full((4,), 3.0))


def test_value_clipping_is_torchs_and_off_is_off() -> None:
    model = model_of()
    for kind, limit in (("value", 0.5), ("norm", math.inf)):
        for parameter, grad in zip(model, gradients(12), strict=True):
            parameter.grad = grad
        config = ClipConfig.model_validate({"kind": kind, "max_norm": None, "max_value": 0.5})
        assert Clipping(config, model).clip(Unmonitored(model)) is None
        for parameter, grad in zip(model, gradients(12), strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, grad.clamp(-limit, limit))


@pytest.mark.parametrize("eta", [None, 0.01])
@pytest.mark.parametrize("kind", ["norm", "value", "adaptive"])
def test_recorded_stages_are_before_clipping_and_what_the_optimizer_used(
    kind: str, eta: float | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"kind": kind, "max_norm": 0.5, "max_value": 0.05, "warmup_steps": 1, "growth": 1}
    clipping = Clipping(ClipConfig.model_validate(options), model)
    before, clipped, used = [], [], []
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for step in range(1, 9):
            optimizer.zero_grad()
            loss = model(3 * torch.randn(5, 6)).square().mean()
            loss.backward()
            before.append(norm_of(model))
            clipping.clip(mon)
            clipped.append(norm_of(model))
            add_gradient_noise(mon, model.parameters(), GradientNoiseConfig(eta=eta), seed=0, step=step)
            used.append(norm_of(model))
            optimizer.step()
            mon.step(loss=loss.detach())
    run = monitor.open_run(mon.run_dir)
    assert run.series("grad_norm_preclip").value == pytest.approx(before, rel=1e-4)
    assert run.series("grad_norm_postclip").value == pytest.approx(used, rel=1e-4)
    assert sum(clipped) < 0.8 * sum(before)
    assert not [event.fields["text"] for event in run.events("warning") if "gradient" in event.fields["text"]]


def norm_of(model: nn.Module) -> float:
    return float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())


def test_noise_has_the_variance_of_its_step_and_leaves_the_random_state_alone() -> None:
    model = model_of(((200, 500),))
    state = torch.get_rng_state()
    drawn = []
    for step in (1, 1, 1000):
        model[0].grad = torch.ones(200, 500)
        add_gradient_noise(Unmonitored(model), model, GradientNoiseConfig(eta=0.3, decay=0.55), seed=3, step=step)
        drawn.append(model[0].grad - 1)
    assert torch.equal(drawn[0], drawn[1])
    for noise, step in zip(drawn[1:], (1, 1000), strict=True):
        assert float(noise.mean()) == pytest.approx(0, abs=0.01)
        assert float(noise.var()) == pytest.approx(0.3 / (1 + step) ** 0.55, rel=0.03)
    assert abs(float(torch.corrcoef(torch.stack([drawn[1].flatten(), drawn[2].flatten()]))[0, 1])) < 0.02
    assert torch.equal(torch.get_rng_state(), state)


def test_clipped_and_noisy_training_learns(desk: Desk) -> None:
    trained = desk.train(
        "steps=60", "task.kind=charmlp", "optimizer.lr=5e-3", "clip.kind=adaptive", "clip.warmup_steps=10",
        "gradient_noise.eta=1e-6",
    )  # fmt: skip
    assert trained.losses()[-1] < 4.2
