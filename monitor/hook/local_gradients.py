"""Gradient norms of this rank alone, before they are reduced over ranks, beside those after.

After the reduction every rank has the same gradient, so a rank whose data or hardware is off can only be seen before.

DDP     A hook per parameter fires when its gradient has been accumulated, before DDP reduces it. The hooks are in the
        model in measured steps only: a Python call per tensor in every step would cost more than it tells.
FSDP2   Gradients are whole only inside the reduction. In measured steps the reduce-scatter of every group is told to
        report the norm of what goes in, and then does what it did before.

No collective operation is added: each rank writes its own numbers. Where several backward passes of one step are
reduced (accumulation without ``no_sync``), what arrives at the second reduction is no rank's own gradient any more, and
the norms are absent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from monitor.hook.layers import LayerTable, named_modules
from monitor.hook.passes import PLAIN, norms_of, real
from monitor.hook.probe import Decoded, Probe, Reading
from monitor.hook.ranks import ddp_of, is_sharded

if dist.is_available():
    from torch.distributed.fsdp import FSDPModule

_WHOLE = frozenset((torch.float32, torch.bfloat16))
"""In these FSDP2 reduces what backward left; in others it has been divided before, by a factor of its own."""
_OWN = ("DefaultReduceScatter", "_Reporting")
"""Reduce-scatters that may be exchanged for one that reports: FSDP2's own, and that of another monitor."""
_MOST_WAITING = 16
"""Steps whose rows have not been completed yet, at most; a row waits for four others."""


class LocalNorms(Probe):
    """What DDP and FSDP2 have in common: one norm per place, at the one reduction of a step."""

    name = "gradient norms before the reduction over ranks"
    every = 10
    first_steps = 10
    alike = True

    def __init__(self) -> None:
        super().__init__()
        self._norms: dict[int, Tensor] = {}
        self._first_ns: int | None = None
        self._fired = False
        self._backwards = self._reductions = 0
        self._told = False
        self._averaged: dict[int, int] = {}

    def begin(self) -> None:
        """No gradient yet."""
        self._norms, self._first_ns, self._fired = {}, None, False
        self._backwards = self._reductions = 0
        self._watch_gradients()

    def _watch_gradients(self) -> None:
        raise NotImplementedError

    def _reduces(self) -> bool:
        """Whether the backward pass that has just ended was reduced over ranks."""
        raise NotImplementedError

    def _ranks(self) -> int | None:
        """Over how many ranks the gradient is averaged; None where it is not known to be their mean."""
        raise NotImplementedError

    def _decoded(self, values: np.ndarray, places: Sequence[int]) -> Decoded:
        raise NotImplementedError

    def backward_ended(self) -> None:
        """One more micro-step; what comes before the reduced one is this rank's own business."""
        if not self._fired:  # a backward of something else
            return
        self._fired = False
        self._backwards += 1
        if self._reduces():
            self._reductions += 1
        elif not self._reductions:
            self._first_ns = None

    def _saw(self, place: int, grad: Tensor) -> None:
        if self._first_ns is None:
            self._first_ns = self.watch.elapsed_ns
        self._fired = True
        self._norms[place] = _length(grad)

    def end_step(self) -> Reading | None:
        """The norms, if one reduction took place, and when its first gradient was there."""
        self.remove()
        norms, self._norms = self._norms, {}
        if not self._reductions or self._first_ns is None:
            return None
        scalars = {"first_gradient_s": self._first_ns * 1e-9}
        if (problem := self._problem()) is not None:
            if not self._told:
                self._told = True
                self.watch.tell("note", text=f"{problem}, and grad_norm_local is absent")
            return Reading([], lambda _: Decoded(scalars))
        places = list(norms)
        self._note_ranks()
        scale = self.watch.loss_scale()

        def decode(arrays: list[np.ndarray]) -> Decoded:
            values = arrays[0] / (float(arrays[1]) if len(arrays) > 1 else scale)
            whole = {"grad_norm_local": math.sqrt(float(np.dot(values, values)))}
            found = self._decoded(values, places)
            return Decoded({**scalars, **whole}, found.layers, found.modules)

        together = _together([norms[place] for place in places])
        return Reading([together, scale] if isinstance(scale, Tensor) else [together], decode)

    def _note_ranks(self) -> None:
        ranks = self._ranks() if self._backwards == 1 else None
        if ranks is not None:
            self._averaged[self.watch.step] = ranks
            while len(self._averaged) > _MOST_WAITING:
                del self._averaged[next(iter(self._averaged))]

    def averaged_over(self, step: int) -> int | None:
        """Over how many ranks one backward pass's gradients were averaged in ``step``; asked once, when its row is
        complete. None where that is not known, or DDP accumulated several micro-steps."""
        return self._averaged.pop(step, None)

    def _problem(self) -> str | None:
        """Why the norms of this step are not those of this rank's own gradient."""
        if self._reductions > 1:
            return (
                "gradients are reduced over the ranks several times in a step, so this rank's own gradient is not "
                "known: no_sync (FSDP2: set_requires_gradient_sync) in all micro-steps but the last also saves the "
                "communication"
            )
        return None


class LocalLayers(LocalNorms):
    """Per layer and in all ``grad_norm_local`` under DDP, and ``first_gradient_s``."""

    def __init__(self, table: LayerTable, ddp: nn.parallel.DistributedDataParallel) -> None:
        super().__init__()
        self._table = table
        self._ddp = ddp
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def _watch_gradients(self) -> None:
        self.remove()
        for row, parameter in enumerate(self._table.parameters):
            if parameter.requires_grad and type(parameter) in PLAIN:
                hook = functools.partial(self._ready, row)
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    def _ready(self, row: int, parameter: Tensor) -> None:
        if not torch.compiler.is_compiling() and parameter.grad is not None and self.watch.in_backward():
            with self.watch.charged(self):
                self._saw(row, parameter.grad)

    def _reduces(self) -> bool:
        return self._ddp.require_forward_param_sync  # what the last forward pass prepared, no_sync or not

    def _ranks(self) -> int | None:
        # Private, both: a hook of the user's may sum or compress, and under join ended ranks count as zeros.
        if getattr(self._ddp, "_comm_hooks", ()) or getattr(getattr(self._ddp, "_join_config", None), "enable", False):
            return None
        return dist.get_world_size(self._ddp.process_group)

    def _decoded(self, values: np.ndarray, places: Sequence[int]) -> Decoded:
        row, present = np.zeros(len(self._table), np.float32), np.zeros(len(self._table), bool)
        with np.errstate(over="ignore"):
            row[places] = values
        present[places] = True
        return Decoded(layers={"grad_norm_local": (row, present)})

    def remove(self) -> None:
        """Take the hooks out."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class LocalGroups(LocalNorms):
    """``grad_norm_local`` of every group that FSDP2 reduces at once, and in all, and ``first_gradient_s``.

    A group's norm stands in the row of the module that ``fully_shard`` was called on; the model itself has no such row
    and is in the sum of all.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        rows = {id(module): row for row, module in enumerate(named_modules(model).values())}
        self._modules = len(rows)
        self._groups: list[Any] = [module for module in model.modules() if _group(module) is not None]
        self._rows = [rows.get(id(module), -1) for module in self._groups]
        self._own: list[tuple[Any, Any]] = []
        self._calls: dict[int, int] = {}
        self._divided = False

    def _watch_gradients(self) -> None:
        self.remove()
        self._calls = {}
        for place, module in enumerate(self._groups):
            own = _group(module)._reduce_scatter_comm
            self._own.append((module, own))
            module.set_custom_reduce_scatter(_Reporting(own, functools.partial(self._reducing, place)))

    def _reducing(self, place: int, gradients: Tensor) -> None:
        if not torch.compiler.is_compiling():
            with self.watch.charged(self):
                self._calls[place] = self._calls.get(place, 0) + 1
                self._saw(place, gradients)
                if gradients.dtype not in _WHOLE:
                    self._divided = True

    def _reduces(self) -> bool:
        """Whether groups were reduced since the last time; more often than once each shows in the count."""
        return max(self._calls.values(), default=0) > self._reductions

    def _problem(self) -> str | None:
        if self._divided:
            return "gradients are divided before they are reduced in this precision"
        return super()._problem()

    def _ranks(self) -> int | None:
        if any(_group(module).gradient_divide_factor is not None for module in self._groups):
            return None
        return next(p.device_mesh.size() for p in self._groups[0].parameters() if is_sharded(p))

    def _decoded(self, values: np.ndarray, places: Sequence[int]) -> Decoded:
        row, present = np.zeros(self._modules, np.float32), np.zeros(self._modules, bool)
        with np.errstate(over="ignore"):
            for place, value in zip(places, values, strict=True):
                if (at := self._rows[place]) >= 0:
                    row[at], present[at] = value, True
        return Decoded(modules={"grad_norm_local": (row, present)} if present.any() else {})

    def remove(self) -> None:
        """Give every group its own reduce-scatter back."""
        for module, own in self._own:
            module.set_custom_reduce_scatter(own)
        self._own = []


class _Reporting:
    """A reduce-scatter that reports what goes in and leaves the work to another one."""

    def __init__(self, own: Any, report: functools.partial[None]) -> None:
        self._own = own
        self._report = report

    def allocate(self, *args: Any, **options: Any) -> Tensor:
        """As the other one does."""
        return self._own.allocate(*args, **options)

    def __call__(self, *args: Any, **options: Any) -> Any:
        gradients = options.get("input_tensor", args[1] if len(args) > 1 else None)
        if gradients is not None:
            self._report(gradients)
        return self._own(*args, **options)


def local_probe(model: nn.Module, table: LayerTable) -> LocalNorms | None:
    """The probe that fits how ``model`` is spread over ranks; None where there is none, see :func:`why_absent`."""
    ddp = ddp_of(model)
    if ddp is not None:
        return LocalLayers(table, ddp)
    groups = any(_group(module) is not None for module in model.modules())
    return LocalGroups(model) if groups and why_absent(model) is None else None


def why_absent(model: nn.Module) -> str | None:
    """Why a model that is spread over ranks has no norms from before the reduction; None where it has them, or where
    nothing is reduced that we know of."""
    sharded = [parameter for parameter in model.parameters() if is_sharded(parameter)]
    if not sharded:
        return None
    if any(sum(not placement.is_replicate() for placement in parameter.placements) > 1 for parameter in sharded):
        return "parameters are sharded in two ways at once, so that no rank has a gradient of its own"
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not modules:
        return "parameters are sharded, though not by fully_shard: there is no reduction to look into"
    if not hasattr(FSDPModule, "set_custom_reduce_scatter"):
        return f"torch {torch.__version__} has no FSDPModule.set_custom_reduce_scatter, through which they are seen"
    if any(_group(module) is None for module in modules if _param_groups(module)):
        return "a module that fully_shard wrapped has a reduce-scatter of its own, or several groups of parameters"
    return None


def _param_groups(module: nn.Module) -> Sequence[Any]:
    """What FSDP2 reduces at once for ``module``; private, and empty where that is not so any more."""
    state = getattr(module, "_get_fsdp_state", lambda: None)()
    return getattr(state, "_fsdp_param_groups", ())


def _group(module: nn.Module) -> Any:
    """The one group of ``module`` if it is reduced in FSDP2's own way, else None."""
    groups = _param_groups(module)
    if len(groups) != 1 or type(getattr(groups[0], "_reduce_scatter_comm", None)).__name__ not in _OWN:
        return None
    return groups[0]


def _length(grad: Tensor) -> Tensor:
    """L2 norm; on the CPU, where looking costs nothing, in float64 when it overflowed though every entry is finite."""
    grad = grad.detach()
    grad = real([grad.coalesce()._values() if grad.is_sparse else grad])[0]
    norm = norms_of([grad])[0]
    if norm.get_device() < 0 and not math.isfinite(norm.item()) and bool(torch.isfinite(grad).all()):
        norm = torch.linalg.vector_norm(grad, dtype=torch.float64)
    return norm


def _together(norms: list[Tensor]) -> Tensor:
    """float64[n] on one device."""
    first = norms[0].device
    for norm in norms:
        if norm.is_cuda:  # made on a stream of backward's: its memory is not free before this one has read it
            norm.record_stream(torch.cuda.current_stream(norm.device))
    return torch.stack([norm.to(first, torch.float64, non_blocking=True) for norm in norms])
