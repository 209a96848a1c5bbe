"""Everything about the curvature at one place: is the learning rate too high now?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from monitor.landscape.directions import Direction, last_update, norm
from monitor.landscape.hessian import TOLERANCE, Eigenvalues, Hessian, Trace, eigenvalues, trace, trace_of
from monitor.landscape.stability import Stability, stability
from monitor.landscape.surface import LossFn
from monitor.landscape.undisturbed import moving

NO_TRACE = Trace(math.nan, math.nan, 0)


@dataclass(frozen=True, slots=True)
class Curvature:
    """The Hessian at the present weights, of one batch's loss. NaN where something was not asked for or not found."""

    loss: float
    gradient_norm: float
    along_gradient: float
    """gᵀHg / gᵀg."""
    along_update: float
    """The same of the last update."""
    eigenvalues: tuple[float, ...]
    """The largest of H, largest first."""
    trace: Trace
    sharpness: float
    """The largest eigenvalue of H, or of P⁻¹H where ``stability`` is of that."""
    residual: float
    """Of its vector, |Hv - λv| over |λ|: an eigenvalue is no further away. Known before ``sharpness`` is found."""
    stability: Stability | None
    """The limit for ``sharpness``; None when the optimizer's is not known."""
    method: str
    """Of the Hessian-vector products."""
    products: int
    """How many were made; each costs about two and a half gradients."""
    vector: np.ndarray | None = None
    """float[size], of the largest eigenvalue of ``sharpness``: the next look may start from it."""

    @property
    def over_limit(self) -> float:
        """``sharpness`` over the limit of stability: above 1 the steps swing further and further."""
        return self.sharpness / self.stability.limit if self.stability is not None else math.nan

    def detail(self) -> dict[str, Any]:
        """As a run keeps it; see FORMAT.md, "Landscape samples"."""
        held = self.stability
        found = {
            "method": self.method, "products": self.products, "gradient_norm": self.gradient_norm,
            "along_gradient": self.along_gradient, "along_update": self.along_update,
            "eigenvalues": list(self.eigenvalues), "trace": self.trace.mean, "trace_error": self.trace.error,
            "trace_samples": self.trace.samples, "sharpness": self.sharpness, "residual": self.residual,
        }  # fmt: skip
        if held is not None:
            found |= {"limit": held.limit, "rule": held.rule, "lr": held.lr, "preconditioned": held.preconditioned}
        return {key: value for key, value in found.items() if not (isinstance(value, float) and math.isnan(value))}


def curvature(
    model: nn.Module,
    loss_fn: LossFn,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    count: int = 1,
    sharpness_only: bool = False,
    trace_samples: int = 0,
    update: Direction | None = None,
    tolerance: float = TOLERANCE,
    start: np.ndarray | None = None,
    budget_s: float = math.inf,
    seed: int = 0,
    method: str | None = None,
    progress: Callable[[int], None] | None = None,
    interrupted: Callable[[Curvature], None] | None = None,
) -> Curvature:
    """Measure the curvature of ``loss_fn`` at the model's weights, in this order, as far as the budget reaches.

    Gradient and update (two products), sharpness against the limit (some ten, five where a residual of a tenth will
    do), the largest eigenvalues (some twenty; the same where nothing is preconditioned), the trace (one product a
    sample). The model is given back as it was, bit for bit.

    Args:
        loss_fn: gives a tensor of one number that depends on the weights; runs in eval mode.
        optimizer: for the limit, the preconditioner and the last update.
        count: eigenvalues; 0 for none, which leaves the sharpness out too.
        sharpness_only: leave out the eigenvalues of H itself where the sharpness is that of P⁻¹H.
        update: the last update, where it is known better than from the optimizer's state.
        start: ``Curvature.vector`` of a look some steps ago.
        progress: called with the number of products made.
        interrupted: called with what was found when a KeyboardInterrupt comes, which goes on afterwards.

    Raises:
        ValueError: see ``Hessian``.
    """
    ends, made = time.monotonic() + budget_s, 0

    def one_more() -> None:
        nonlocal made
        made += 1
        if progress is not None:
            progress(made)

    parameters = moving(model)
    held = stability(optimizer, parameters) if optimizer is not None else None
    if update is None and optimizer is not None:
        update = last_update(optimizer, parameters)
    options: dict[str, Any] = {"tolerance": tolerance, "ends": ends, "progress": one_more, "seed": seed}
    with Hessian(model, loss_fn, method=method) as hessian:
        found = Curvature(
            loss=hessian.loss,
            gradient_norm=norm(hessian.gradient),
            along_gradient=hessian.along_gradient,
            along_update=math.nan if update is None else hessian.along(update),
            eigenvalues=(),
            trace=NO_TRACE,
            sharpness=math.nan,
            residual=math.nan,
            stability=held,
            method=hessian.method,
            products=0,
        )
        along: list[float] = []
        first = hessian.products
        scale = held.scale if held is not None else None
        try:
            if count and scale is not None:
                top = eigenvalues(hessian, 1, scale=scale, start=start, **options)
                found = replace(found, **_sharpness(top))
            if count and not (scale is not None and sharpness_only):
                largest = eigenvalues(hessian, count, start=start if scale is None else None, **options)
                found = replace(found, eigenvalues=tuple(largest.values[largest.found].tolist()))
                if scale is None:
                    found = replace(found, **_sharpness(largest))
            if trace_samples:
                trace(hessian, trace_samples, seed=seed, ends=ends, progress=one_more, products=along)
        except KeyboardInterrupt:
            if interrupted is not None:
                interrupted(replace(found, trace=trace_of(along), products=made + first))
            raise
        if along:
            found = replace(found, trace=trace_of(along))
        return replace(found, products=hessian.products)


def _sharpness(top: Eigenvalues) -> dict[str, Any]:
    """The first of them as fields of ``Curvature``; a value that is not found yet is none, its vector a beginning."""
    if not len(top.values):
        return {}
    known = {"vector": np.ascontiguousarray(top.vectors[:, 0]), "residual": float(top.residuals[0])}
    return known | ({"sharpness": float(top.values[0])} if top.found[0] else {})
