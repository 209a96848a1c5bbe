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
from dataclasses import dataclass, replace
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
"""Relative residual at which an eigenvalue is taken as found. Our judgement: a limit is known to fewer digits."""
MOST_PRODUCTS = 400
FEWEST_PRODUCTS = 4
"""After fewer a small residual may be that of another eigenvalue than the largest: seen with a start from before."""
KNOWN, NOISE = 0.3, 0.03
"""Shares of the known vector and of a random one beside the gradient in what the search begins with. With more of the
known one, a vector that others have grown past is found again: by 30 % too low in a GPT of 1 M parameters."""
_LEAST = 1e-30
BASIS = 12
"""Vectors kept for one eigenvalue, in host memory; for more of them two each and one. Our judgement."""
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

    Raises:
        ValueError: nothing moves, or the loss is not one tensor that depends on the weights.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, *, method: str | None = None) -> None:
        self._model, self._loss_fn = model, loss_fn
        self._parameters = moving(model)
        self._wanted = method
        self._graph: Sequence[Tensor] | None = None
        self._stack = contextlib.ExitStack()
        self._borrowed: Borrowed | None = None
        self._reach = 0.0
        self.products = 0
        """How many were made, the first of the gradient."""
        self.method = method or DOUBLE
        self.loss = math.nan
        self.gradient: Direction = []
        self.along_gradient = math.nan
        """gᵀHg / gᵀg; NaN where there is no slope."""

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
        # Truncation grows with h², rounding with eps / h: the least of both is near the third root.
        eps = max(torch.finfo(parameter.dtype).eps for parameter in self._parameters)
        self._reach = eps ** (1 / 3) * (1 + norm(self._borrowed.saved))
        if self._wanted != DIFFERENCES:
            try:
                self._graph = self._gradient(create_graph=True)
                self._look_along(self._graph)  # only a product tells whether there is a second derivative
                return
            except RuntimeError as error:
                if self._wanted == DOUBLE or not any(word in str(error).lower() for word in _NO_SECOND):
                    raise
                self._graph, self.method = None, DIFFERENCES
        self._look_along(self._gradient(create_graph=False))

    def _look_along(self, gradient: Sequence[Tensor]) -> None:
        self.gradient = [part.detach().clone() for part in gradient]
        self.products = 0
        self.along_gradient = self.along(self.gradient)

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
        """H v."""
        self.products += 1
        return self._product_by_graph(vector) if self._graph is not None else self._product_by_differences(vector)

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
        product, length = self.product(direction), dot(direction, direction)
        return dot(direction, product) / length if length else math.nan

    # As one vector on the host ---------------------------------------------------------------------------------------

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
    """float64[k], largest first: never above the true ones. Fewer than asked for when the budget ended first."""
    vectors: np.ndarray
    """[size, k], of length 1."""
    residuals: np.ndarray
    """float64[k], |Hv - λv| over |λ|: an eigenvalue is no further away than that, and mostly as near as its square."""
    tolerance: float

    @property
    def found(self) -> np.ndarray:
        """bool[k]: residual within the tolerance."""
        return self.residuals <= self.tolerance


def eigenvalues(
    hessian: Hessian,
    count: int = 1,
    *,
    scale: Sequence[Tensor] | None = None,
    tolerance: float = TOLERANCE,
    most_products: int = MOST_PRODUCTS,
    start: np.ndarray | None = None,
    seed: int = 0,
    ends: float = math.inf,
    progress: Callable[[], None] | None = None,
) -> Eigenvalues:
    """The ``count`` largest eigenvalues (not in magnitude: negative ones are last) by Lanczos' method.

    It stops with the first product after which all residuals are within ``tolerance``.

    Args:
        scale: P of P⁻¹H, a positive tensor for each moving weight: the eigenvalues are then those of P⁻¹H, the vectors
            those of P^-1/2 H P^-1/2, which has the same ones and is symmetric.
        start: [size], the vector of the largest eigenvalue some steps ago; one of another size is not used.
        ends: time on the monotonic clock after which no further product is made.
        progress: called after each product.

    Source: Wu and Simon 2000, https://doi.org/10.1137/S0895479898334605 (thick restarts), with all of the basis kept
    orthogonal and the projection computed.
    """
    size = hessian.size
    roots = None if scale is None else hessian.flat([part.sqrt() for part in scale])
    if size <= max(DENSE, count + 1):
        return _dense(hessian, count, roots, tolerance)
    most = min(size, max(2 * count + 1, BASIS))
    random = np.random.default_rng(seed)
    ahead = _beginning(hessian, roots, start, random)
    basis = torch.empty(most, size, dtype=ahead.dtype)
    small = np.zeros((most, most))  # the matrix as the basis sees it
    held, found = 0, Eigenvalues(np.empty(0), np.empty((0, 0)), np.empty(0), tolerance)
    for made in range(1, most_products + 1):
        if time.monotonic() >= ends:
            break
        basis[held] = ahead / ahead.norm()
        held += 1
        ahead = _product(hessian, basis[held - 1], roots)
        if not bool(ahead.isfinite().all()):
            break  # the loss is not finite here, so nothing will be found
        if progress is not None:
            progress()
        along, ahead = _split(ahead, basis[:held])
        small[:held, held - 1] = small[held - 1, :held] = along
        values, turns = (part[..., ::-1] for part in np.linalg.eigh(small[:held, :held]))
        beyond, largest = float(ahead.norm()), float(np.abs(values).max())
        known, closed = min(count, held), beyond <= torch.finfo(basis.dtype).eps * largest
        residuals = (0.0 if closed else beyond) * np.abs(turns[-1, :known]) / np.maximum(np.abs(values[:known]), _LEAST)
        found = Eigenvalues(values[:known], turns[:, :known], residuals, tolerance)
        if known == count and found.found.all() and (made >= FEWEST_PRODUCTS or closed):
            break
        if held == most:
            held = count + (most - count) // 2
            basis[:held] = torch.from_numpy(turns[:, :held].T.copy()).to(basis.dtype) @ basis
            small = np.zeros((most, most))
            small[:held, :held] = np.diag(values[:held])
            found = replace(found, vectors=np.eye(held, known))
        if closed:  # what else there is lies elsewhere
            _, ahead = _split(torch.from_numpy(random.standard_normal(size)).to(basis.dtype), basis[:held])
    turned = torch.from_numpy(found.vectors.copy()).to(basis.dtype)
    return replace(found, vectors=(basis[: len(turned)].T @ turned).numpy())


def _beginning(
    hessian: Hessian, roots: np.ndarray | None, start: np.ndarray | None, random: np.random.Generator
) -> Tensor:
    """[size]: mostly the gradient, which lies among the largest eigenvectors, and what was known before."""
    gradient = hessian.flat(hessian.gradient)
    parts = [(1.0, gradient if roots is None else gradient / roots), (NOISE, random.standard_normal(hessian.size))]
    if start is not None and len(start) == hessian.size:
        parts.append((KNOWN, start))
    whole = np.zeros(hessian.size)
    for share, part in parts:
        length = float(np.linalg.norm(part))
        if 0 < length < math.inf:
            whole += share / length * part
    return torch.from_numpy(whole).to(hessian.dtype)


def _product(hessian: Hessian, vector: Tensor, roots: np.ndarray | None) -> Tensor:
    """P^-1/2 H P^-1/2 v, on the host."""
    own = vector.numpy()
    if roots is None:
        return torch.from_numpy(hessian.flat(hessian.product(hessian.unflat(own))))
    return torch.from_numpy(hessian.flat(hessian.product(hessian.unflat(own / roots))) / roots)


def _split(vector: Tensor, basis: Tensor) -> tuple[np.ndarray, Tensor]:
    """What of ``vector`` lies along each vector of the basis, float64[n], and the rest."""
    along = basis @ vector
    rest = vector - along @ basis
    again = basis @ rest  # once more: what rounding has left
    return (along + again).double().numpy(), rest - again @ basis


def _dense(hessian: Hessian, count: int, roots: np.ndarray | None, tolerance: float) -> Eigenvalues:
    columns = [_product(hessian, unit, roots).numpy() for unit in torch.eye(hessian.size, dtype=hessian.dtype)]
    matrix = np.stack(columns, axis=1).astype(np.float64)
    if not np.isfinite(matrix).all():
        return Eigenvalues(np.empty(0), np.empty((hessian.size, 0)), np.empty(0), tolerance)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    return Eigenvalues(values, vectors, np.zeros(len(values)), tolerance)


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
        gradient, curvature = hessian.gradient, hessian.along_gradient
    if curvature > 0:
        step = 1 / curvature  # gᵀg / gᵀHg
    else:
        step = 0.1 * norm([weight.detach() for weight in moving(model)]) / max(norm(gradient), 1e-30)
    return scaled(gradient, -1.0), REACH_OF_GRADIENT * step
