"""Floating-point operations of a step, counted once for each shape of the input.

Counting is done by torch's ``FlopCounterMode``, but not on the training: a dispatch mode round a real step would be
left on the stack by whatever goes wrong in between. The model is copied with tensors that have a shape and no memory
(``meta``), the copy runs forward and backward on inputs of the same kind, and is thrown away. It draws no random number
that is not put back, and touches no weight, gradient, buffer or hook of the model.

What a copy without values cannot do, the reason says: a forward pass that looks at values (``.item()``, experts chosen
by ``nonzero``), sharded parameters, synchronised batch normalisation. Counted are, as everywhere in torch, matrix
products, convolutions and attention.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from monitor.hook.outputs import tensors_of
from monitor.hook.passes import PLAIN
from monitor.hook.peaks import peak_flops
from monitor.hook.probe import Decoded, Probe, Reading
from monitor.landscape.undisturbed import same_randomness_after

MOST_SHAPES = 4
"""Shapes of the input that are counted. A loop that always has new ones would count for ever."""


class CannotCount(Exception):
    """The message is the reason to record."""


@dataclass(frozen=True, slots=True)
class Count:
    """Operations of one micro-step."""

    forward: int
    backward: int


@dataclass(frozen=True, slots=True)
class Given:
    """What the model was called with, without values."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grad: bool


class Flops(Probe):
    """Operations per second of every step whose input shapes have been counted, and their share of the peak.

    Args:
        peak: operations per second that the device can do at most; None: what its maker says.
    """

    name = "operations per step"
    every = 1
    every_step = True

    def __init__(self, model: nn.Module, peak: float | None = None) -> None:
        super().__init__()
        self._model = model
        self._peak = peak
        self._counts: dict[Any, Count | None] = {}
        """By kind of input; None: cannot be counted."""
        self._seen: list[Any] = []
        self._new: dict[Any, Given] = {}
        self._of_step: dict[int, int] = {}
        self._precision = "float32"
        self._told: set[str] = set()

    def begin(self) -> None:
        self._seen, self._new = [], {}

    def forward_begins(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        kwargs = dict(kwargs)
        key = kind_of((args, kwargs), torch.is_grad_enabled())
        self._seen.append(key)
        if key not in self._counts and len(self._counts) + len(self._new) < MOST_SHAPES:
            self._new[key] = Given(without_values(args), without_values(kwargs), torch.is_grad_enabled())
            self._precision = _precision(self._model)

    def end_step(self) -> Reading | None:
        for key, given in self._new.items():
            self._counts[key] = self._counted(given)
        counts = [self._counts.get(key) for key in self._seen]
        if any(key not in self._counts for key in self._seen):
            self._say(
                f"tflops_per_s is absent in some steps: the input has more than {MOST_SHAPES} different shapes, and "
                "operations are counted for the first ones only"
            )
        known = [count for count in counts if count is not None]
        if known and len(known) == len(counts):
            self._of_step[self.watch.step] = sum(count.forward + count.backward for count in known)
        return None

    def row_complete(self, step: int, row: Decoded) -> Mapping[str, float]:
        flops, seconds = self._of_step.pop(step, 0), row.scalars.get("step_time_s", 0.0)
        if not flops or seconds <= 0:
            return {}
        rate = flops / seconds
        return {"tflops_per_s": rate * 1e-12, **({"mfu": rate / self._peak} if self._peak else {})}

    def remove(self) -> None:
        self._new = {}

    def _counted(self, given: Given) -> Count | None:
        try:
            count = count_flops(self._model, given)
        except CannotCount as reason:
            self._say(f"tflops_per_s and mfu are absent: {reason}")
            return None
        device = device_name(self._model)
        if self._peak is None:
            self._peak = peak_flops(device, self._precision)
        if self._peak is None:
            self._say(
                f"mfu is absent: no peak is known of {device} in {self._precision}; give attach(peak_flops=...)",
            )
        shapes = [list(leaf.shape) for leaf in tree_leaves((given.args, given.kwargs)) if isinstance(leaf, Tensor)]
        self.watch.tell(
            "flops", step=self.watch.step, forward=count.forward, backward=count.backward, shapes=shapes[:8],
            device=device, precision=self._precision, peak_flops=self._peak,
            text=f"{count.forward + count.backward:.4g} operations per forward and backward pass",
        )  # fmt: skip
        return count

    def _say(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.watch.tell("note", step=self.watch.step, text=text)


def kind_of(given: Any, grad: bool) -> Any:
    """What decides how many operations a forward pass takes: shapes and types of the tensors, and the other arguments.

    A fraction among them, or what cannot be compared, counts by its type.
    """
    leaves = tree_leaves(given)
    return grad, tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor)
        else leaf if isinstance(leaf, bool | int | str | None)
        else type(leaf)
        for leaf in leaves
    )  # fmt: skip


def without_values(given: Any) -> Any:
    """``given`` with tensors that have no memory in place of its tensors."""
    return tree_map(_on_meta, given)


def _on_meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_like(value, device="meta", requires_grad=value.requires_grad)


def count_flops(model: nn.Module, given: Given) -> Count:
    """Operations of one forward and backward pass.

    Raises:
        CannotCount: with the reason.
    """
    try:
        with same_randomness_after(), eagerly():
            copied = copy_without_memory(model)
            with torch.set_grad_enabled(given.grad), FlopCounterMode(display=False) as forward:
                output = copied(*given.args, **given.kwargs)
            ends = [tensor for tensor in tensors_of(output, depth=3) if tensor.requires_grad]
            weights = [weight for weight in copied.parameters() if weight.requires_grad]
            with FlopCounterMode(display=False) as backward:
                if ends and weights:  # .grad(), because loops are watched through .backward()
                    torch.autograd.grad(ends, weights, [torch.ones_like(end) for end in ends], allow_unused=True)
    except CannotCount:
        raise
    except Exception as error:  # the model's own code, on tensors that it was not written for
        reason = " ".join(str(error).split())
        raise CannotCount(
            f"the model cannot be run on tensors without values ({type(error).__name__}: {reason:.200})"
        ) from error
    return Count(forward.get_total_flops(), backward.get_total_flops())


def copy_without_memory(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose parameters, buffers and tensor attributes are on ``meta``, without hooks or wrappers.

    Raises:
        CannotCount: parameters that are not plain tensors, or a module that communicates in forward.
    """
    model = unwrapped(model)
    memo: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            raise CannotCount("the model has batch normalisation that is synchronised over ranks")
        named = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
        for tensor in named:
            if not isinstance(tensor, Tensor):
                continue
            if type(tensor) not in PLAIN:
                raise CannotCount(f"the model has tensors of type {type(tensor).__name__} (sharded or wrapped)")
            meta = torch.empty_like(tensor, device="meta", requires_grad=False)
            memo[id(tensor)] = (
                nn.Parameter(meta, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
            )
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        for hooks in (
            module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
        ):  # fmt: skip
            hooks.clear()
    return copied


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile."""
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Compiled parts of a model run as they are written: a graph has its tensors' device built in."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def device_name(model: nn.Module) -> str:
    """``CPU``, or what CUDA calls the device of the first parameter."""
    weight = next(model.parameters(), None)
    if weight is None or weight.device.type == "cpu":
        return "CPU"
    return torch.cuda.get_device_name(weight.device) if weight.is_cuda else weight.device.type


def _precision(model: nn.Module) -> str:
    """Of the matrix products of a forward pass that is running now."""
    weight = next(model.parameters(), None)
    kind = weight.device.type if weight is not None else "cpu"
    if torch.is_autocast_enabled(kind):
        return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
    name = "float32" if weight is None else str(weight.dtype).removeprefix("torch.")
    rounded = torch.get_float32_matmul_precision() != "highest"
    return "tf32" if name == "float32" and kind == "cuda" and rounded else name
