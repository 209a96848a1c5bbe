"""Where a non-finite loss or gradient came from: the batch, the weights, a module, the loss, or the backward pass.

The host learns of a NaN after the step, when the outputs are gone. So in every step one sum is taken of the output of a
few blocks and of the model (NaN and infinity survive a sum), and is looked at only if the loss or a gradient turns out
not to be finite. That step's event names the block; from then on every module is watched for a while, inputs and own
weights too, and a second event names the module if it happens again.

On the CPU nothing is summed but the model's own output: what its blocks returned is kept until then, and is looked at
only when that is not finite. A model too small for eight sums a step is watched in this way all the same.

Not finite in the forward pass: the earliest module in the order of execution. Finite loss, but gradients that are not:
the layer nearest to the loss, which is the first one in the order of the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monitor.hook.layers import layer_table, named_modules
from monitor.hook.outputs import Hooks, Watchable, first_float, measurable, stacked
from monitor.hook.probe import Decoded, Probe, Reading, Stat

BLOCKS = 8
"""Most modules watched in every step, beside the model itself."""
PARAMETERS_PER_BLOCK = 500_000
"""On a device a small model has fewer: a hook that sums costs 10 to 60 µs, and its step is short."""
MOST_CALLS = 512
"""Calls watched in one step."""
MOST_KEPT = 64
"""Outputs kept until the model returns."""
MOST_EVENTS = 20
"""Events of one attempt."""

_MODEL = -1
"""Index of the model itself."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What the evidence of one step says."""

    origin: str
    """``input``, ``weights``, ``forward``, ``loss``, ``backward`` or ``unknown``."""
    where: str | None
    """Name of the module or layer."""
    exact: bool
    text: str


class NonFinite(Probe):
    """Finds the origin of non-finite values and records it as an event ``nonfinite``.

    Args:
        blocks: modules to watch in every step; by default by the size of the model.
    """

    name = "the origin of non-finite values"
    every = 1
    every_step = True

    def __init__(self, model: nn.Module, blocks: int | None = None) -> None:
        super().__init__()
        self._model = model
        size = sum(weight.numel() for weight in model.parameters())
        on_host = all(weight.get_device() < 0 for weight in model.parameters())
        few = BLOCKS if on_host else min(BLOCKS, size // PARAMETERS_PER_BLOCK)
        self._most = few if blocks is None else blocks
        self._table = layer_table(model)
        self._names = list(named_modules(model))
        self._watched = Watchable(model)
        self._modules: list[tuple[int, nn.Module]] = []
        self._blocks: list[tuple[int, nn.Module]] = []
        self._hooks = Hooks()
        self._told = 0  # of the present episode: 0 nothing, 1 roughly, 2 exactly
        self._events = 0
        self._evidence: _Evidence | None = None
        self._reset()

    def _reset(self) -> None:
        self._all = False
        self._order: list[int] = []
        self._sums: list[Tensor] = []
        self._kept: list[tuple[int, Tensor]] = []
        """Outputs of this forward pass that were not looked at yet."""
        self._broken_weights: list[int] | None = None

    def begin(self) -> None:
        self._reset()
        self._hooks.remove()
        self._all = self.watch.armed
        modules = self._watched.at(self.watch.step)
        if modules is not self._modules:
            blocks = _blocks(self._model, self._most)
            self._modules = modules
            self._blocks = [(index, module) for index, module in modules if id(module) in blocks]
        seen = modules if self._all else self._blocks
        self._hooks.after(self._saw, [*seen, (_MODEL, self._model)])

    def _saw(self, index: int, module: nn.Module, args: Any, _kwargs: Any, output: Any) -> None:
        if not self.measuring or not self.watch.in_forward() or len(self._order) >= MOST_CALLS:
            return
        values = first_float(output)
        if values is None:
            return
        if index != _MODEL and not self._all and values.get_device() < 0:
            if len(self._kept) < MOST_KEPT:
                self._kept.append((index, values))
            return
        with self.watch.charged(self):
            if index == _MODEL:
                self._look_at_kept(values)
            self._order.append(index)
            self._sums.append(_sum(values))
            if self._all:
                given = first_float(args)
                own = [_sum(weight.detach()) for weight in module.parameters(recurse=False) if _has_sum(weight)]
                zero = torch.zeros_like(self._sums[-1])
                self._sums.append(zero if given is None else _sum(given).to(zero.device))
                self._sums.append(sum(own, zero))

    def _look_at_kept(self, output: Tensor) -> None:
        """The model has returned ``output``: were the outputs of its blocks finite, when this is not?"""
        kept, self._kept = self._kept, []
        if kept and output.get_device() < 0 and not math.isfinite(_sum(output).item()):
            room = MOST_CALLS - 1 - len(self._order)
            self._order += [index for index, _ in kept[:room]]
            self._sums += [_sum(values) for _, values in kept[:room]]

    def backward_ended(self) -> None:
        self._kept = []  # of a loop that runs the forward pass without calling the model

    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        # On the CPU the sums can be read at once, and it is not too late to look at the weights that made them.
        outputs = self._sums[:: 3 if self._all else 1]
        on_host = all(each.get_device() < 0 for each in outputs)
        if on_host and not all(math.isfinite(each.item()) for each in outputs):
            self._broken_weights = [
                row
                for row, weight in enumerate(self._table.parameters)
                if _has_sum(weight) and not math.isfinite(_sum(weight.detach()).item())
            ]

    def end_step(self) -> Reading | None:
        self._hooks.remove()
        self._evidence = None
        if not self._order:
            return None
        sums = self._sums[0] if len(self._sums) == 1 else stacked(self._sums)
        order, every, broken = self._order, self._all, self._broken_weights
        self._reset()

        def decode(arrays: list[np.ndarray]) -> Decoded:
            self._evidence = _Evidence(order, arrays[0].reshape(len(order), -1), every, broken)
            return Decoded()

        return Reading([sums], decode)

    def row_complete(self, step: int, row: Decoded) -> Mapping[str, float]:
        self._judge(step, row.scalars, row.layers)
        return {}

    def _judge(self, step: int, values: Mapping[str, float], layers: Mapping[str, Stat]) -> None:
        evidence, self._evidence = self._evidence, None
        loss = values.get("train_loss")
        # A norm of the whole that is finite has finite parts, and is quicker to look at.
        whole = values.get("grad_norm_preclip", math.nan)
        broken = [] if math.isfinite(whole) else _not_finite(layers.get("grad_norm_preclip"))
        of_loss = loss is not None and not math.isfinite(loss)
        of_gradients = len(broken) > 0 and "loss_scale" not in values  # with a GradScaler an overflow is routine
        if not of_loss and not of_gradients:
            self._told = 0
            return
        if not self._told:
            self.watch.arm()
        found = self._origin(evidence, values, broken, loss_known=loss is not None, of_loss=of_loss)
        again = self._told > 0
        if again and found.origin == "weights":
            return  # broken by the step that has been told of
        certainty = 2 if found.exact else 1
        if certainty > self._told and self._events < MOST_EVENTS:
            self._told = certainty
            self._events += 1
            self.watch.tell(
                "nonfinite", step=step, origin=found.origin, where=found.where, exact=found.exact, text=found.text
            )

    def _origin(
        self,
        evidence: _Evidence | None,
        values: Mapping[str, float],
        broken: Sequence[int],
        *,
        loss_known: bool,
        of_loss: bool,
    ) -> Origin:
        if not math.isfinite(values.get("input_absmax", 0.0)):
            return Origin("input", None, True, "the batch holds values that are not finite")
        first = None if evidence is None else evidence.first()
        if evidence is not None and first is not None:
            return self._in_forward(evidence, first)
        whole = evidence is not None and _MODEL in evidence.order
        if of_loss:
            if whole:
                text = "what the model returned is finite, and the loss is not: the loss function made it"
                return Origin("loss", None, True, text)
            return Origin("unknown", None, False, "the loss is not finite, and no output of the model was watched")
        layer = self._table.names[broken[-1]]
        text = (
            f"in the backward pass {layer} is the first layer whose gradient is not finite "
            f"({len(broken)} of {len(self._table)} layers)"
        )
        if loss_known:
            return Origin("backward", layer, True, f"the loss is finite; {text}")
        return Origin("backward", layer, False, f"the loss was not given to mon.step; {text}")

    def _in_forward(self, evidence: _Evidence, first: int) -> Origin:
        if evidence.broken_weights:
            layer = self._table.names[evidence.broken_weights[0]]
            count = f"{len(evidence.broken_weights)} of {len(self._table)} layers"
            text = f"{layer} was not finite before this step ({count}): an earlier update broke the weights"
            return Origin("weights", layer, True, text)
        module = self._name(evidence.order[first])
        if not evidence.every:
            before = self._name(evidence.order[first - 1]) if first else None
            since = f"; {before}, watched before it, returned finite ones" if before else ""
            text = f"{module} is the first watched module that returned values that are not finite{since}"
            return Origin("forward", None if evidence.order[first] == _MODEL else module, False, text)
        _, given, own = np.isfinite(evidence.sums[first])
        if not own:
            return Origin("weights", module, True, f"the weights of {module} are not finite")
        if not given:
            text = f"{module} was given values that are not finite, though no module returned any before it"
            return Origin("forward", module, False, text)
        text = f"{module} returned values that are not finite, from an input and weights that are finite"
        return Origin("forward", module, True, text)

    def _name(self, index: int) -> str:
        return "the model" if index == _MODEL else self._names[index]

    def remove(self) -> None:
        self._hooks.remove()
        self._reset()


@dataclass(frozen=True, slots=True)
class _Evidence:
    """The sums of one step on the host."""

    order: Sequence[int]
    """Modules in the order in which their forward ended."""
    sums: np.ndarray
    """[n, 1] of the output; or [n, 3] with those of the first input and of the module's own weights."""
    every: bool
    """All modules were watched."""
    broken_weights: list[int] | None
    """Rows of the layer table that were not finite before the update; None: not looked at."""

    def first(self) -> int | None:
        """Place in ``order`` of the first output that is not finite."""
        at = np.flatnonzero(~np.isfinite(self.sums[:, 0]))
        return int(at[0]) if len(at) else None


def _has_sum(weight: Tensor) -> bool:
    return weight.is_floating_point() and measurable(weight)


def _sum(values: Tensor) -> Tensor:
    return values.sum(dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)


def _not_finite(stat: Stat | None) -> Sequence[int]:
    """Rows that have a value which is not finite."""
    if stat is None:
        return []
    values, present = stat if isinstance(stat, tuple) else (stat, True)
    return np.flatnonzero(~np.isfinite(values) & present).tolist()


def _blocks(model: nn.Module, most: int) -> set[int]:
    """``id`` of at most ``most`` modules that cut the model into pieces of its order of execution."""
    parts: list[nn.Module] = [model]
    while most:
        sizes = [_gain(part, most - len(parts)) for part in parts]
        at = int(np.argmax(sizes))
        if not sizes[at]:
            break
        parts[at : at + 1] = parts[at].children()
    picked = np.unique(np.linspace(0, len(parts) - 1, min(len(parts), most)).round().astype(int))
    return {id(parts[at]) for at in picked}


def _gain(part: nn.Module, room: int) -> int:
    """How much there is to gain by cutting ``part``; 0 when it is to stay whole, because it is called and its children
    are more than there is ``room`` for: a piece that is left out hides what happened in it."""
    inside = sum(1 for _ in part.modules()) - 1
    never_called = isinstance(part, nn.ModuleList | nn.ModuleDict)
    return inside if never_called or len(list(part.children())) - 1 <= room else 0
