"""Statistics of modules' outputs: what flows forward, how large, how much of it dead or saturated.

Taken at once in a forward hook, as a handful of numbers on the output's device; no output is kept. A module that is
called several times in a step (micro-steps, shared modules, recurrent cells) has its first ``MOST_CALLS`` calls pooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from monitor.hook.layers import module_names
from monitor.hook.outputs import Hooks, Watchable, first_float, plainly, stacked
from monitor.hook.probe import Decoded, Probe, Reading, Stat

MOST_CALLS = 8
"""Calls of one module that are measured in one step."""

DEAD = 1e-6
"""A unit whose output never leaves ±this in a step is dead. A GELU is there below -5.2, where its slope is 1e-5; a
rectifier is exactly zero. (TheDeepChecker takes 1e-5 on a 95th percentile.)"""
SATURATED = 0.85
"""Limit of a unit's mean |output|, scaled to [-1, 1]: ρ of TheDeepChecker (Ben Braiek and Khomh, 2022), after
Rakitianskaia and Engelbrecht, "Measuring saturation in neural networks" (2015)."""

_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)
"""Activations that turn a unit off on one side."""
_SQUASHERS: dict[type[nn.Module], float] = {nn.Tanh: 0.0, nn.Sigmoid: 0.5}
"""Activations with two bounds, and the middle between them."""

_PIECE = 1 << 22
"""Elements of a device tensor that are looked at together where that needs a temporary copy: 16 MB at most."""

_NOTHING = torch.zeros((), dtype=torch.int64, device="cpu")


class Activations(Probe):
    """Statistics of every module's output. Modules without a floating-point output have none."""

    name = "statistics of modules' outputs"
    every = 50
    first_steps = 10

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._watched = Watchable(model)
        self._modules = len(module_names(model))
        self._hooks = Hooks()
        self._reset()

    def _reset(self) -> None:
        self._calls: dict[int, int] = {}
        self._order: list[int] = []  # module of each measured call
        self._sizes: list[int] = []
        self._floats: list[Tensor] = []  # sum, L2 norm, largest, smallest of each call
        self._counts: list[Tensor] = []  # values that are not zero, values that are not finite
        self._peaks: dict[int, Tensor] = {}  # float[C]: largest |output| of each unit, over the calls
        self._levels: dict[
            int, Tensor
        ] = {}  # float[C]: mean |output| of each unit scaled to [-1, 1], summed over calls
        self._channel_dim: int | None = None

    def begin(self) -> None:
        self._reset()
        self._hooks.remove()  # of a step that never ended
        self._hooks.after(self._saw, self._watched.at(self.watch.step))

    def _saw(self, index: int, module: nn.Module, _args: object, _kwargs: object, output: object) -> None:
        if not self.measuring or not self.watch.in_forward():
            return
        with self.watch.charged(self):
            self._note_channels(module)
            if index not in self.coverage:
                return
            calls = self._calls.get(index, 0)
            values = first_float(output) if calls < MOST_CALLS else None
            if values is None:
                return
            self._calls[index] = calls + 1
            with plainly(values):
                self._order.append(index)
                self._sizes.append(values.numel())
                self._floats.extend(_moments(values))
                self._counts.extend(_counts(values, *self._floats[-2:]))
                if isinstance(module, _RECTIFIERS):
                    self._note_peaks(index, values)
                elif type(module) in _SQUASHERS:
                    self._note_levels(index, values, _SQUASHERS[type(module)])

    def _note_channels(self, module: nn.Module) -> None:
        """Which dimension holds the units is what the last layer with weights says: an activation does not know."""
        if isinstance(module, _ConvNd):
            self._channel_dim = -1 - len(module.kernel_size)
        elif isinstance(module, nn.Linear | nn.Embedding):
            self._channel_dim = -1

    def _others(self, values: Tensor) -> list[int]:
        """Every dimension but that of the units."""
        dim = self._channel_dim
        if dim is None or -dim > values.dim():
            dim = 1 if values.dim() > 3 else -1
        return [at for at in range(values.dim()) if at != dim % values.dim()]

    def _note_peaks(self, index: int, values: Tensor) -> None:
        others = self._others(values)
        peak = torch.maximum(values.amax(others), -values.amin(others)) if others else values.abs()
        before = self._peaks.get(index)
        if before is not None and before.shape == peak.shape:
            peak = torch.maximum(before, peak)
        self._peaks[index] = peak

    def _note_levels(self, index: int, values: Tensor, middle: float) -> None:
        others = self._others(values)
        each = math.prod(values.shape[at] for at in others)  # values of one unit
        sums = []
        for piece in _pieces(values) if 0 in others else [values]:
            away = (piece.float() - middle).abs_()
            sums.append(away.sum(others) if others else away)
        level = torch.stack(sums).sum(0) / (each * (1 - middle))
        before = self._levels.get(index)
        if before is not None and before.shape == level.shape:
            level = before + level
        self._levels[index] = level

    def end_step(self) -> Reading | None:
        self._hooks.remove()
        if not self._order:
            return None
        shares = [(peak <= DEAD).float().mean() for peak in self._peaks.values()]
        shares += [(level > SATURATED * self._calls[at]).float().mean() for at, level in self._levels.items()]
        tensors = [stacked(self._floats), stacked(self._counts), *([stacked(shares)] if shares else ())]
        reading = Reading(tensors, _Decoder(self._modules, self._order, self._sizes, [*self._peaks], [*self._levels]))
        self._reset()
        return reading

    def remove(self) -> None:
        self._hooks.remove()
        self._reset()


def _moments(values: Tensor) -> list[Tensor]:
    """Sum, L2 norm, largest and smallest, each by one reduction that copies nothing.

    Not ``var_mean``, ``aminmax`` or the infinity norm: on the CPU they take 3 to 100 times as long.
    """
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    return [
        values.sum(dtype=wide),
        torch.linalg.vector_norm(values, dtype=wide),
        values.amax().to(wide),
        values.amin().to(wide),
    ]


def _counts(values: Tensor, largest: Tensor, smallest: Tensor) -> list[Tensor]:
    """How many values are not zero, and how many are not finite."""
    if values.get_device() < 0:
        finite = math.isfinite(largest.item()) and math.isfinite(smallest.item())  # on the CPU looking is free
        return [torch.count_nonzero(values), _NOTHING if finite else _not_finite(values)]
    pieces = _pieces(values)
    return [_sum([torch.count_nonzero(piece) for piece in pieces]), _sum([_not_finite(piece) for piece in pieces])]


def _not_finite(values: Tensor) -> Tensor:
    return torch.isfinite(values).logical_not_().sum()


def _pieces(values: Tensor) -> Sequence[Tensor]:
    """``values`` cut along its first dimension, where it is so large that a temporary copy might not fit."""
    if values.numel() <= _PIECE:
        return [values]
    return values.split(max(1, _PIECE * len(values) // values.numel()))


def _sum(counts: list[Tensor]) -> Tensor:
    return counts[0] if len(counts) == 1 else torch.stack(counts).sum()


@dataclass(frozen=True, slots=True)
class _Decoder:
    """What the numbers of one step say, once they are on the host."""

    modules: int
    order: Sequence[int]
    """Module of each measured call."""
    sizes: Sequence[int]
    """Values in each measured call."""
    with_peaks: Sequence[int]
    with_levels: Sequence[int]

    def __call__(self, arrays: list[np.ndarray]) -> Decoded:
        total, norm, largest, smallest = arrays[0].astype(np.float64).reshape(-1, 4).T
        filled, broken = arrays[1].astype(np.float64).reshape(-1, 2).T
        order = np.asarray(self.order)
        present = np.zeros(self.modules, bool)
        present[order] = True

        def pooled(each: np.ndarray) -> np.ndarray:
            return np.bincount(order, each, self.modules)

        size = np.where(present, pooled(np.asarray(self.sizes, np.float64)), 1.0)
        peak = np.zeros(self.modules)
        with np.errstate(invalid="ignore", over="ignore"):
            np.maximum.at(peak, order, np.maximum(np.abs(largest), np.abs(smallest)))
            stats = {
                "activation_mean": pooled(total) / size,
                "activation_rms": np.sqrt(pooled(norm**2) / size),
                "activation_absmax": peak,
                "activation_zero_share": 1 - pooled(filled) / size,
                "activation_nonfinite": pooled(broken),
            }
            # A square overflows in float32 above 1.8e19: that is arithmetic, and no infinity of the training's.
            known = present & (np.isfinite(stats["activation_rms"]) | ~np.isfinite(peak))
            known_mean = present & (np.isfinite(stats["activation_mean"]) | ~np.isfinite(peak))
            modules: dict[str, Stat] = {name: (each.astype(np.float32), present) for name, each in stats.items()}
        modules["activation_rms"] = (modules["activation_rms"][0], known)
        modules["activation_mean"] = (modules["activation_mean"][0], known_mean)
        shares = arrays[2] if len(arrays) > 2 else np.empty(0)
        split = len(self.with_peaks)
        if split:
            modules["dead_units_share"] = self._placed(self.with_peaks, shares[:split])
        if self.with_levels:
            modules["saturated_units_share"] = self._placed(self.with_levels, shares[split:])
        return Decoded(modules=modules)

    def _placed(self, at: Sequence[int], values: np.ndarray) -> Stat:
        row, present = np.zeros(self.modules, np.float32), np.zeros(self.modules, bool)
        row[list(at)], present[list(at)] = values, True
        return row, present
