"""Curvature against closed forms, against the full Hessian, and against the optimizers themselves at their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from monitor.landscape.curvature import curvature
from monitor.landscape.directions import dot, last_update
from monitor.landscape.hessian import DIFFERENCES, DOUBLE, Hessian, eigenvalues, trace
from monitor.landscape.stability import stability
from monitor.landscape.undisturbed import moving
from tests.monitor.hook.problems import MLP, TinyGPT
from tests.monitor.landscape.test_sample import _everything, _same


class Bowl(nn.Module):
    """wᵀ A w / 2 + bᵀ w, in two tensors."""

    def __init__(self, matrix: Tensor, linear: Tensor | None = None) -> None:
        super().__init__()
        self.matrix, self.linear = matrix, torch.zeros(len(matrix)).to(matrix) if linear is None else linear
        self.first = nn.Parameter(torch.ones(3).to(matrix))
        self.rest = nn.Parameter(torch.ones(1, len(matrix) - 3).to(matrix))

    def forward(self) -> Tensor:
        w = torch.cat([self.first, self.rest.flatten()])
        return w @ self.matrix @ w / 2 + self.linear @ w


def bowl(size: int, seed: int = 0) -> tuple[Bowl, np.ndarray]:
    """With eigenvalues of both signs; float64."""
    random = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(random.standard_normal((size, size)))
    spectrum = np.sort(random.standard_normal(size) * 3)[::-1].copy()
    matrix = basis * spectrum @ basis.T
    return Bowl(torch.from_numpy((matrix + matrix.T) / 2), torch.from_numpy(random.standard_normal(size))), spectrum


def full_hessian(model: nn.Module, loss) -> np.ndarray:
    """By torch itself, row by row, of the parameters end to end."""
    named = dict(model.named_parameters())
    names, sizes = list(named), [p.numel() for p in named.values()]

    def of_flat(flat: Tensor) -> Tensor:
        parts = {n: p.view(named[n].shape) for n, p in zip(names, flat.split(sizes), strict=True)}
        return loss(lambda *args: functional_call(model, parts, args))

    flat = torch.cat([p.detach().flatten() for p in named.values()])
    return torch.autograd.functional.hessian(of_flat, flat).numpy()


@pytest.mark.parametrize("size", [8, 60])
@pytest.mark.parametrize("method", [DOUBLE, DIFFERENCES])
def test_a_quadratic_has_the_curvature_it_was_made_with(size: int, method: str):
    model, spectrum = bowl(size)
    with Hessian(model, model, method=method) as found:
        matrix = model.matrix.numpy()
        gradient = matrix.sum(1) + model.linear.numpy()
        np.testing.assert_allclose(found.flat(found.gradient), gradient, rtol=1e-9)
        assert found.along(found.gradient) == pytest.approx(gradient @ matrix @ gradient / (gradient @ gradient))
        np.testing.assert_allclose(eigenvalues(found, 3).values, spectrum[:3], rtol=1e-4)
        estimate = trace(found, 200)
        assert abs(estimate.mean - spectrum.sum()) < 5 * estimate.error and estimate.samples == 200
        assert found.method == method and found.loss == pytest.approx(float(model()))


@pytest.mark.parametrize("tolerance", [0.3, 0.1, 1e-3])
def test_an_eigenvalue_lies_within_the_residual_that_is_told(tolerance: float):
    model, spectrum = bowl(200, seed=1)
    with Hessian(model, model) as hessian:
        found = eigenvalues(hessian, 2, tolerance=tolerance)
        told, products = found.residuals * np.abs(found.values), hessian.products
        nearest = np.abs(spectrum[:, None] - found.values).min(0)
        vectors = model.matrix.numpy() @ found.vectors
        np.testing.assert_allclose(np.linalg.norm(vectors - found.vectors * found.values, axis=0), told, atol=1e-9)
        part = eigenvalues(hessian, 2, most_products=5)
    assert found.found.all() and (nearest <= told + 1e-12).all() and (told <= tolerance * np.abs(found.values)).all()
    assert products < {0.3: 20, 0.1: 40, 1e-3: 150}[tolerance]
    assert not part.found.any() and (part.values <= spectrum[:2]).all() and part.vectors.shape == (200, 2)


def test_eigenvalues_beyond_the_rank_are_zero():
    """The gradient spans what is curved in a few products; what else there is has to be looked for elsewhere."""
    matrix = torch.zeros(50, 50, dtype=torch.float64)
    matrix[0, 0], matrix[4, 4] = 5.0, 2.0
    model = Bowl(matrix)
    with Hessian(model, model) as hessian:
        np.testing.assert_allclose(eigenvalues(hessian, 4).values, [5, 2, 0, 0], atol=1e-9)
        assert hessian.products < 20


def test_linear_regression_has_the_curvature_of_its_data():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 40, generator=generator), torch.randn(200, 1, generator=generator)
    model = nn.Linear(40, 1, bias=False)
    found = curvature(model, lambda: (model(x) - y).square().mean(), count=2, trace_samples=64)
    matrix = 2 * (x.T @ x / 200).double().numpy()
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(matrix)[::-1][:2], rtol=1e-4)
    assert found.sharpness == found.eigenvalues[0] and found.stability is None and math.isnan(found.over_limit)
    assert abs(found.trace.mean - np.trace(matrix)) < 5 * found.trace.error


@pytest.mark.parametrize("method", [None, DIFFERENCES])
def test_eigenvalues_are_those_of_the_full_hessian(method: str | None):
    model = TinyGPT(vocabulary=7, width=4, heads=2, blocks=1, context=5).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    tokens = torch.randint(0, 7, (6, 6))

    def loss(forward=model) -> Tensor:
        logits = forward(tokens[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        whole = full_hessian(model, loss)
    before = _everything(model)
    with Hessian(model, loss, method=method) as found:
        assert found.method == (method or DOUBLE)  # though the fast attention of torch has no second derivative
        vector = np.random.default_rng(0).standard_normal(found.size)
        product = found.flat(found.product(found.unflat(vector)))
        np.testing.assert_allclose(product, whole @ vector, rtol=1e-4, atol=1e-5 * np.abs(whole @ vector).max())
        largest = eigenvalues(found, 4)
        estimate = trace(found, 50)
    assert largest.found.all() and len(largest.found) == 4
    np.testing.assert_allclose(largest.values, np.linalg.eigvalsh(whole)[::-1][:4], rtol=1e-4)
    residual = whole @ largest.vectors[:, 0] - largest.values[0] * largest.vectors[:, 0]
    assert np.linalg.norm(residual) < 1e-2 * largest.values[0]
    assert abs(estimate.mean - np.trace(whole)) < 5 * estimate.error
    assert _same(before, _everything(model))


class Once(torch.autograd.Function):
    """Has a derivative and no second one."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, along):
        return 2 * ctx.saved_tensors[0] * along


def test_what_has_no_second_derivative_is_differenced_and_says_so():
    model = nn.Linear(50, 1, bias=False)
    x = torch.randn(80, 50, generator=torch.Generator().manual_seed(0))
    before = _everything(model)
    with Hessian(model, lambda: Once.apply(model(x)).mean()) as found:
        assert found.method == DIFFERENCES
        top = eigenvalues(found, 1).values[0]
    expected = np.linalg.eigvalsh(2 * (x.T @ x / 80).numpy())[-1]
    assert top == pytest.approx(expected, rel=1e-3)
    assert _same(before, _everything(model))
    with (
        pytest.raises(RuntimeError, match="twice"),
        Hessian(model, lambda: Once.apply(model(x)).mean(), method=DOUBLE),
    ):
        pass
    assert _same(before, _everything(model))


@pytest.mark.parametrize(
    "loss", [lambda m: 1.0, lambda m: m(torch.ones(1, 50)).detach().mean(), lambda m: m(torch.ones(2, 50))]
)
def test_a_loss_without_a_derivative_is_explained(loss):
    model = nn.Linear(50, 1)
    with pytest.raises(ValueError, match="must return one number as a tensor"):
        curvature(model, lambda: loss(model))


def test_a_budget_ends_it_with_what_is_known():
    model = MLP.made()
    found = curvature(model, lambda: MLP.loss(model, *MLP.batch(0)), count=3, trace_samples=8, budget_s=0)
    assert found.eigenvalues == () and found.trace.samples == 0 and math.isfinite(found.along_gradient)
    assert "sharpness" not in found.detail()


def test_a_loss_that_is_not_finite_has_no_eigenvalues():
    model = MLP.made()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    found = curvature(model, lambda: MLP.loss(model, *MLP.batch(0)))
    assert math.isnan(found.loss) and found.eigenvalues == () and math.isnan(found.sharpness)


def test_an_eigenvector_from_before_saves_products():
    model = MLP.made()

    def loss() -> Tensor:
        return MLP.loss(model, *MLP.batch(0))

    first = curvature(model, loss, tolerance=1e-3)
    again = curvature(model, loss, tolerance=1e-3, start=first.vector)
    assert again.sharpness == pytest.approx(first.sharpness, rel=1e-3)
    assert again.products <= first.products


# Limits: the optimizer itself, on a parabola just below and just above ------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 1.0 - 1e-12)),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.5, 1.0 - 1e-12), weight_decay=0.0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=1.0 - 1e-12, momentum=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("share", "grows"), [(0.97, False), (1.03, True)])
def test_an_optimizer_diverges_above_its_limit_and_not_below(name: str, share: float, grows: bool):
    """Adam's v is frozen by its beta2, as the theory has it, and far from its first steps."""
    weight = nn.Parameter(torch.tensor([1e-6], dtype=torch.float64))
    optimizer = OPTIMIZERS[name]([weight])
    if name in ("adam", "adamw", "rmsprop"):
        second = {"exp_avg_sq": torch.tensor([4.0e-9]).double(), "exp_avg": torch.zeros(1).double()}
        if name == "rmsprop":
            second = {"square_avg": torch.tensor([4.0]).double(), "momentum_buffer": torch.zeros(1).double()}
        optimizer.state[weight] = {"step": torch.tensor(1000.0), **second}
    held = stability(optimizer, [weight])
    assert held is not None
    curve = share * held.limit * (1.0 if held.scale is None else float(held.scale[0]))
    for _ in range(1000):
        optimizer.zero_grad()
        (curve * weight.square() / 2).sum().backward()
        optimizer.step()
        if not 1e-8 < abs(weight.item()) < 1e-3:
            break
    assert (abs(weight.item()) > 1e-3) == grows


def test_full_batch_gradient_descent_ends_at_the_edge_of_stability():
    """Sharpness rises to 2 / lr and hovers there, and the loss falls nevertheless (Cohen et al. 2021)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 1)).double()
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(1)).double()
    y = torch.sign(x[:, :1] * x[:, 1:2])

    def loss() -> Tensor:
        return (model(x) - y).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    shares, losses, start = [], [], None
    for step in range(1, 1801):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        if step in (1, 1000) or (step > 1000 and step % 200 == 0):
            found = curvature(model, loss, optimizer, start=start, tolerance=1e-2)
            start = found.vector
            shares.append(found.over_limit)
            losses.append(found.loss)
    assert shares[0] < 0.7
    assert 0.8 < np.median(shares[2:]) < 1.2, shares
    assert max(shares) < 1.3 and losses[-1] < 0.01 * losses[0]


def test_groups_of_other_rates_share_one_limit():
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:], "lr": 0.4}])
    held = stability(optimizer, weights)
    assert held is not None and (held.limit, held.lr, held.preconditioned) == (5.0, 0.4, False)
    assert [float(part) for part in held.scale] == pytest.approx([4.0, 1.0])  # type: ignore[union-attr]


def test_an_unknown_limit_is_none():
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    for optimizer in (
        torch.optim.Adagrad(weights),
        torch.optim.Adam(weights),  # before its first step
        torch.optim.SGD(weights, lr=0.0),
        torch.optim.SGD(weights[:1], lr=0.1),
        torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "momentum": 0.9}], lr=0.1),
        torch.optim.SGD(weights, lr=0.1, maximize=True),
    ):
        assert stability(optimizer, weights) is None


def test_preconditioned_sharpness_is_that_of_the_scaled_full_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    x, y = MLP.batch(0)

    def loss(forward=model) -> Tensor:
        return nn.functional.cross_entropy(forward(x.double()), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    optimizer.zero_grad()
    found = curvature(model, loss, optimizer, count=2)
    whole = full_hessian(model, loss)
    scale = []
    for weight in model.parameters():
        state = optimizer.state[weight]
        scale.append((1 - 0.9**30) * ((state["exp_avg_sq"] / (1 - 0.999**30)).sqrt() + 1e-8).flatten())
    root = 1 / torch.cat(scale).sqrt().numpy()
    assert found.sharpness == pytest.approx(np.linalg.eigvalsh(root[:, None] * whole * root)[-1], rel=1e-4)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(whole)[::-1][:2], rtol=1e-4)
    assert found.stability.limit == pytest.approx(38 / 3e-3) and found.detail()["preconditioned"]  # type: ignore[union-attr]
    assert found.over_limit == pytest.approx(found.sharpness * 3e-3 / 38)
    update = last_update(optimizer, moving(model))
    flat = torch.cat([part.flatten() for part in update]).numpy()  # type: ignore[union-attr]
    assert found.along_update == pytest.approx(flat @ whole @ flat / (flat @ flat), rel=1e-6)


UPDATES = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, dampening=0.2),
}


@pytest.mark.parametrize("name", UPDATES)
def test_the_last_update_is_what_the_weights_did(name: str):
    model = MLP.made()
    model[0].bias.requires_grad_(False)
    optimizer = UPDATES[name](model.parameters())
    for step in range(5):
        before = [p.detach().clone() for p in moving(model)]
        optimizer.zero_grad()
        MLP.loss(model, *MLP.batch(step)).backward()
        optimizer.step()
    update = last_update(optimizer, moving(model))
    assert update is not None
    for part, start, weight in zip(update, before, moving(model), strict=True):
        torch.testing.assert_close(part, weight.detach() - start, rtol=1e-3, atol=1e-7)
    assert dot(update, update) > 0


def test_an_update_that_the_state_does_not_tell_is_none():
    model = MLP.made()
    for optimizer in (torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.Adagrad(model.parameters())):
        assert last_update(optimizer, moving(model)) is None
        MLP.loss(model, *MLP.batch(0)).backward()
        optimizer.step()
        assert last_update(optimizer, moving(model)) is None
