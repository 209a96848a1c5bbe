"""Products of the Hessian with vectors, and what they tell: curvature along a direction, eigenvalues, trace.

    with Hessian(model, loss_fn) as hessian:
        hessian.along(hessian.gradient)                  # gᵀHg / gᵀg
        eigenvalues(hessian, 3).values                   # the largest three
        trace(hessian, samples=32)

One product costs about two gradients. Attention runs by its mathematical kernel meanwhile, because the fast ones have
no second derivative; whatever else has none (a compiled model, kernels of one's own) is differentiated by central
differences of gradients, and ``method`` says so.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from monitor.landscape.directions import Direction, dot, norm, scaled
from monitor.landscape.surface import LossFn
from monitor.landscape.undisturbed import Borrowed, moving, undisturbed

DOUBLE, DIFFERENCES = "double backward", "differences of gradients"
DENSE = 32
"""Up to so many weights the whole matrix is made."""
TOLERANCE = 1e-4
"""Relative error at which an eigenvalue is taken as found. Our judgement: a limit is known to fewer digits."""
MOST_PRODUCTS = 400
REACH_OF_GRADIENT = 3.0
"""In steps to the bottom of the parabola that gradient and curvature give."""
_NO_SECOND = ("derivative for", "double backward", "does not require grad", "not implemented", "differentiate twice")
"""What torch says of an operation that has no second derivative."""


class Hessian:
    """The second derivative of one loss at the model's present weights, as products with vectors. A context manager.

    ``loss_fn`` gives a tensor; it runs in eval mode, always from the same random state, and does not communicate (under
    DistributedDataParallel call the module inside). The model is given back as it was, bit for bit, gradients
    included. Under autocast the products have the precision of its type: three digits or fewer in bfloat16.

    Args:
        method: ``DOUBLE``, ``DIFFERENCES``, or None: the first, where it can be had.
        scale: P of P⁻¹H, a positive tensor for each moving weight: products are then of P^-1/2 H P^-1/2, which has the
            eigenvalues of P⁻¹H and is symmetric.

    Raises:
        ValueError: nothing moves, or the loss is not one tensor that depends on the weights.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFn, *, method: str | None = None, scale: Sequence[Tensor] | None = None
    ) -> None:
        self._model, self._loss_fn = model, loss_fn
        self._parameters = moving(model)
        self._roots = None if scale is None else [part.sqrt() for part in scale]
        self._wanted = method
        self._graph: Sequence[Tensor] | None = None
        self._stack = contextlib.ExitStack()
        self._borrowed: Borrowed | None = None
        self._reach = 0.0
        self.products = 0
        """How many were made."""
        self.method = method or DOUBLE
        self.loss = math.nan
        self.gradient: Direction = []

    def __enter__(self) -> Hessian:
        with contextlib.ExitStack() as stack:
            self._borrowed = stack.enter_context(undisturbed(self._model))
            self._prepare()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._graph = None
        self._stack.close()

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self._parameters)

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors: float64 where a weight is, else float32."""
        widest = torch.float32
        for parameter in self._parameters:
            widest = torch.promote_types(widest, parameter.dtype)
        return widest

    def _prepare(self) -> None:
        assert self._borrowed is not None
        if any(parameter.is_complex() for parameter in self._parameters):
            raise ValueError("the Hessian of complex weights is not taken")
        if self._wanted != DIFFERENCES:
            try:
                self._graph = self._gradient(create_graph=True)
                self._product_by_graph([torch.ones_like(one) for one in self._parameters])
            except RuntimeError as error:
                if self._wanted == DOUBLE or not any(word in str(error).lower() for word in _NO_SECOND):
                    raise
                self._graph, self.method = None, DIFFERENCES
        gradient = self._graph if self._graph is not None else self._gradient(create_graph=False)
        self.gradient = [part.detach().clone() for part in gradient]
        # Truncation grows with h², rounding with eps / h: the least of both is near the third root.
        eps = max(torch.finfo(parameter.dtype).eps for parameter in self._parameters)
        self._reach = eps ** (1 / 3) * (1 + norm(self._borrowed.saved))

    def _gradient(self, *, create_graph: bool) -> Sequence[Tensor]:
        assert self._borrowed is not None
        self._borrowed.same_randomness()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            loss = self._loss_fn()
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise ValueError(
                    "loss_fn must return one number as a tensor that depends on the weights, computed where it is "
                    "called: not .item(), not under torch.no_grad()"
                )
            gradient = torch.autograd.grad(
                loss.reshape(()), self._parameters, create_graph=create_graph, materialize_grads=True
            )
        if create_graph and _cuts_second_derivatives(loss):
            raise RuntimeError("an operation of the model is not implemented to be differentiated twice")
        if math.isnan(self.loss):
            self.loss = float(loss.detach())  # SYNC: a landscape is out of the loop's own path
        return gradient

    def product(self, vector: Sequence[Tensor]) -> Direction:
        """H v, or P^-1/2 H P^-1/2 v."""
        self.products += 1
        if self._roots is not None:
            vector = [part / root for part, root in zip(vector, self._roots, strict=True)]
        result = self._product_by_graph(vector) if self._graph is not None else self._product_by_differences(vector)
        if self._roots is not None:
            result = [part / root for part, root in zip(result, self._roots, strict=True)]
        return result

    def _product_by_graph(self, vector: Sequence[Tensor]) -> Direction:
        assert self._graph is not None
        pairs = [(one, part.to(one.dtype)) for one, part in zip(self._graph, vector, strict=True) if one.requires_grad]
        if not pairs:
            return [torch.zeros_like(parameter) for parameter in self._parameters]  # the loss is linear
        outputs, along = zip(*pairs, strict=True)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            found = torch.autograd.grad(
                outputs, self._parameters, along, retain_graph=True, materialize_grads=True, allow_unused=True
            )
        return [part.detach() for part in found]

    @torch.no_grad()
    def _product_by_differences(self, vector: Sequence[Tensor]) -> Direction:
        assert self._borrowed is not None
        length = norm(vector)
        if not length:
            return [torch.zeros_like(parameter) for parameter in self._parameters]
        step = self._reach / length
        sides = []
        for sign in (1, -1):
            for weight, start, along in zip(self._borrowed.weights, self._borrowed.saved, vector, strict=True):
                weight.copy_(start + sign * step * along)
            sides.append(self._gradient(create_graph=False))
        for weight, start in zip(self._borrowed.weights, self._borrowed.saved, strict=True):
            weight.copy_(start)
        return [(ahead - behind) / (2 * step) for ahead, behind in zip(*sides, strict=True)]

    def along(self, direction: Sequence[Tensor]) -> float:
        """dᵀHd / dᵀd; NaN for a direction of length 0. Cohen et al. 2021 call it directional smoothness of the step."""
        length = dot(direction, direction)
        return dot(direction, self.product(direction)) / length if length else math.nan

    # As scipy wants it -----------------------------------------------------------------------------------------------

    def flat(self, vector: Sequence[Tensor]) -> np.ndarray:
        """[size], on the host."""
        return torch.cat([part.detach().reshape(-1).to("cpu", self.dtype) for part in vector]).numpy()

    def unflat(self, vector: np.ndarray) -> Direction:
        """A direction from [size] numbers."""
        whole = torch.from_numpy(np.ascontiguousarray(vector)).reshape(-1)
        parts = whole.split([parameter.numel() for parameter in self._parameters])
        return [
            part.to(parameter.device, self.dtype).view(parameter.shape)
            for part, parameter in zip(parts, self._parameters, strict=True)
        ]


def _cuts_second_derivatives(loss: Tensor) -> bool:
    """Whether a ``once_differentiable`` function lies behind ``loss``: torch may leave its part out without a word."""
    seen: set[object] = set()
    ahead: list[Any] = [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        own = getattr(node, "_forward_cls", None)
        if own is not None and hasattr(own.backward, "__wrapped__"):
            return True
        ahead += [following for following, _ in node.next_functions]
    return False


@dataclass(frozen=True, slots=True)
class Eigenvalues:
    """The largest eigenvalues, as far as they were found."""

    values: np.ndarray
    """float64[k], largest first; fewer than asked for when the budget ended first."""
    vectors: np.ndarray
    """[size, k], of length 1."""
    converged: bool


class _Enough(Exception):
    """The budget is used up."""


def eigenvalues(
    hessian: Hessian,
    count: int = 1,
    *,
    tolerance: float = TOLERANCE,
    most_products: int = MOST_PRODUCTS,
    start: np.ndarray | None = None,
    seed: int = 0,
    ends: float = math.inf,
    progress: Callable[[], None] | None = None,
) -> Eigenvalues:
    """The ``count`` largest eigenvalues (not in magnitude: negative ones are last) by scipy's Lanczos method.

    Args:
        start: vector to begin with; that of the largest eigenvalue some steps ago saves most of the products.
        ends: time on the monotonic clock after which no further product is made.
        progress: called after each product.
    """
    size = hessian.size
    if size <= max(DENSE, count + 1):
        return _dense(hessian, count)
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh  # half a second, only here

    made = 0

    def product(vector: np.ndarray) -> np.ndarray:
        nonlocal made
        if made >= most_products or time.monotonic() >= ends:
            raise _Enough
        made += 1
        result = hessian.flat(hessian.product(hessian.unflat(vector)))
        if not np.isfinite(result).all():
            raise _Enough  # the loss is not finite here, so nothing will be found
        if progress is not None:
            progress()
        return result

    kind = np.float64 if hessian.dtype == torch.float64 else np.float32
    operator = LinearOperator((size, size), matvec=product, dtype=kind)
    begin = np.random.default_rng(seed).standard_normal(size) if start is None else start
    none = Eigenvalues(np.empty(0), np.empty((size, 0)), False)
    try:
        values, vectors = eigsh(
            operator, k=count, which="LA", tol=tolerance, v0=begin.astype(kind), ncv=min(size, max(2 * count + 1, 12))
        )
    except _Enough:
        return none
    except ArpackNoConvergence as partial:
        values, vectors = partial.eigenvalues, partial.eigenvectors
    order = np.argsort(values)[::-1]
    return Eigenvalues(values[order].astype(np.float64), vectors[:, order], len(values) == count)


def _dense(hessian: Hessian, count: int) -> Eigenvalues:
    columns = [hessian.flat(hessian.product(hessian.unflat(unit))) for unit in np.eye(hessian.size)]
    matrix = np.stack(columns, axis=1).astype(np.float64)
    if not np.isfinite(matrix).all():
        return Eigenvalues(np.empty(0), np.empty((hessian.size, 0)), False)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return Eigenvalues(values[::-1][:count], vectors[:, ::-1][:, :count], True)


@dataclass(frozen=True, slots=True)
class Trace:
    """The sum of the eigenvalues, estimated."""

    mean: float
    error: float
    """One standard error of ``mean``; NaN with fewer than two samples."""
    samples: int


def trace(
    hessian: Hessian, samples: int = 32, *, seed: int = 0, ends: float = math.inf,
    progress: Callable[[], None] | None = None, products: list[float] | None = None,
) -> Trace:  # fmt: skip
    """Mean of zᵀHz over vectors z of random signs.

    Args:
        products: filled with each zᵀHz, for who is interrupted meanwhile.

    Source: Hutchinson 1990, https://doi.org/10.1080/03610919008812866.
    """
    found = [] if products is None else products
    for signs in _random_signs(hessian, samples, seed):
        if time.monotonic() >= ends:
            break
        found.append(dot(signs, hessian.product(signs)))
        if progress is not None:
            progress()
    return trace_of(found)


def trace_of(products: Sequence[float]) -> Trace:
    """The estimate from some zᵀHz; NaN from none."""
    with np.errstate(invalid="ignore"):
        error = float(np.std(products, ddof=1) / math.sqrt(len(products))) if len(products) > 1 else math.nan
        return Trace(float(np.mean(products)) if products else math.nan, error, len(products))


def _random_signs(hessian: Hessian, samples: int, seed: int) -> Iterator[Direction]:
    generator = np.random.default_rng(seed)
    for _ in range(samples):
        yield hessian.unflat(generator.choice(np.array([-1.0, 1.0]), hessian.size))


def descent(model: nn.Module, loss_fn: LossFn) -> tuple[Direction, float]:
    """Minus the gradient, and how far along it is worth looking: ``REACH_OF_GRADIENT`` steps to the bottom.

    Where the parabola has no bottom ahead, as far as a tenth of the weights' norm.
    """
    with Hessian(model, loss_fn) as hessian:
        step = step_to_the_bottom(hessian)
        gradient = hessian.gradient
    if math.isnan(step):
        step = 0.1 * norm([weight.detach() for weight in moving(model)]) / max(norm(gradient), 1e-30)
    return scaled(gradient, -1.0), REACH_OF_GRADIENT * step


def step_to_the_bottom(hessian: Hessian) -> float:
    """gᵀg / gᵀHg: how far along minus the gradient the parabola through here has its bottom; NaN where it has none."""
    curvature = hessian.along(hessian.gradient)
    return 1 / curvature if curvature > 0 else math.nan
