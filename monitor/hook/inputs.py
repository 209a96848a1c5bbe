"""What goes into the model: a fingerprint of each step's batch, and modules that are in the wrong mode.

The fingerprint is of the first tensor among the arguments of the model's forward, in the first micro-step: up to 4096
values spread evenly over it. They are copied on the device and looked at on the host.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from monitor.hook.layers import named_modules
from monitor.hook.outputs import even_step, measurable, tensors_of
from monitor.hook.probe import Decoded, Probe, Reading

VALUES = 4096
SAMPLES_SEEN = "\0samples seen"
"""Key of a value that only the monitor sees, which records it unless the loop gives a number of its own."""
NAMED = 8
"""Modules that are named in one event."""


class Inputs(Probe):
    """Mean, spread, extreme, variety and hash of each step's first input, and the samples of the step.

    Args:
        count_samples: take the first dimension of the inputs, added up over micro-steps, for samples. Not with several
            ranks, where it cannot be known whether they see the same batch.
    """

    name = "fingerprints of the input"
    every = 1

    def __init__(self, *, count_samples: bool = True) -> None:
        super().__init__()
        self._count_samples = count_samples
        self._sample: Tensor | None = None
        self._samples = 0

    def begin(self) -> None:
        self._sample, self._samples = None, 0

    def forward_begins(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = args[0] if args else None
        if not isinstance(given, Tensor):
            given = next(iter(tensors_of((args, kwargs), depth=3)), None)
        if given is None:
            return
        self._samples += given.shape[0] if given.dim() else 0
        if self._sample is None and measurable(given) and not given.is_complex():
            self._sample = _spread(given)

    def end_step(self) -> Reading | None:
        sample, self._sample = self._sample, None
        if self._count_samples and self._samples:
            samples = {SAMPLES_SEEN: float(self._samples)}
            if sample is None:
                return Reading((), lambda _arrays: Decoded(samples))
            return Reading([sample], lambda arrays: Decoded({**_decode(arrays).scalars, **samples}))
        return None if sample is None else Reading([sample], _decode)

    def remove(self) -> None:
        self._sample = None


def _spread(given: Tensor) -> Tensor:
    """float[n]: at most ``VALUES`` of ``given``, spread evenly; a copy, because a loader may fill the buffer again."""
    if given.numel() <= VALUES:
        return given.detach().to(torch.float32, copy=True).reshape(-1)
    step = even_step(given.numel(), VALUES, given.shape[-1])
    given = given.detach()
    if given.is_contiguous():
        picked = given.view(-1)[::step]
    else:
        places = torch.arange(0, given.numel(), step, device=given.device)
        index = []  # torch.unravel_index makes a tensor of the shape, for which a device would be waited for
        for size in reversed(given.shape):
            index.append(places % size)
            places = places // size
        picked = given[tuple(reversed(index))]
    return picked.to(torch.float32, copy=True)


def _decode(arrays: list[np.ndarray]) -> Decoded:
    values = arrays[0]
    ordered = np.sort(values)  # what is NaN comes last
    low, high = float(ordered[0]), float(ordered[-1])
    mean, std = _mean_and_std(values.astype(np.float64), math.isfinite(low) and math.isfinite(high))
    digest = hashlib.blake2b(values.tobytes(), digest_size=8).digest()
    return Decoded(
        {
            "input_mean": mean,
            "input_std": std,
            "input_absmax": math.nan if math.isnan(high) else max(abs(low), abs(high)),
            "input_unique_share": (1 + np.count_nonzero(ordered[1:] != ordered[:-1])) / len(ordered),
            "input_hash": float(int.from_bytes(digest, "big") >> 12),  # 52 bits are exact in a float64
        }
    )


def _mean_and_std(values: np.ndarray, finite: bool) -> tuple[float, float]:
    if not finite:
        with np.errstate(invalid="ignore"):
            return float(values.mean()), math.nan
    mean = np.add.reduce(values) / len(values)
    values -= mean
    return float(mean), math.sqrt(values.dot(values) / len(values))  # several times as fast as values.std()


class Modes(Probe):
    """Whether dropout and batch normalisation are in the mode of the model, and the model in training mode.

    Looked at when the last backward pass of a step ends, so that a forward pass with gradients that trains nothing (an
    evaluation, an adversarial example) does not count; and the other way round when the model runs inside
    ``mon.phase("eval")``. Each finding is told once.
    """

    name = "modes of the modules"
    every = 50
    first_steps = 3

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._modules = named_modules(model)
        self._minding = [name for name, module in self._modules.items() if _minds(module)]
        self._found: dict[str, list[str]] = {}
        self._told: set[str] = set()

    def begin(self) -> None:
        self._found = {}

    def backward_ended(self) -> None:
        self._found = {}
        asleep = [name for name in self._minding if not self._modules[name].training and not self._put_to_rest(name)]
        for name in asleep:
            of_statistics = isinstance(self._modules[name], _NormBase)
            about = "batch normalisation" if of_statistics else "dropout"
            self._found.setdefault(about if self._model.training else "model", []).append(name)

    def evaluation_begins(self) -> None:
        if "evaluation" not in self._told and (awake := [n for n in self._minding if self._modules[n].training]):
            self._tell("evaluation", awake)

    def _put_to_rest(self, name: str) -> bool:
        """Whether the module belongs to a part that is in evaluation mode and frozen as a whole: a fixed backbone."""
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            part = self._modules.get(".".join(parts[:end]))
            if part is not None and not part.training:
                weights = list(part.parameters())
                return bool(weights) and not any(weight.requires_grad for weight in weights)
        return False

    def end_step(self) -> Reading | None:
        for about, names in self._found.items():
            if about not in self._told:
                self._tell(about, names)
        return None

    def _tell(self, about: str, names: list[str]) -> None:
        self._told.add(about)
        kind, text = _SENTENCES[about]
        some = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        during = "evaluation" if about == "evaluation" else "training"
        self.watch.tell(
            kind, about="mode", during=during, modules=names[:NAMED], count=len(names), text=text.format(some)
        )


_SENTENCES = {
    "model": (
        "warning",
        "the model is in evaluation mode while it is trained, so these do not act as in training: {}. Call "
        "model.train() after every evaluation.",
    ),
    "dropout": (
        "warning",
        "these modules drop nothing, because they are in evaluation mode while the model is trained: {}. Call "
        "model.train(), or take them out of the model if that is meant.",
    ),
    "evaluation": (
        "warning",
        "these modules act as in training while the model is evaluated, so that dropout makes the result random and "
        "batch normalisation takes the held-out data into its statistics: {}. Call model.eval() before every "
        "evaluation, and model.train() after it.",
    ),
    "batch normalisation": (
        "note",
        "batch normalisation in evaluation mode while the model is trained, with running statistics that no longer "
        "change (as in fine-tuning, where that is meant): {}",
    ),
}


def _minds(module: nn.Module) -> bool:
    """Whether the module does something else in training mode than in evaluation mode."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout > 0
    return isinstance(module, _NormBase) and module.track_running_stats
