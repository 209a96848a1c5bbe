"""The L2 norms of many gradients in one fused pass, and the scaling that clipping does with them.

Operation for operation what ``torch.nn.utils.clip_grad_norm_`` does, so that clipping through here gives the same bits.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._foreach_utils import (
    _device_has_foreach_support,
    _group_tensors_by_device_and_dtype,
)

_LOW_PRECISION = frozenset((torch.bfloat16, torch.float16))
_DTYPE = operator.attrgetter("dtype")
_has_foreach = functools.cache(_device_has_foreach_support)


@dataclass(slots=True)
class Norms:
    """L2 norms of n gradients, taken in one pass, on the device of the first."""

    groups: list[tuple[list[Tensor], Sequence[int]]]
    """The gradients by device and dtype, with the position of each in the list given. Dropped once they are scaled."""
    order: Sequence[int] | None
    """``each[j]`` belongs to gradient ``order[j]`` of the list given: groups change the order. None: the same order."""
    each: Tensor
    """[n], in the precision that torch's own clipping computes in: rounded to bf16 for bf16 gradients."""
    total: Tensor
    """Norm of ``each``."""
    exact: Tensor | None = None
    """float32[n] when ``each`` is rounded to half precision, in the same order."""
    sparse: bool = False
    repaired: np.ndarray | None = None
    """float64[n] when a norm overflowed though the gradient's elements are finite, in the same order."""
    failed: Tensor | None = None
    """One element, not zero when a rank could not take its part: then no norm is known."""


@torch.no_grad()
def take_norms(grads: list[Tensor]) -> Norms:
    """The L2 norms of ``grads`` and their total: the same operations in the same order as torch's clip_grad_norm_.

    Sparse gradients, which torch's own clipping refuses, are measured by their coalesced values.
    """
    try:
        return _take_norms(grads)
    except NotImplementedError:
        if not any(grad.is_sparse for grad in grads):
            raise
        # Coalescing sums the entries of one index, as the optimizer will; the norm of the parts would be another.
        norms = _take_norms([grad.coalesce()._values() if grad.is_sparse else grad for grad in grads], grads)
        norms.sparse = True
        return norms


def _take_norms(grads: list[Tensor], originals: list[Tensor] | None = None) -> Norms:
    groups = _groups(grads)
    each: list[Tensor] = []
    exact: list[Tensor] = []
    order: list[int] = []
    low = False
    for members, positions in groups:
        norms = _norm_each(members)
        each.extend(norms)
        order.extend(positions)
        if members[0].dtype in _LOW_PRECISION:
            low = True
            norms = _norm_each(members, torch.float32)
        exact.extend(norms)
    if len(groups) > 1:
        each = [norm.to(grads[0].device) for norm in each]
        exact = [norm.to(grads[0].device) for norm in exact]
    stacked = torch.stack(each)
    return Norms(
        groups if originals is None else [([originals[at] for at in positions], positions) for _, positions in groups],
        order if len(groups) > 1 else None,
        stacked,
        torch.linalg.vector_norm(stacked),
        torch.stack(exact) if low else None,
    )


def _groups(grads: list[Tensor]) -> list[tuple[list[Tensor], Sequence[int]]]:
    """The gradients by device and dtype with their positions, in the order in which torch's clipping takes them."""
    if len(set(map(_DTYPE, grads))) == 1 and len(set(map(Tensor.get_device, grads))) == 1:
        return [(grads, range(len(grads)))]  # three times faster than asking torch, in the case that nearly always is
    grouped: dict[Any, Any] = _group_tensors_by_device_and_dtype([grads], with_indices=True)  # type: ignore[list-item]
    return [(members, positions) for [members], positions in grouped.values()]


def _norm_each(tensors: list[Tensor], dtype: torch.dtype | None = None) -> Sequence[Tensor]:
    if _has_foreach(tensors[0].device):
        return torch._foreach_norm(tensors, 2.0, dtype=dtype) if dtype else torch._foreach_norm(tensors, 2.0)
    return [torch.linalg.vector_norm(tensor, 2.0, dtype=dtype) for tensor in tensors]


@torch.no_grad()
def scale_gradients(norms: Norms, coef: Tensor) -> None:
    """Multiply the gradients in place by ``coef``, as torch's clip_grads_with_norm_ does."""
    for members, _ in norms.groups:
        device = members[0].device
        local = coef if len(norms.groups) == 1 else coef.to(device)
        if norms.sparse:
            for member in members:
                # Scaling the entries before they are summed is scaling the sum.
                (member._values() if member.is_sparse else member).mul_(local)
        elif _has_foreach(device):
            torch._foreach_mul_(members, local)
        else:
            for member in members:
                member.mul_(local)
    norms.groups = []


def repair_overflow(norms: Norms) -> None:
    """An infinite norm of finite elements is arithmetic, not a finding: take it again in float64.

    On the CPU only, where looking costs nothing; on a device it would make the training wait. The total that clipping
    uses stays what torch computes.
    """
    if norms.total.get_device() < 0 and not math.isfinite(norms.total.item()):
        _repair(norms)


@torch.no_grad()
def _repair(norms: Norms) -> None:
    values = (norms.each if norms.exact is None else norms.exact).double().numpy().copy()
    grads = [member for members, _ in norms.groups for member in members]
    for j in np.flatnonzero(np.isinf(values)):
        dense = grads[j].coalesce()._values() if grads[j].is_sparse else grads[j]
        if torch.isfinite(dense).all():
            wide = dense.to(torch.complex128 if dense.is_complex() else torch.float64)
            values[j] = torch.linalg.vector_norm(wide).item()
    norms.repaired = values
