"""Surfaces: right numbers in any order, coarse to fine, stopped and continued, on one rank or several."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monitor.landscape.directions import between, filter_normalised, random_direction
from monitor.landscape.measures import barrier, curvature_at_zero
from monitor.landscape.surface import Surface, axis, coarse_to_fine, fill, levels
from monitor.landscape.trajectory import principal_plane
from monitor.landscape.undisturbed import moving, undisturbed
from tests.monitor.hook.problems import CNN, GPT, MLP_DROPOUT, Problem
from tests.monitor.landscape.test_sample import _everything, _same


class Bowl(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))

    def forward(self) -> Tensor:
        return (self.w * self.w * torch.tensor([1.0, 10.0])).sum() / 2


def swept(model: nn.Module, loss, axes, directions, **options) -> Surface:
    surface = Surface.blank(*axes)
    with undisturbed(model) as borrowed:
        fill(surface, borrowed, loss, directions, **options)
    return surface


def test_a_quadratic_is_a_quadratic():
    model = Bowl()
    one, two = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    x, y = axis(2.0, 9), axis(1.0, 5)
    surface = swept(model, model, (x, y), [[one], [two]])
    expected = ((3 + x[:, None]) ** 2 + 10 * (-4 + y[None, :]) ** 2) / 2
    np.testing.assert_allclose(surface.loss, expected, rtol=1e-12)
    line = swept(model, model, (x,), [[two]])
    assert curvature_at_zero(x, line.loss) == pytest.approx(10)
    assert surface.complete and model.w.tolist() == [3, -4]


@pytest.mark.parametrize("problem", [MLP_DROPOUT, CNN, GPT], ids=lambda problem: problem.name)
def test_a_plane_is_what_a_slow_twin_makes_of_copies(problem: Problem):
    model = problem.made()
    next(model.parameters()).requires_grad_(False)  # frozen: it stays
    before = _everything(model)
    axes = axis(0.5, 5), axis(0.3, 3)
    weights = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    directions = [random_direction(weights, 3, number) for number in (0, 1)]
    surface = swept(model, lambda: problem.loss(model, *problem.batch(0)), axes, directions)
    for i, a in enumerate(axes[0]):
        for j, b in enumerate(axes[1]):
            twin = copy.deepcopy(model).eval()
            moved = [p for p in twin.parameters() if p.requires_grad]
            for parameter, weight, one, two in zip(moved, weights, *directions, strict=True):
                parameter.data = (weight.double() + a * one.double() + b * two.double()).float()
            with torch.no_grad():
                assert surface.loss[i, j] == pytest.approx(problem.loss(twin, *problem.batch(0)).item(), rel=1e-5)
    assert _same(before, _everything(model))


def test_tied_weights_move_once():
    model = GPT.made()
    assert model.head.weight is model.token.weight
    assert len(moving(model)) == len(list(model.parameters())) == len({id(p) for p in moving(model)})


def test_filter_normalised_surfaces_do_not_see_a_rescaling_of_relu_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 5)).double()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(7.3), other[0].bias.mul_(7.3), other[2].weight.div_(7.3)
    x, y = torch.randn(30, 10).double(), torch.randint(0, 5, (30,))
    found = []
    for one in (model, other):
        directions = [random_direction([p.data for p in one.parameters()], 0, number) for number in (0, 1)]
        loss = lambda one=one: nn.functional.cross_entropy(one(x), y)  # noqa: E731
        found.append(swept(one, loss, (axis(1.0, 5), axis(1.0, 5)), directions).loss)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10)
    assert np.ptp(found[0]) > 0.1
    plain = [torch.randn_like(p) for p in model.parameters()]
    rough = [swept(one, lambda one=one: nn.functional.cross_entropy(one(x), y), (axis(0.2, 3),), [plain]).loss
             for one in (model, other)]  # fmt: skip
    assert abs(rough[0] - rough[1]).max() > 1e-3  # without the normalisation they differ


def test_bfloat16_weights_are_moved_as_if_they_were_wide():
    torch.manual_seed(0)
    model = nn.Linear(20, 4).bfloat16()
    start = [p.detach().clone() for p in model.parameters()]
    directions = [filter_normalised([p.float() for p in start], seed) for seed in (1, 2)]
    seen = {}

    def loss() -> float:
        seen[len(seen)] = [p.detach().clone() for p in model.parameters()]
        return 0.0

    swept(model, loss, (axis(0.1, 3), axis(0.1, 3)), directions)
    order = [point for level in coarse_to_fine(np.zeros((3, 3), bool)) for point in level]
    for number, (i, j) in enumerate(order):
        for own, at, one, two in zip(seen[number], start, *directions, strict=True):
            expected = (at.float() + axis(0.1, 3)[i] * one + axis(0.1, 3)[j] * two).bfloat16()
            assert torch.equal(own, expected)


def test_under_autocast_as_without_a_sample():
    model = CNN.made()

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return CNN.loss(model, *CNN.batch(0))

    model.eval()
    with torch.no_grad():
        plain = loss().item()
    model.train()
    surface = swept(model, loss, (axis(0.5, 3),), [random_direction([p.data for p in model.parameters()], 0)])
    assert surface.loss[1] == plain
    loss().backward()
    assert all(p.grad is not None for p in model.parameters())


# Order, budget, interruption ------------------------------------------------------------------------------------------


def test_levels_are_regular_sub_grids_with_the_middle():
    assert levels(51, 51) == [(25, 25), (5, 5), (1, 1)]
    assert levels(11) == [(5,), (1,)] and levels(3) == [(1,)]
    assert levels(9, 3) == [(4, 1), (2, 1), (1, 1)]
    for sizes in [(51, 51), (3, 21), (15,), (2,), (10, 7)]:
        visited = [set(level) for level in coarse_to_fine(np.zeros(sizes, bool))]
        assert sum(map(len, visited)) == math.prod(sizes) == len(set().union(*visited))
        if all(size % 2 for size in sizes):
            assert tuple(size // 2 for size in sizes) in visited[0] or 3 not in map(len, visited[:1])
        assert (0,) * len(sizes) in visited[0] and tuple(size - 1 for size in sizes) in visited[0]


def test_stopped_and_continued_is_the_same_as_in_one_go():
    model = GPT.made()
    before = _everything(model)
    axes = axis(1.0, 5), axis(1.0, 5)
    directions = [random_direction([p.data for p in model.parameters()], 0, number) for number in (0, 1)]
    calls = []

    def loss() -> Tensor:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return GPT.loss(model, *GPT.batch(0))

    parts = Surface.blank(*axes)
    with pytest.raises(KeyboardInterrupt), undisturbed(model) as borrowed:
        fill(parts, borrowed, loss, directions)
    assert _same(before, _everything(model))
    assert parts.known.sum() == 7 and not parts.complete
    kept = Surface.blank(*axes)
    kept.take(*parts.points())  # by way of the disk
    assert np.array_equal(kept.known, parts.known)
    with undisturbed(model) as borrowed:
        assert fill(kept, borrowed, loss, directions)
    assert len(calls) == 8 + 18  # nothing twice
    whole = swept(model, loss, axes, directions)
    assert np.array_equal(kept.loss, whole.loss)


def test_a_budget_ends_at_a_point_and_progress_is_told():
    model = Bowl()
    now = iter(np.arange(1000.0)).__next__
    surface, told = Surface.blank(axis(1.0, 51)), []
    with undisturbed(model) as borrowed:
        direction = [[torch.ones(2).double()]]
        assert not fill(
            surface, borrowed, model, direction, budget_s=40, clock=now, progress=lambda *at: told.append(at)
        )
        assert 3 < surface.known.sum() < 51 and surface.known[[0, 25, 50]].all()
        assert told[-1] == (surface.known.sum(), 51)
        assert fill(surface, borrowed, model, direction) and surface.complete


def test_points_of_another_grid_are_left_out():
    surface = Surface.blank(axis(1.0, 3))
    surface.take(np.array([-1.0, 0.3, 1.0]), np.array([5.0, 6.0, np.nan]))
    assert surface.known.tolist() == [True, False, True] and math.isnan(surface.loss[2])


@pytest.mark.parametrize(("radius", "points"), [(0, 3), (1, 4), (1, 1), (math.inf, 3)])
def test_a_grid_that_is_none_is_refused(radius: float, points: int):
    with pytest.raises(ValueError, match="accepted are a radius"):
        axis(radius, points)


def test_frozen_and_sharded_models_are_explained():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="every weight of the model is frozen"), undisturbed(model):
        pass


# Between checkpoints --------------------------------------------------------------------------------------------------


def test_a_line_between_checkpoints_moves_their_running_statistics():
    first, second = CNN.made(0), CNN.made(1)
    for model, seed in ((first, 2), (second, 3)):
        model.train()
        for batch in range(3):
            model(CNN.batch(10 * seed + batch)[0])
    ends = [
        [p.data for p in m.parameters()] + [b for b in m.buffers() if b.is_floating_point()] for m in (first, second)
    ]
    before = _everything(first)
    surface = Surface.blank(np.linspace(0.0, 1.0, 5))
    with undisturbed(first, with_buffers=True) as borrowed:
        fill(surface, borrowed, lambda: CNN.loss(first, *CNN.batch(0)), [between(*ends)])
    assert _same(before, _everything(first))
    for model, loss in ((first, surface.loss[0]), (second, surface.loss[-1])):
        model.eval()
        with torch.no_grad():
            assert loss == pytest.approx(CNN.loss(model, *CNN.batch(0)).item(), rel=1e-5)


def test_barriers():
    t = np.linspace(-0.5, 1.5, 9)
    assert barrier(t, 2 + t) == (0.0, 0.0)
    height, at = barrier(t, 1 + t + 3 * t * (1 - t))
    assert (height, at) == (pytest.approx(0.75), 0.5)
    bad = np.where(t == 0.25, np.nan, 1.0)
    assert barrier(t, bad) == (np.inf, 0.25)
    assert math.isnan(barrier(t[:4], t[:4])[0])


def test_the_principal_plane_holds_a_trajectory_that_lies_in_one():
    generator = torch.Generator().manual_seed(0)
    e1, e2 = torch.linalg.qr(torch.randn(50, 2, generator=generator).double())[0].T
    angles = np.linspace(0, 2, 7)
    places = [(3 * math.cos(a), math.sin(a)) for a in angles]
    points = [[(x * e1 + y * e2)[:20], (x * e1 + y * e2)[20:].view(5, 6)] for x, y in places]
    plane = principal_plane(points)
    first, second = (torch.cat([part.flatten() for part in one]) for one in plane.directions)
    assert first @ first == pytest.approx(1) and second @ second == pytest.approx(1) and abs(first @ second) < 1e-9
    assert sum(plane.variance_explained) == pytest.approx(1) and plane.variance_explained[0] > 0.5
    assert plane.off.max() < 1e-6 and (plane.x[-1], plane.y[-1]) == (0, 0)
    for (x, y), a, b in zip(places, plane.x, plane.y, strict=True):  # back to where they were
        torch.testing.assert_close(points[-1][0] + a * first[:20] + b * second[:20], x * e1[:20] + y * e2[:20])
    matrix = np.array([[x, y] for x, y in places])
    spectrum = np.linalg.svd(matrix - matrix.mean(0))[1] ** 2
    assert plane.variance_explained[0] == pytest.approx(spectrum[0] / spectrum.sum())
    stray = [[*map(torch.clone, point)] for point in points]
    stray[2][0][:] += 0.5
    assert principal_plane(stray).off.max() > 1e-3


def test_checkpoints_that_span_no_plane_are_refused():
    line = [[torch.tensor([1.0, 2.0]) * t] for t in (1, 2, 3)]
    with pytest.raises(ValueError, match="span no plane"):
        principal_plane(line)
    with pytest.raises(ValueError, match="needs 3"):
        principal_plane(line[:2])
