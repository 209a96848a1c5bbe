"""One look at the loss landscape during training: what a small relative change of the weights does to the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from monitor.landscape.directions import Direction, Mover, last_update, random_direction
from monitor.landscape.hessian import descent
from monitor.landscape.surface import LossFn, Surface, axis, fill, one_number, visit
from monitor.landscape.undisturbed import Borrowed, moving, undisturbed

RADIUS = 0.05
"""Relative size of the perturbations: each filter moves by this share of its own norm. Our judgement: large against a
training step, small against the distance to another basin."""
PERTURBATIONS = 8
LINE_RADIUS = 0.5
LINE_POINTS = 11
REACH_OF_UPDATE = 10.0
"""In last updates."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Losses at some places near the weights."""

    kind: str
    """``perturbation``: independent random directions, all at ``radius``. ``line``: one, from -radius to +radius."""
    direction: str
    radius: float
    coords: np.ndarray
    """float64[N]. perturbation: the number of the direction; line: the signed distance."""
    loss: np.ndarray
    """float64[N], in the unit of the loss function; NaN or infinity where it really was."""
    unit: str = ""
    """Of the distance, as FORMAT.md names it; "" for the norms of the filters."""

    @property
    def middle(self) -> float:
        """The loss of the weights themselves, as a line has it; NaN where it has not."""
        return float(self.loss[self.coords == 0].sum()) if (self.coords == 0).any() else math.nan


@dataclass(frozen=True, slots=True)
class Sample:
    """Everything taken at one step."""

    baseline: float
    """Loss of the undisturbed weights, in eval mode."""
    perturbation: Slice
    line: Slice

    @property
    def mean(self) -> float:
        """Mean loss over the perturbations."""
        return float(np.mean(self.perturbation.loss))

    @property
    def variance(self) -> float:
        """Unbiased variance of the loss over the perturbations; NaN or infinity when a loss is."""
        with np.errstate(invalid="ignore"):
            return float(np.var(self.perturbation.loss, ddof=1))


def sample_landscape(
    model: nn.Module,
    loss_fn: LossFn,
    *,
    radius: float = RADIUS,
    perturbations: int = PERTURBATIONS,
    line_radius: float = LINE_RADIUS,
    points: int = LINE_POINTS,
    seed: int = 0,
    split: bool = False,
) -> Sample:
    """Evaluate ``loss_fn`` at perturbed weights of ``model`` and put everything back.

    Args:
        loss_fn: the loss of one fixed batch under the model's present weights; ``1 + perturbations + points`` calls. It
            runs in eval mode, without gradients, and from the same random state each time.
        radius: size of the perturbations relative to each filter's norm.
        perturbations: directions for mean and variance, at least 2.
        line_radius, points: reach of the line to both sides, and number of points on it, odd: the middle one is the
            weights themselves.
        seed: of the directions; the same seed gives the same directions.
        split: share the work out over all ranks, as ``surface.fill`` does.

    Raises:
        ValueError: a number outside of what is accepted; or ``loss_fn`` does not return one number.
    """
    if perturbations < 2 or points < 3 or points % 2 == 0 or not (radius > 0 and line_radius > 0):
        raise ValueError(
            f"radius={radius}, perturbations={perturbations}, line_radius={line_radius}, points={points}; accepted are "
            "radii above 0, at least 2 perturbations and an odd number of at least 3 points"
        )
    near, line = Surface.blank(np.arange(float(perturbations))), Surface.blank(axis(line_radius, points))
    with undisturbed(model) as borrowed:
        baseline = _loss(loss_fn, borrowed)

        def perturb(number: float) -> None:
            direction = random_direction(borrowed.saved, seed, 1 + int(number))
            Mover(borrowed.weights, borrowed.saved, direction).to(radius)

        visit(near, borrowed, loss_fn, perturb, split=split)
        fill(line, borrowed, loss_fn, [random_direction(borrowed.saved, seed)], split=split)
    return Sample(
        baseline,
        _slice("perturbation", "filter-normalised gaussian", radius, near),
        _slice("line", f"filter-normalised gaussian, seed {seed}", line_radius, line),
    )


Way = tuple[str, Direction, float]
"""Its name, where it goes, and how far to both sides."""


def slices_ahead(
    model: nn.Module,
    loss_fn: LossFn,
    optimizer: torch.optim.Optimizer | None,
    *,
    points: int = LINE_POINTS,
    split: bool = False,
) -> list[Slice]:
    """The loss along the last update, where the optimizer's state tells it, and along minus the gradient.

    Both go as far back as ahead. The gradient is that of ``loss_fn``, which must give a tensor for it.

    Args:
        split: share the points out over all ranks, as ``surface.fill`` does, along the directions that rank 0 has.
            Whatever fails on one rank, it takes part in what the others wait for, and raises afterwards.
    """
    failures: list[Exception] = []
    ways: list[Way] = []
    if not split or dist.get_rank() == 0:
        try:
            ways = _ways_ahead(model, loss_fn, optimizer)
        except Exception as error:
            failures.append(error)
    if split:
        ways = _as_rank_0(ways, moving(model))
    found = []
    with undisturbed(model) as borrowed:
        for name, direction, reach in ways:
            line = Surface.blank(axis(reach, points))
            try:
                fill(line, borrowed, loss_fn, [direction], split=split)
            except Exception as error:
                failures.append(error)
            found.append(_slice("line", name, reach, line, unit=name))
    if failures:
        raise failures[0]
    return found


def _ways_ahead(model: nn.Module, loss_fn: LossFn, optimizer: torch.optim.Optimizer | None) -> list[Way]:
    moves = last_update(optimizer, moving(model)) if optimizer is not None else None
    ways = [] if moves is None else [("update", moves, REACH_OF_UPDATE)]
    ways.append(("gradient", *descent(model, loss_fn)))
    # A gradient that is zero or not finite is no way ahead.
    return [way for way in ways if math.isfinite(way[2]) and way[2] > 0]


def _as_rank_0(ways: list[Way], weights: Sequence[nn.Parameter]) -> list[Way]:
    """The ways of rank 0 on every rank."""
    device = weights[0].device
    box = [[(name, reach) for name, _, reach in ways]]
    # pickled, but between processes of one training and never from a file
    dist.broadcast_object_list(box, src=0, device=device)
    shared = []
    for number, (name, reach) in enumerate(box[0]):
        own = ways[number][1] if number < len(ways) else [torch.zeros_like(weight) for weight in weights]
        whole = torch.cat([part.detach().reshape(-1).float() for part in own])
        dist.broadcast(whole, src=0)
        parts = whole.split([weight.numel() for weight in weights])
        direction = [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]
        shared.append((name, direction, reach))
    return shared


def _slice(kind: str, direction: str, radius: float, known: Surface, unit: str = "") -> Slice:
    coords, loss = known.points()
    return Slice(kind, direction, radius, coords, loss, unit)


def _loss(loss_fn: LossFn, borrowed: Borrowed) -> float:
    borrowed.same_randomness()
    return float(one_number(loss_fn()))  # SYNC: a landscape sample is out of the loop's own path
