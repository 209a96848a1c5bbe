"""One look at the loss landscape during training: what a small relative change of the weights does to the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from monitor.landscape.directions import Mover, last_update, random_direction
from monitor.landscape.hessian import descent
from monitor.landscape.surface import LossFn, Surface, axis, fill, one_number
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

    Raises:
        ValueError: a number outside of what is accepted; or ``loss_fn`` does not return one number.
    """
    if perturbations < 2 or points < 3 or points % 2 == 0 or not (radius > 0 and line_radius > 0):
        raise ValueError(
            f"radius={radius}, perturbations={perturbations}, line_radius={line_radius}, points={points}; accepted are "
            "radii above 0, at least 2 perturbations and an odd number of at least 3 points"
        )
    line = Surface.blank(axis(line_radius, points))
    with undisturbed(model) as borrowed:
        baseline = _loss(loss_fn, borrowed)
        near = perturbed(borrowed, loss_fn, radius=radius, count=perturbations, seed=seed)
        fill(line, borrowed, loss_fn, [random_direction(borrowed.saved, seed)])
    return Sample(
        baseline,
        Slice("perturbation", "filter-normalised gaussian", radius, np.arange(perturbations, dtype=np.float64), near),
        Slice("line", f"filter-normalised gaussian, seed {seed}", line_radius, line.axes[0], line.loss),
    )


def slices_ahead(
    model: nn.Module, loss_fn: LossFn, optimizer: torch.optim.Optimizer | None, *, points: int = LINE_POINTS
) -> list[Slice]:
    """The loss along the last update, where the optimizer's state tells it, and along minus the gradient.

    Both go as far back as ahead. The gradient is that of ``loss_fn``, which must give a tensor for it.
    """
    moves = last_update(optimizer, moving(model)) if optimizer is not None else None
    ways = [] if moves is None else [("update", moves, REACH_OF_UPDATE)]
    ways.append(("gradient", *descent(model, loss_fn)))
    found = []
    with undisturbed(model) as borrowed:
        for name, direction, reach in ways:
            if not (math.isfinite(reach) and reach > 0):  # the gradient is not finite, or zero: there is no way ahead
                continue
            line = Surface.blank(axis(reach, points))
            fill(line, borrowed, loss_fn, [direction])
            found.append(Slice("line", name, reach, line.axes[0], line.loss))
    return found


def perturbed(borrowed: Borrowed, loss_fn: LossFn, *, radius: float, count: int, seed: int) -> np.ndarray:
    """float64[count]: the loss in so many independent filter-normalised random directions, all at ``radius``."""
    losses = np.empty(count)
    for number in range(count):
        direction = random_direction(borrowed.saved, seed, 1 + number)
        Mover(borrowed.weights, borrowed.saved, direction).to(radius)
        losses[number] = _loss(loss_fn, borrowed)
    return losses


def _loss(loss_fn: LossFn, borrowed: Borrowed) -> float:
    borrowed.same_randomness()
    return float(one_number(loss_fn()))  # SYNC: a landscape sample is out of the loop's own path
