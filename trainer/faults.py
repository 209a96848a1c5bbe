"""Deliberate mistakes, by configuration: for teaching, for sample_runs and for the fault benchmark.

Each fault is active from its onset for ``steps`` optimizer steps and touches the loop at one place only. Outside that
window it changes no bit. Nothing here writes into the run directory.

kind              what happens while it is active
lr_factor         the learning rate is multiplied by ``factor``
grad_factor       the gradient of the parameters of ``layer`` is multiplied by ``factor``, before clipping
weight_scale      the weights of ``layer`` are multiplied by ``factor`` after each optimizer step
repeated_token    the batch consists of one byte, over and over
random_bytes      the batch is uniform noise
shuffled_labels   the targets are permuted within the batch
nan_activation    one value of the output of module ``layer`` is NaN
skip_zero_grad    the gradient is not reset, so that it adds up over steps
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monitor.errors import ConfigError
from trainer.config import FaultConfig
from trainer.tasks.base import Batch

REPEATED_BYTE = ord("a")


@dataclass(slots=True)
class _Fault:
    """One configured fault and whether the present step is in its window."""

    config: FaultConfig
    active: bool = False

    def covers(self, step: int) -> bool:
        since = step - self.config.step
        return since >= 0 and (self.config.steps is None or since < self.config.steps)


class Faults:
    """All configured faults of one run. With none configured every method gives back what it was given."""

    def __init__(self, configs: Sequence[FaultConfig], model: nn.Module) -> None:
        """Put the hooks of gradient and activation faults into ``model``, asleep.

        Raises:
            ConfigError: a fault's ``layer`` is in no name of the model.
        """
        self._faults = [_Fault(config) for config in configs]
        self._model = model
        self._step = 0
        for fault in self._faults:
            if fault.config.kind == "grad_factor":
                for parameter in _parameters(model, fault.config.layer):
                    parameter.register_hook(_scaled_when_active(fault))
            elif fault.config.kind == "nan_activation":
                _module(model, fault.config.layer).register_forward_hook(_nan_when_active(fault))
            elif fault.config.kind == "weight_scale":
                _parameters(model, fault.config.layer)  # refuse an unknown layer now rather than at the onset

    def begin(self, step: int) -> None:
        """Say which optimizer step begins."""
        self._step = step
        for fault in self._faults:
            fault.active = fault.covers(step)

    def lr(self, lr: float) -> float:
        """The learning rate to use instead of ``lr``."""
        for fault in self._active("lr_factor"):
            lr *= fault.factor
        return lr

    def batch(self, batch: Batch) -> Batch:
        """The micro-batch to train on instead of ``batch``."""
        for _ in self._active("repeated_token"):
            batch = Batch(torch.full_like(batch.inputs, REPEATED_BYTE), torch.full_like(batch.targets, REPEATED_BYTE))
        for _ in self._active("random_bytes"):
            batch = self._noise(batch)
        for _ in self._active("shuffled_labels"):
            order = torch.randperm(batch.targets.numel(), generator=self._generator())
            batch = Batch(batch.inputs, batch.targets.flatten()[order].view_as(batch.targets))
        return batch

    @property
    def keep_gradients(self) -> bool:
        """Whether ``zero_grad`` is to be left out."""
        return bool(self._active("skip_zero_grad"))

    def after_update(self) -> None:
        """Spoil the weights that the optimizer has just written."""
        for fault in self._active("weight_scale"):
            with torch.no_grad():
                for parameter in _parameters(self._model, fault.layer):
                    parameter.mul_(fault.factor)

    def _active(self, kind: str) -> list[FaultConfig]:
        return [fault.config for fault in self._faults if fault.active and fault.config.kind == kind]

    def _noise(self, batch: Batch) -> Batch:
        B, T = batch.inputs.shape
        noise = torch.randint(0, 256, (B, T + 1), generator=self._generator())
        return Batch(noise[:, :-1].contiguous(), noise[:, 1:].contiguous())

    def _generator(self) -> torch.Generator:
        """Of its own, so that the run's random state is as without the fault."""
        return torch.Generator().manual_seed(self._step)


def _scaled_when_active(fault: _Fault) -> Any:
    def hook(gradient: Tensor) -> Tensor | None:
        return gradient * fault.config.factor if fault.active else None

    return hook


def _nan_when_active(fault: _Fault) -> Any:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        if not fault.active:
            return None
        spoilt = output.clone()
        spoilt.view(-1)[0] = float("nan")
        return spoilt

    return hook


def _parameters(model: nn.Module, layer: str | None) -> list[nn.Parameter]:
    """The parameters whose name contains ``layer``; for None, the matrix in the middle of the model."""
    named = list(model.named_parameters())
    if layer is None:
        matrices = [parameter for _, parameter in named if parameter.dim() >= 2]
        return [matrices[len(matrices) // 2]]
    found = [parameter for name, parameter in named if layer in name]
    if not found:
        raise ConfigError(_no_such_layer(layer, "parameter", [name for name, _ in named]))
    return found


def _module(model: nn.Module, layer: str | None) -> nn.Module:
    """The first module without children whose name contains ``layer``; for None, the one in the middle."""
    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    if layer is None:
        return leaves[len(leaves) // 2][1]
    found = [module for name, module in leaves if layer in name]
    if not found:
        raise ConfigError(_no_such_layer(layer, "module", [name for name, _ in leaves]))
    return found[0]


def _no_such_layer(layer: str, what: str, names: list[str]) -> str:
    shown = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
    return f"fault.layer = {layer!r}: no {what} has that in its name. Names: {shown}."
