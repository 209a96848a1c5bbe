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


def width(coords: np.ndarray, loss: np.ndarray, rise: float) -> float:
    """Length of the stretch around 0 in which the loss stays below L(0) + ``rise``; straight lines between points.

    Infinite when it does so up to both ends (of what was looked at); NaN without a loss at 0. A NaN counts as above.
    """
    order = np.argsort(coords)
    t, own = coords[order], np.where(np.isnan(loss[order]), np.inf, loss[order])
    (middle,) = np.nonzero(t == 0)
    if len(middle) != 1 or not np.isfinite(own[middle[0]]):
        return float("nan")
    level = own[middle[0]] + rise
    reach = [_first_crossing(sign * t[middle[0] :: sign], own[middle[0] :: sign], level) for sign in (1, -1)]
    return float(sum(reach))


def _first_crossing(distance: np.ndarray, loss: np.ndarray, level: float) -> float:
    over = np.nonzero(loss > level)[0]
    if not len(over):
        return float("inf")
    at = over[0]
    below, above = loss[at - 1], loss[at]
    share = (level - below) / (above - below) if np.isfinite(above) else 0.0
    return float(distance[at - 1] + share * (distance[at] - distance[at - 1]))


def average_sharpness(losses: np.ndarray, baseline: float) -> float:
    """Mean rise of the loss under random perturbations of one size.

    Source: Neyshabur et al. 2017, https://arxiv.org/abs/1706.08947, expected sharpness; as average-case sharpness in
    Andriushchenko et al. 2023, https://arxiv.org/abs/2302.07011.
    """
    with np.errstate(invalid="ignore"):
        return float(np.mean(losses) - baseline)


def worst_sharpness(losses: np.ndarray, baseline: float) -> float:
    """100 (max L - L(0)) / (1 + L(0)) over the points looked at: a lower bound of what is defined with a maximum.

    Source: Keskar et al. 2017, https://arxiv.org/abs/1609.04836, metric 2.1.
    """
    highest = float(np.max(np.where(np.isnan(losses), np.inf, losses)))
    return 100 * (highest - baseline) / (1 + baseline)
