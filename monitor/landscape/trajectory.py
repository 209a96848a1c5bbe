"""The plane in which a training moved most: principal components of its checkpoints, and their places in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monitor.landscape.directions import Direction, between, dot


@dataclass(frozen=True, slots=True)
class Plane:
    """Two directions of length 1, at right angles, through the last checkpoint."""

    directions: tuple[Direction, Direction]
    variance_explained: tuple[float, float]
    """Share of the checkpoints' variance along each."""
    x: np.ndarray
    """float64[K], distance of each checkpoint from the last along the first direction; 0 for the last."""
    y: np.ndarray
    off: np.ndarray
    """float64[K], distance of each checkpoint from the plane: what the picture does not show of it."""


def principal_plane(checkpoints: Sequence[Sequence[Tensor]]) -> Plane:
    """The plane of the first two principal components of ``checkpoints``, K lists of the same weights, the last K-1.

    Source: Li et al. 2018, https://arxiv.org/abs/1712.09913, section 7.2; from the K x K matrix of inner products, so
    that nothing of the size of the weights is decomposed.

    Raises:
        ValueError: fewer than three checkpoints, or they do not span a plane.
    """
    if len(checkpoints) < 3:
        raise ValueError(f"{len(checkpoints)} checkpoints; a plane of principal components needs 3")
    moves = [between(checkpoints[-1], one) for one in checkpoints]
    count = len(moves)
    inner = np.array([[dot(moves[i], moves[j]) if j <= i else 0.0 for j in range(count)] for i in range(count)])
    inner += np.tril(inner, -1).T
    centring = np.eye(count) - 1 / count
    variance, vectors = np.linalg.eigh(centring @ inner @ centring)
    variance, vectors = variance[::-1], vectors[:, ::-1]
    if not np.isfinite(variance).all() or variance[1] <= 1e-10 * variance[0] or variance[0] <= 0:
        raise ValueError("the checkpoints lie on one line or at one place, so they span no plane")
    weights = (centring @ vectors[:, :2]) / np.sqrt(variance[:2])  # [K, 2]: each direction as a sum of moves
    x, y = (inner @ weights).T
    off = np.sqrt(np.maximum(np.diag(inner) - x**2 - y**2, 0.0))
    first, second = (_combined(moves, weights[:, column]) for column in (0, 1))
    shares = variance[:2] / np.maximum(variance, 0.0).sum()
    return Plane((first, second), (float(shares[0]), float(shares[1])), x, y, off)


@torch.no_grad()
def _combined(moves: Sequence[Direction], weights: np.ndarray) -> Direction:
    total = [torch.zeros_like(part) for part in moves[0]]
    for move, weight in zip(moves, weights.tolist(), strict=True):
        torch._foreach_add_(total, move, alpha=weight)
    return total
