"""How large the weights are, and how far each step moves them.

Where the optimizer's formula is known (SGD, Adam, AdamW in float32 or float64) the update comes from its state, see
``estimates.py``; everywhere else, and always in half precision, where rounding decides what a step changes, it is the
difference from a copy of the weights that lives for the measured step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from monitor.hook.estimates import adam_update, estimated, moments_of, sgd_update
from monitor.hook.layers import LayerTable
from monitor.hook.over_ranks import OverRanks
from monitor.hook.passes import (
    LOW_PRECISION,
    PLAIN,
    Owned,
    RowNorms,
    bites,
    measured,
    norms_of,
    on_host,
    owned_by,
    real,
)
from monitor.hook.probe import Decoded, Probe, Reading
from monitor.hook.ranks import is_sharded
from monitor.hook.sharded import local


@dataclass(slots=True)
class _Step:
    """One optimizer's step: from before it to after it."""

    pending: list[Owned] = field(default_factory=list)
    """Adam's, to be read from its state."""
    copies: list[tuple[Owned, list[Tensor]]] = field(default_factory=list)
    unknown: set[int] = field(default_factory=set)
    """Rows that change and whose update is not measured."""
    updates: list[RowNorms] = field(default_factory=list)
    weights: list[RowNorms] = field(default_factory=list)
    done: bool = False


class Updates(Probe):
    """Per layer ``weight_norm`` ‖θ‖ after the step, ``update_norm`` ‖Δθ‖ and ``update_to_weight_ratio`` ‖Δθ‖/‖θ‖.

    A layer that has no gradient is left alone by the optimizer: its update is 0, and so is that of a layer which no
    optimizer owns. Frozen layers (``requires_grad=False``) are absent. When the step was skipped, updates are absent.
    An optimizer that steps several times in one step of the loop is measured in the last of them. Of a sharded model
    they are the norms of the whole tensors, added up over the ranks.
    """

    name = "weight and update norms"
    every = 20
    first_steps = 10
    over_ranks = True

    def __init__(self, table: LayerTable) -> None:
        super().__init__()
        self._table = table
        self._steps: dict[int, _Step] = {}
        self._told = False

    def begin(self) -> None:
        self._steps = {}

    @torch.no_grad()
    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        step = self._steps[id(optimizer)] = _Step()
        void = getattr(optimizer, "found_inf", None)  # fused, under a GradScaler: it decides on the device
        sharded = self.watch.over_ranks is not None
        for owned in owned_by(optimizer, self._table, self.coverage.kept, sharded=sharded):
            kind = estimated(optimizer, owned)
            if kind == "adam":
                step.pending.append(owned)
            elif kind == "sgd":
                norms = sgd_update(optimizer, owned)
                norms.void = void
                step.updates.append(norms)
            elif not _room_for(owned.parameters):
                step.unknown.update(owned.rows)
                self._say_no_room()
            else:
                step.copies.append((owned, [local(parameter).detach().clone() for parameter in owned.parameters]))

    @torch.no_grad()
    def after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        step = self._steps.get(id(optimizer))
        if step is None:
            return
        void = getattr(optimizer, "found_inf", None)
        for owned in step.pending:
            moments = moments_of(optimizer, owned)
            if moments is not None:
                update, weight = adam_update(optimizer, moments)
                update.void = void
                step.updates.append(update)
                step.weights.append(weight)
        for owned, copies in step.copies:
            update = _difference(owned, copies)
            update.void = void
            step.updates.append(update)
        step.pending, step.copies, step.done = [], [], True

    @torch.no_grad()
    def end_step(self) -> Reading | None:
        steps = [step for step in self._steps.values() if step.done]
        self._steps = {}
        updates = [norms for step in steps for norms in step.updates]
        weights = [norms for step in steps for norms in step.weights]
        weights += self._other_weights({row for norms in weights for row in norms.rows})
        unknown = {row for step in steps for row in step.unknown}
        still = self._still(updates, unknown) if steps else []
        if self.watch.over_ranks is not None:
            return self._added_up(self.watch.over_ranks, weights, updates, still)
        if not weights:
            return None
        layers, whole = len(self._table), self.coverage.whole

        def decode(arrays: list[np.ndarray]) -> Decoded:
            split = sum(len(norms.tensors()) for norms in weights)
            weight, has_weight = on_host(layers, weights, arrays[:split])
            update, moved = on_host(layers, updates, arrays[split:])
            moved[still] = True
            decoded = _decoded(weight, has_weight, update, moved & has_weight)
            return decoded if whole else Decoded(layers=decoded.layers)

        return Reading([tensor for norms in (*weights, *updates) for tensor in norms.tensors()], decode)

    def _added_up(
        self, ranks: OverRanks, weights: list[RowNorms], updates: list[RowNorms], still: list[int]
    ) -> Reading:
        ranks.add_norms("weight_norm", weights)
        ranks.add_norms("update_norm", updates)
        ranks.add_nothing("update_norm", still)

        def decode(arrays: list[np.ndarray]) -> Decoded:
            (weight, has_weight), (update, moved) = map(ranks.values, arrays)
            return _decoded(np.sqrt(weight), has_weight, np.sqrt(update), moved & has_weight)

        return Reading(ranks.tensors("weight_norm", "update_norm"), decode)

    def _say_no_room(self) -> None:
        if not self._told:
            self._told = True
            self.watch.warn(
                "update norms are absent: this optimizer or half precision needs a copy of the weights for a step, and "
                "the device has not the memory for it to spare",
                step=self.watch.step,
            )

    def _other_weights(self, done: set[int]) -> list[RowNorms]:
        """Norms of the weights that have not been measured with their update."""
        kinds: dict[tuple[torch.device, torch.dtype, bool], list[int]] = {}
        for row, parameter in self._covered():
            trained = parameter.requires_grad or parameter.grad is not None
            if row not in done and trained and self._measurable(parameter) and parameter.numel():
                kinds.setdefault((parameter.device, parameter.dtype, is_sharded(parameter)), []).append(row)
        found = []
        for rows in kinds.values():
            tensors = real([self._table.parameters[row] for row in rows])
            taken = bites(tensors)
            found.append(measured(rows, [norm for bite in taken for norm in norms_of(bite.of(tensors))], taken))
        return found

    def _still(self, updates: Sequence[RowNorms], unknown: set[int]) -> list[int]:
        """Rows that no optimizer changes in this step."""
        changed = unknown | {row for norms in updates for row in norms.rows}
        return [
            row for row, parameter in self._covered()
            if row not in changed and parameter.requires_grad and self._measurable(parameter)
        ]  # fmt: skip

    def _covered(self) -> list[tuple[int, nn.Parameter]]:
        return [(row, one) for row, one in enumerate(self._table.parameters) if row in self.coverage]

    def _measurable(self, parameter: Tensor) -> bool:
        return type(parameter) in PLAIN or (self.watch.over_ranks is not None and is_sharded(parameter))


def _room_for(parameters: Sequence[Tensor]) -> bool:
    """Whether a copy takes less than half of a CUDA device's memory that is free or only reserved; elsewhere, yes."""
    device = parameters[0].device
    if device.type != "cuda":
        return True
    needed = sum(local(parameter).numel() * parameter.element_size() for parameter in parameters)
    free, _ = torch.cuda.mem_get_info(device)  # asks the driver; does not wait for kernels
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return needed < (free + spare) / 2


def _difference(owned: Owned, copies: list[Tensor]) -> RowNorms:
    after, before = real(owned.parameters), real(copies)
    taken = bites(after, before)
    parts: list[Tensor] = []
    for bite in taken:
        now, then = bite.of(after), bite.of(before)
        if now[0].dtype in LOW_PRECISION:  # the difference of two bf16 numbers is not always one
            now, then = [tensor.float() for tensor in now], [tensor.float() for tensor in then]
        parts += norms_of(torch._foreach_sub(now, then))
    return measured(owned.rows, parts, taken)


def _decoded(weight: np.ndarray, has_weight: np.ndarray, update: np.ndarray, moved: np.ndarray) -> Decoded:
    scalars = {"weight_norm": _length(weight[has_weight])}
    layers = {"weight_norm": _stat(weight, has_weight)}
    if moved.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = update / weight
            scalars["update_norm"] = _length(update[moved])
            scalars["update_to_weight_ratio"] = float(
                np.float64(scalars["update_norm"]) / np.float64(_length(weight[moved]))
            )
        layers["update_norm"] = _stat(update, moved)
        # 0/0 is a layer of zeros that stays zero: no ratio, and no finding either.
        layers["update_to_weight_ratio"] = _stat(ratio, moved & ~((weight == 0) & (update == 0)))
        if np.isnan(scalars["update_to_weight_ratio"]) and scalars["update_norm"] == 0:
            del scalars["update_to_weight_ratio"]
    return Decoded(scalars, layers)


def _length(values: np.ndarray) -> float:
    return float(np.sqrt(np.dot(values, values)))


def _stat(values: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore"):
        return np.where(present, values, 0.0).astype(np.float32), present
