"""Deliberate mistakes, by configuration: for teaching, for sample_runs and for the fault benchmark.

Each fault is active from its onset for ``steps`` optimizer steps and touches the training at one place only. Outside
that window it changes no bit. Nothing here writes into the run directory. ``layer`` is part of a name; without one it
is the matrix or module in the middle of the model, unless said otherwise. ``rank`` leaves the other processes healthy.

kind                  what happens while it is active

in the loop
lr_factor             the learning rate is multiplied by ``factor``
no_clipping           the gradient is not clipped
skip_zero_grad        the gradient is not reset, so that it adds up over steps
unreduced             each process steps with its own gradient: the replicas drift apart
eval_mode             the model trains in evaluation mode, without dropout

on gradients, of the parameters of ``layer``, before clipping
grad_factor           multiplied by ``factor``; 0 freezes what has no momentum, -1 climbs
nan_gradient          one value is NaN, with a finite loss
fp16_overflow         values that exceed 65504 / ``factor`` become infinite, as half precision would make them
heavy_tails           of all parameters, or of ``layer``: multiplied by one Pareto draw (tail index 1.5) per step

on weights, of the parameters of ``layer``
weight_scale          multiplied by ``factor`` after each optimizer step
weight_shift          ``offset`` is added after each optimizer step (a bias far below zero kills its ReLUs)
qk_scale              the query and key weights of the attention ``layer`` are multiplied by ``factor`` after each step
replaced_parameter    at the onset the model gets a new tensor that the optimizer does not know, for good

on the optimizer
weight_decay_factor   weight decay is multiplied by ``factor``; -1 makes weights grow
second_moment_factor  Adam's second moment of ``layer`` is multiplied by ``factor`` before each step
lost_optimizer_state  the optimizer forgets its state before each step, as after a resume without it

on the batch
repeated_token        one byte over and over; images become flat
random_bytes          uniform noise; images become normal noise of the same mean and spread
shuffled_labels       the targets are permuted within the batch
input_scale           real-valued inputs are multiplied by ``factor``, then ``offset`` is added
repeated_batch        the batches of the onset come again and again
slow_data             each takes ``seconds`` and ``factor`` - 1 usual steps longer to come

on the output of module ``layer``, in training
nan_activation        one value is NaN
activation_factor     multiplied by ``factor``
double_softmax        a softmax over the last dimension, before the loss takes its own; by default the last linear layer
tensor_leak           the output is kept for ever, with what autograd holds on to
slow_layer            its forward takes ``seconds`` and ``factor`` - 1 usual steps longer
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from monitor.errors import ConfigError
from trainer.config import FaultConfig
from trainer.tasks.base import Batch

T = TypeVar("T")
REPEATED_BYTE = ord("a")
HALF_MAX = 65504.0
"""Largest finite value of half precision."""
TAIL_INDEX = 1.5
"""Of a Pareto distribution: below 2 its variance is infinite."""


@dataclass(slots=True)
class _Fault:
    """One configured fault, and whether the present step is in its window."""

    config: FaultConfig
    step: int = 0
    active: bool = False
    held: list[object] = field(default_factory=list)
    """What the fault keeps from one step to the next."""
    handed: int = 0
    """Batches of this step so far."""
    usual_s: float = 0.0
    """Median time of the steps before the onset; 0 where there was none."""

    def begin(self, step: int) -> None:
        since = step - self.config.step
        self.step, self.handed = step, 0
        self.active = since >= 0 and (self.config.steps is None or since < self.config.steps)

    def sleep(self) -> None:
        """Be late by as much as is configured."""
        time.sleep(self.config.seconds + max(0.0, self.config.factor - 1) * self.usual_s)

    def generator(self) -> torch.Generator:
        """Of its own, so that the run's random state is as without the fault."""
        return torch.Generator().manual_seed(self.step)


# --- on gradients: a new gradient from the old one --------------------------------------------------------------------


def _nan_gradient(gradient: Tensor, fault: _Fault) -> Tensor:
    return _with_nan(gradient)


def _fp16_overflow(gradient: Tensor, fault: _Fault) -> Tensor:
    too_large = (gradient * fault.config.factor).abs() > HALF_MAX
    return gradient.masked_fill(too_large, math.inf)


def _heavy_tails(gradient: Tensor, fault: _Fault) -> Tensor:
    uniform = float(torch.rand((), dtype=torch.float64, generator=fault.generator()))
    return gradient * (1.0 - uniform) ** (-1.0 / TAIL_INDEX)


GRADIENTS: dict[str, Callable[[Tensor, _Fault], Tensor]] = {
    "grad_factor": lambda gradient, fault: gradient * fault.config.factor,
    "nan_gradient": _nan_gradient,
    "fp16_overflow": _fp16_overflow,
    "heavy_tails": _heavy_tails,
}


# --- on the output of a module: a new output, or None -----------------------------------------------------------------


def _leak(output: Tensor, fault: _Fault) -> None:
    fault.held.append(output)


def _slow(output: Tensor, fault: _Fault) -> None:
    fault.sleep()


OUTPUTS: dict[str, Callable[[Tensor, _Fault], Tensor | None]] = {
    "nan_activation": lambda output, fault: _with_nan(output),
    "activation_factor": lambda output, fault: output * fault.config.factor,
    "double_softmax": lambda output, fault: output.softmax(-1),
    "tensor_leak": _leak,
    "slow_layer": _slow,
}


# --- on weights: in place, after the optimizer's step -----------------------------------------------------------------

WEIGHTS: dict[str, Callable[[Tensor, FaultConfig], object]] = {
    "weight_scale": lambda weight, config: weight.mul_(config.factor),
    "weight_shift": lambda weight, config: weight.add_(config.offset),
}


# --- on the batch: a new batch from the old one -----------------------------------------------------------------------


def _flat(batch: Batch, fault: _Fault) -> Batch:
    if batch.inputs.is_floating_point():
        return replace(batch, inputs=batch.inputs.mean().expand_as(batch.inputs).contiguous())
    inputs = torch.full_like(batch.inputs, REPEATED_BYTE)
    same = batch.targets.shape == batch.inputs.shape
    return replace(batch, inputs=inputs, targets=inputs.clone() if same else batch.targets)


def _noise(batch: Batch, fault: _Fault) -> Batch:
    inputs = batch.inputs
    if inputs.is_floating_point():
        noise = torch.randn(inputs.shape, generator=fault.generator(), dtype=inputs.dtype)
        return replace(batch, inputs=noise * inputs.std() + inputs.mean())
    *leading, length = inputs.shape
    noise = torch.randint(0, 256, (*leading, length + 1), generator=fault.generator(), dtype=inputs.dtype)
    targets = noise[..., 1:].contiguous() if batch.targets.shape == inputs.shape else batch.targets
    return replace(batch, inputs=noise[..., :-1].contiguous(), targets=targets)


def _shuffled(batch: Batch, fault: _Fault) -> Batch:
    order = torch.randperm(batch.targets.numel(), generator=fault.generator())
    return replace(batch, targets=batch.targets.flatten()[order].view_as(batch.targets))


def _scaled(batch: Batch, fault: _Fault) -> Batch:
    return replace(batch, inputs=batch.inputs * fault.config.factor + fault.config.offset)


def _stuck(batch: Batch, fault: _Fault) -> Batch:
    if fault.step == fault.config.step:
        fault.held.append(batch)
    held = fault.held[fault.handed] if fault.handed < len(fault.held) else batch
    assert isinstance(held, Batch)
    return held


def _late(batch: Batch, fault: _Fault) -> Batch:
    fault.sleep()
    return batch


BATCHES: dict[str, Callable[[Batch, _Fault], Batch]] = {
    "repeated_token": _flat,
    "random_bytes": _noise,
    "shuffled_labels": _shuffled,
    "input_scale": _scaled,
    "repeated_batch": _stuck,
    "slow_data": _late,
}


class Faults:
    """All configured faults of one run. With none configured every method gives back what it was given."""

    def __init__(self, configs: Sequence[FaultConfig], model: nn.Module, rank: int = 0) -> None:
        """Put the hooks of gradient and activation faults into ``model``, asleep.

        Raises:
            ConfigError: a fault's ``layer`` is in no name of the model.
        """
        self._faults = [_Fault(config) for config in configs if config.rank in (None, rank)]
        self._model = model
        self._decays: list[float] | None = None
        self._was_training: dict[nn.Module, bool] = {}
        self._begun_at: list[float] = []
        """When the steps up to the last onset began, in seconds."""
        for fault in self._faults:
            self._install(fault)

    def _install(self, fault: _Fault) -> None:
        kind, layer = fault.config.kind, fault.config.layer
        if kind in GRADIENTS:
            everywhere = kind == "heavy_tails" and layer is None
            for parameter in self._model.parameters() if everywhere else _parameters(self._model, layer):
                parameter.register_hook(_on_gradient(fault))
        elif kind in OUTPUTS:
            last = kind == "double_softmax" and layer is None
            module = _last_linear(self._model) if last else _module(self._model, layer)
            module.register_forward_hook(_on_output(fault))
        elif kind == "qk_scale":
            _attention(self._model, layer)  # refuse an unknown layer now rather than at the onset
        elif layer is not None:
            _parameters(self._model, layer)

    def begin(self, step: int) -> None:
        """Say which optimizer step begins."""
        if any(step <= fault.config.step for fault in self._faults):
            self._begun_at.append(time.perf_counter())
        for fault in self._faults:
            fault.begin(step)
            if step == fault.config.step and len(self._begun_at) > 1:
                fault.usual_s = float(np.median(np.diff(self._begun_at)))
        for fault in self._active("replaced_parameter"):
            if not fault.held:
                fault.held.append(_replace(self._model, fault.config.layer))
        self._set_mode(evaluating=bool(self._active("eval_mode")))

    def lr(self, lr: float) -> float:
        """The learning rate to use instead of ``lr``."""
        for fault in self._active("lr_factor"):
            lr *= fault.config.factor
        return lr

    def batch(self, batch: Batch) -> Batch:
        """The micro-batch to train on instead of ``batch``.

        Raises:
            ConfigError: the inputs are not what a fault, active or not, is for.
        """
        for fault in self._faults:
            if fault.config.kind == "input_scale" and not batch.inputs.is_floating_point():
                raise ConfigError(
                    f"fault.kind = input_scale scales real-valued inputs, and this task's are {batch.inputs.dtype}. "
                    "Use a task on images, or activation_factor."
                )
            if fault.active and fault.config.kind in BATCHES:
                batch = BATCHES[fault.config.kind](batch, fault)
                fault.handed += 1
        return batch

    @property
    def unreduced(self) -> bool:
        """Whether the gradient is not to be reduced over processes."""
        return bool(self._active("unreduced"))

    @property
    def unclipped(self) -> bool:
        """Whether the gradient is measured and not clipped."""
        return bool(self._active("no_clipping"))

    @property
    def keep_gradients(self) -> bool:
        """Whether ``zero_grad`` is to be left out."""
        return bool(self._active("skip_zero_grad"))

    def before_update(self, optimizer: Optimizer) -> None:
        """Spoil what the optimizer is about to use."""
        for _ in self._active("lost_optimizer_state"):
            optimizer.state.clear()
        for fault in self._active("second_moment_factor"):
            for parameter in _parameters(self._model, fault.config.layer):
                second_moment = optimizer.state[parameter].get("exp_avg_sq")
                if second_moment is not None:
                    second_moment.mul_(fault.config.factor)
        decaying = self._active("weight_decay_factor")
        if decaying:
            self._decays = [group["weight_decay"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["weight_decay"] *= math.prod(fault.config.factor for fault in decaying)

    def after_update(self, optimizer: Optimizer) -> None:
        """Spoil the weights that the optimizer has just written."""
        if self._decays is not None:
            for group, decay in zip(optimizer.param_groups, self._decays, strict=True):
                group["weight_decay"] = decay
            self._decays = None
        with torch.no_grad():
            for fault in self._faults:
                if fault.active and fault.config.kind in WEIGHTS:
                    for parameter in _parameters(self._model, fault.config.layer):
                        WEIGHTS[fault.config.kind](parameter, fault.config)
            for fault in self._active("qk_scale"):
                _queries_and_keys(_attention(self._model, fault.config.layer)).mul_(fault.config.factor)

    def _active(self, kind: str) -> list[_Fault]:
        return [fault for fault in self._faults if fault.active and fault.config.kind == kind]

    def _set_mode(self, *, evaluating: bool) -> None:
        if evaluating and not self._was_training:
            self._was_training = {module: module.training for module in self._model.modules()}
            self._model.eval()
        elif not evaluating and self._was_training:
            for module, training in self._was_training.items():
                module.training = training
            self._was_training = {}


def _on_gradient(fault: _Fault) -> Callable[[Tensor], Tensor | None]:
    spoil = GRADIENTS[fault.config.kind]
    return lambda gradient: spoil(gradient, fault) if fault.active else None


def _on_output(fault: _Fault) -> Callable[[nn.Module, object, Tensor], Tensor | None]:
    spoil = OUTPUTS[fault.config.kind]
    return lambda module, inputs, output: spoil(output, fault) if fault.active and torch.is_grad_enabled() else None


def _with_nan(tensor: Tensor) -> Tensor:
    spoilt = tensor.clone()
    spoilt.view(-1)[0] = math.nan
    return spoilt


def _replace(model: nn.Module, layer: str | None) -> nn.Parameter:
    """Put a copy in the place of the first parameter of ``layer``; gives back the one that the optimizer still has."""
    old = _parameters(model, layer)[0]
    (name,) = (name for name, parameter in model.named_parameters() if parameter is old)
    place, _, last = name.rpartition(".")
    setattr(model.get_submodule(place), last, nn.Parameter(old.detach().clone()))
    return old


def _queries_and_keys(attention: nn.Module) -> Tensor:
    """A view of the query and key rows of ``attention.qkv``, which are ordered by head: [H, 2, E, D]."""
    weight = attention.get_parameter("qkv.weight")
    return weight.view(cast(int, attention.n_head), 3, -1, weight.shape[1])[:, :2]


def _attention(model: nn.Module, layer: str | None) -> nn.Module:
    """The first attention whose name contains ``layer``; for None, the one in the middle."""
    named = [(name, module) for name, module in model.named_modules() if hasattr(module, "qkv")]
    return _chosen(named, layer, "attention")[0]


def _parameters(model: nn.Module, layer: str | None) -> list[nn.Parameter]:
    """The trained parameters whose name contains ``layer``; for None, the matrix in the middle of the model."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if layer is None:
        matrices = [parameter for _, parameter in named if parameter.dim() >= 2]
        return [matrices[len(matrices) // 2]]
    return _chosen(named, layer, "parameter")


def _module(model: nn.Module, layer: str | None) -> nn.Module:
    """The first module without children whose name contains ``layer``; for None, the one in the middle."""
    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    return _chosen(leaves, layer, "module")[0]


def _last_linear(model: nn.Module) -> nn.Module:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def _chosen(named: Sequence[tuple[str, T]], layer: str | None, what: str) -> list[T]:
    """Those whose name contains ``layer``; for None, the one in the middle.

    Raises:
        ConfigError: there are none.
    """
    if layer is None and named:
        return [named[len(named) // 2][1]]
    found = [one for name, one in named if layer is not None and layer in name]
    if not found:
        names = [name for name, _ in named]
        shown = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
        raise ConfigError(f"fault.layer = {layer!r}: no {what} has that in its name. Names: {shown}.")
    return found
