"""Numbers that say how a loss lies around the weights. Of arrays alone, without torch.

Each is a choice among several in use, so each names its source.
"""

from __future__ import annotations

import numpy as np


def barrier(coords: np.ndarray, loss: np.ndarray) -> tuple[float, float]:
    """Height of the barrier between two checkpoints at 0 and 1, and where it is.

    The largest L(t) - ((1 - t) L(0) + t L(1)) for t from 0 to 1; 0 when the loss lies nowhere above that straight line.
    NaN when an end is missing or not finite; infinite when the loss between them is infinite or NaN.

    Source: Frankle et al. 2020, https://arxiv.org/abs/1912.05671, section 2, with the straight line instead of the mean
    of the ends, as Entezari et al. 2022, https://arxiv.org/abs/2110.06296, definition 2.2.
    """
    inside = (coords >= 0) & (coords <= 1)
    t, own = coords[inside], loss[inside]
    ends = [own[t == end] for end in (0, 1)]
    if any(len(end) != 1 or not np.isfinite(end[0]) for end in ends):
        return float("nan"), float("nan")
    above = np.where(np.isnan(own), np.inf, own) - ((1 - t) * ends[0][0] + t * ends[1][0])
    highest = int(np.argmax(above))
    return max(0.0, float(above[highest])), float(t[highest])


def curvature_at_zero(coords: np.ndarray, loss: np.ndarray) -> float:
    """(L(h) - 2 L(0) + L(-h)) / h² with the smallest h that is there on both sides; NaN without one."""
    place = {float(at): float(value) for at, value in zip(coords, loss, strict=True)}
    both = [at for at in place if at > 0 and -at in place]
    if 0.0 not in place or not both:
        return float("nan")
    step = min(both)
    return (place[step] - 2 * place[0.0] + place[-step]) / step**2
