"""Slow, independent measurements: one parameter at a time, in float64, without a line of ours."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.monitor.hook.problems import Problem


def norms_by_autograd(problem: Problem, model: nn.Module, batches: Sequence[int]) -> list[float]:
    """Gradient norm per parameter of the mean loss over ``batches``, at the weights of ``model``, all in float64."""
    wide = copy.deepcopy(model).double()
    losses = []
    for number in batches:
        x, y = problem.batch(number)
        out = wide(x.double() if x.is_floating_point() else x)
        losses.append(nn.functional.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1)))
    loss = torch.stack(losses).mean()
    parameters = [parameter for _, parameter in wide.named_parameters()]
    return [_length(torch.autograd.grad(loss, p, retain_graph=True)[0]) for p in parameters]


def norms_of_grads(model: nn.Module, divisor: float = 1.0) -> list[float | None]:
    """Norm of each ``.grad`` as it is now, element by element in float64."""
    return [None if p.grad is None else _length(p.grad) / divisor for p in model.parameters()]


def total(norms: Sequence[float | None]) -> float:
    return math.sqrt(sum(norm * norm for norm in norms if norm is not None))


def _length(tensor: Tensor) -> float:
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    flat = torch.view_as_real(dense).double() if dense.is_complex() else dense.double()
    return math.sqrt(float((flat * flat).sum()))
