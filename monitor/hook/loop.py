"""Follows one training loop through its steps from the calls that it makes.

    end of step k-1 ... forward  backward ... forward  backward  [unscale_] [clip] optimizer.step [update] mon.step
    |-- data wait ----|-- micro-step 1 -|---|-- micro-step 2 -|-------- once per optimizer step -----------------|

Nothing in here raises into the loop, and nothing waits for the device.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from monitor.guard import contained
from monitor.hook import observe
from monitor.hook.device_time import DeviceClock
from monitor.hook.gradients import PART, Gradients
from monitor.hook.layers import LayerTable
from monitor.hook.leftover import Leftover
from monitor.hook.observe import ClipCall, ValueClipCall
from monitor.hook.over_ranks import OverRanks
from monitor.hook.probe import Probe, Probes, Reading
from monitor.hook.ranks import is_sharded
from monitor.hook.sharded import ShardedNorms
from monitor.hook.step_norms import Scale, StepNorms
from monitor.hook.timing import GAP, StepClock

_NO_FORWARD = (
    "no forward pass of the module given to attach was seen before this backward: the wait for data and the forward "
    "pass are counted as other_s. Attach what the loop calls, for example the result of torch.compile"
)
_EVALUATED_AGAIN = (
    "the optimizer evaluates its closure several times in a step: gradient norms are those of the last evaluation, "
    "update norms those of the whole step"
)
_SEVERAL_OBJECTIVES = (
    "an optimizer steps after a backward pass of its own, and another one before it in the same step: losses that are "
    "minimised in turn, as of a GAN, may raise each other"
)
_MOVED_BEFORE = (
    "the optimizer changes the weights before it first evaluates its closure: what is measured from before to after "
    "the step (update norms, directions) is absent"
)


@dataclass(slots=True)
class StepFacts:
    """What was seen in the optimizer step that ended."""

    norms: StepNorms | None
    lrs: list[float | Tensor]
    loss_scale: Scale | None
    """Before ``update()``; None without an enabled GradScaler."""
    scale_after: Scale | None
    """After ``update()``, with an optimizer that skips on the device (fused), where only a fallen scale tells."""
    skipped: bool
    """The scaler left the optimizer step out."""
    readings: list[Reading]
    """Of the probes that measured this step, and of the device's clock."""
    measured: Sequence[Probe]
    """These probes."""
    dense: bool
    """Every probe measured it because of an early sign."""


class ForwardProbe:
    """The forward pre-hook of the root module.

    It is the one thing of ours inside the user's model, so a copy of the model must not drag the monitor along: copied
    or pickled it becomes ``contextlib.nullcontext().__exit__``, which takes anything, does nothing, and is in every
    Python.
    """

    __slots__ = ("_begins",)

    def __init__(self, begins: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]) -> None:
        self._begins = begins

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            self._begins(module, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


class Loop:
    """One loop being watched; an ``observe.Listener``.

    Args:
        step_begins: called at the first forward or backward of a step.
        tell: called with a sentence that becomes an event.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        table: LayerTable,
        *,
        clock: StepClock,
        probes: Probes,
        step_begins: Callable[[], None],
        tell: Callable[[str], None],
        scaler: Any = None,
    ) -> None:
        self.clock = clock
        self.device: DeviceClock | None = None  # while the model is on a CUDA device
        self.probes = probes
        probes.in_forward = self.in_forward
        probes.in_backward = self.in_backward
        probes.loss_scale = self._scale
        self.gradients = Gradients(table, optimizers, clock, tell)
        if self.gradients.sharded is not None and len(table):
            self._add_up(self.gradients.sharded, table, tell)
        self._leftover = Leftover(table, optimizers, tell)
        self.scaler = scaler
        self._optimizers = tuple(optimizers)
        self._skips_on_device = any(getattr(o, "_step_supports_amp_scaling", False) for o in optimizers)
        self._table = table
        self._step_begins = step_begins
        self._tell = tell
        self._told: set[str] = set()
        self.thread = threading.get_ident()
        self.live = True
        self._aside = 0
        self._between = GAP  # the part to be in when neither forward nor backward runs
        self._backward_depth = 0
        self._new_step()
        self._handles = [model.register_forward_pre_hook(ForwardProbe(self.forward_begins), with_kwargs=True)]
        for optimizer in self._optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._optimizer_begins))
            self._handles.append(optimizer.register_step_post_hook(self._optimizer_ended))
        observe.watch(self)

    def _add_up(self, norms: ShardedNorms, table: LayerTable, tell: Callable[[str], None]) -> None:
        """Some layers are spread over ranks as DTensors, and all ranks are here. A collective operation."""
        spread = any(map(is_sharded, table.parameters))
        ranks = OverRanks(table, norms, (spread, self.probes.cadence))
        if not spread or not self.probes.cadence:
            return
        if ranks.agreed:
            self.probes.add_up(ranks)
        else:
            tell("the ranks were attached with different options: statistics of sharded layers are absent")

    def remove(self) -> None:
        """Take every hook out. Idempotent."""
        self.live = False
        observe.unwatch(self)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.probes.remove()

    def forget(self) -> None:
        """This is a copy in a forked child: nothing here is the training any more."""
        self.live = False

    def _new_step(self) -> None:
        self.begun = False
        self._lrs: list[float | Tensor] = []
        self._loss_scale: Scale | None = None
        self._stepped = False
        self._scaler_stepped = False
        self._unscaled: set[int] = set()
        self._inside: dict[int, int] = {}
        """How many ``step`` calls of each optimizer are running, one within the other."""
        self._evaluations: dict[int, int] = {}
        """How often each optimizer whose step was given a closure, and is running, has evaluated it."""
        self._stepped_last: int | None = None
        """The optimizer that stepped last in this step."""
        self._backward_since = False
        """A backward pass followed."""
        self._from_the_start: set[int] = set()
        """Optimizers in a step with a closure whose weights the probes have seen as they were before it."""

    @contextlib.contextmanager
    def aside(self, part: str) -> Iterator[None]:
        """Time that is not the loop's own: an evaluation, a checkpoint, a landscape sample. Its passes do not count."""
        before = self.clock.switch(part)
        on_device = self.device.part if self.device is not None else None
        self._mark(None)
        self._aside += 1
        try:
            yield
        finally:
            self._aside -= 1
            self._mark(on_device)
            self.clock.switch(before)

    def _mark(self, part: str | None) -> None:
        """Say that the work given to the device from here on is that of ``part``."""
        if self.device is not None:
            with contained("device times"):
                self.device.mark(part)

    def _mine(self) -> bool:
        return self.live and not self._aside and threading.get_ident() == self.thread

    # Once per micro-step ---------------------------------------------------------------------------------------------

    def forward_begins(
        self, module: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        if not self._mine() or self._backward_depth:  # in backward: activation checkpointing computes it again
            if self._aside == 1 and self.clock.part == "eval" and threading.get_ident() == self.thread:
                self.probes.evaluation_begins()
            return
        clock = self.clock
        clock.switch("monitor")
        if torch.is_grad_enabled() or module.training:
            clock.settle("data_wait")
            self._begin()
            self.probes.forward_begins(args, kwargs)
            self._mark("forward")
            clock.switch("forward")
        else:
            # An evaluation outside mon.phase("eval"). Where it ends only the next event tells.
            clock.settle("other")
            clock.switch("eval")

    def backward_begins(self) -> None:
        if not self._mine():
            return
        self._backward_depth += 1  # reentrant checkpointing calls backward within backward
        if self._backward_depth == 1:
            self.clock.switch("monitor")
            self.clock.settle("other")
            if not self.begun:
                self._say("no forward", _NO_FORWARD)
            elif not self.gradients.micro_steps:
                with contained("gradients left from the step before"):
                    self._leftover.backward_begins()
            self._begin()
            self._mark("backward")
            self.clock.switch("backward")

    def backward_ended(self) -> None:
        if not self._backward_depth or not self._mine():
            return
        self._backward_depth -= 1
        if self._backward_depth:
            return
        self._mark("optimizer" if self._between == "optimizer" else None)
        self.clock.switch("monitor")
        with contained("gradients left from the step before"):
            self._leftover.backward_ended()
        with contained(PART):
            self.gradients.backward_ended(self._scale())
            self._read_lrs()
        self.probes.backward_ended()
        self._backward_since = self._stepped_last is not None
        self.clock.switch(self._between)

    def in_forward(self) -> bool:
        """Whether a module's forward that runs now is part of the training step: not an evaluation, not a landscape
        sample, not activation checkpointing's second pass within backward."""
        return self.begun and not self._backward_depth and self._mine()

    def in_backward(self) -> bool:
        """Whether a gradient that arrives now is one of the training step."""
        return self._backward_depth > 0 and self._mine()

    def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            if self.device is None and self._table.parameters and self._table.parameters[0].is_cuda:
                self.device = DeviceClock()
            self._step_begins()

    # Once per optimizer step -----------------------------------------------------------------------------------------

    def claims_clip(self, parameters: list[Tensor]) -> bool:
        return self._mine() and any(id(parameter) in self._table.index for parameter in parameters)

    def clip_called(self, call: ClipCall) -> Tensor:
        self.clock.settle("other")
        return self.gradients.clip(call, self._scale())

    def value_clip_called(self, call: ValueClipCall) -> None:
        self.clock.settle("other")
        self.gradients.clip_value(call, self._scale())

    def gradients_will_change(self) -> None:
        self.clock.settle("other")
        self.gradients.will_change(self._scale())

    def unscale_once(self) -> None:
        """Divide the gradients by the loss scale where that has not been done in this step. A training action."""
        scaler = self.scaler
        if scaler is not None and scaler.is_enabled():
            for optimizer in self._optimizers:
                if id(optimizer) not in self._unscaled:
                    scaler.unscale_(optimizer)

    def claims_scaler(self, scaler: Any, optimizer: torch.optim.Optimizer) -> bool:
        if not self._mine() or not any(optimizer is mine for mine in self._optimizers):
            return False
        if scaler is not self.scaler and scaler.is_enabled():
            # One that attach was not told of. What was measured in this step was taken for unscaled, and is not.
            self.scaler = scaler
            self.gradients.were_scaled(self._scale())
        return scaler.is_enabled()

    def unscale_called(self, optimizer: torch.optim.Optimizer, call: Callable[[], Any]) -> Any:
        self.clock.settle("other")
        before = self.clock.switch("optimizer")
        self._scale()  # noted before anything changes it
        result = call()
        self._unscaled.add(id(optimizer))
        self.clock.switch("monitor")
        with contained(PART):
            self.gradients.was_unscaled()
        self.clock.switch(before)
        return result

    def scaler_step_called(self, optimizer: torch.optim.Optimizer, call: Callable[[], Any]) -> Any:
        # Here and not in the optimizer's pre-hook, because of an overflow the optimizer's step is never called.
        self.clock.settle("other")
        before = self.clock.switch("monitor")
        with contained(PART):
            self.gradients.before_optimizer(optimizer, self._scale())
            self._read_lrs()
            self._scaler_stepped = True
        self.clock.switch("optimizer")
        try:
            return call()
        finally:
            self.clock.switch(before)

    def _optimizer_begins(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self._mine() or torch.compiler.is_compiling():
            return None
        self.clock.settle("other")
        self.clock.switch("monitor")
        closure = _closure(args, kwargs)
        depth = self._inside.get(id(optimizer), 0)  # a step that calls its parent class's, with or without the closure
        self._inside[id(optimizer)] = depth + 1
        changed = None
        with contained(PART):
            self._stepped = True
            if self._backward_since and self._stepped_last != id(optimizer):
                self._note("objectives", _SEVERAL_OBJECTIVES, kind="objectives")
            if closure is None:
                self.gradients.before_optimizer(optimizer, self._scale())
            elif not depth:
                self.gradients.closure_begins()
                self._evaluations[id(optimizer)] = 0
                changed = _with_closure(args, kwargs, self._watched(optimizer, closure))
            self._read_lrs()
        if id(optimizer) not in self._evaluations:
            self.probes.before_optimizer(optimizer)
        self._between = "optimizer"
        self._mark("optimizer")
        self.clock.switch("optimizer")
        return changed

    def _watched(self, optimizer: torch.optim.Optimizer, closure: Callable[..., Any]) -> Callable[..., Any]:
        """``closure``, telling when it has been evaluated: then the gradients are as the optimizer will use them."""
        versions = self._weight_versions()

        @functools.wraps(closure)
        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                result = closure(*args, **kwargs)
            except BaseException:
                self._inside.pop(id(optimizer), None)  # the step will not be ended
                raise
            if self._mine():
                self.clock.switch("monitor")
                self._evaluated(optimizer, versions)
                self.clock.switch("optimizer")
            return result

        return watched

    def _evaluated(self, optimizer: torch.optim.Optimizer, versions: list[int]) -> None:
        with contained(PART):
            self.gradients.before_optimizer(optimizer, self._scale())
            self.gradients.closure_evaluated()
        self._evaluations[id(optimizer)] += 1
        if self._evaluations[id(optimizer)] > 1:
            self._note("evaluations", _EVALUATED_AGAIN)
        elif versions == self._weight_versions():
            self.probes.before_optimizer(optimizer)
            self._from_the_start.add(id(optimizer))
        else:
            self._note("moved", _MOVED_BEFORE)

    def _weight_versions(self) -> list[int]:
        return [parameter._version for parameter in self._table.parameters] if self.probes.probes else []

    def _optimizer_ended(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._mine() or torch.compiler.is_compiling():
            return
        self._mark(None)
        self.clock.switch("monitor")
        depth = self._inside[id(optimizer)] = max(0, self._inside.get(id(optimizer), 0) - 1)
        if id(optimizer) not in self._evaluations:
            self.probes.after_optimizer(optimizer)
        elif not depth:
            with contained(PART):
                if not self._evaluations.pop(id(optimizer)):  # it made do with the gradients that were there
                    self.gradients.before_optimizer(optimizer, self._scale())
                self.gradients.closure_ended()
            if id(optimizer) in self._from_the_start:
                self._from_the_start.discard(id(optimizer))
                self.probes.after_optimizer(optimizer)
        self._stepped_last, self._backward_since = id(optimizer), False
        self._between = GAP
        self.clock.switch(GAP)

    def end_step(self) -> StepFacts:
        """Everything seen since the step before; the clock is left running in ``monitor``."""
        self.thread = threading.get_ident()  # the loop is where mon.step() is called
        measured = self.probes.active
        readings = self.probes.end_step()  # first: other ranks may wait for this one in it
        facts = StepFacts(
            norms=self.gradients.end_step(),
            lrs=self._lrs or self._current_lrs(),
            loss_scale=self._loss_scale,
            scale_after=self._scale_now() if self._scaler_stepped and self._skips_on_device else None,
            skipped=self._scaler_stepped and not self._stepped,
            readings=[*readings, *self._device_times()],
            measured=measured,
            dense=self.probes.armed,
        )
        if not self._stepped and not self._scaler_stepped:
            self._say("no step", "mon.step() was called though no optimizer step was seen since the last one")
        with contained("gradients left from the step before"):
            self._leftover.step_ended(self._stepped)
        self._new_step()
        return facts

    def _device_times(self) -> list[Reading]:
        times: Reading | None = None
        with contained("device times"):
            times = self.device.end_step() if self.device is not None else None
        return [times] if times is not None else []

    def _say(self, key: str, text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._tell(text)

    def _note(self, key: str, text: str, kind: str = "note") -> None:
        if key not in self._told:
            self._told.add(key)
            self.probes.tell(kind, text=text)

    # Reading ---------------------------------------------------------------------------------------------------------

    def _read_lrs(self) -> None:
        self._lrs = self._current_lrs()

    def _current_lrs(self) -> list[float | Tensor]:
        """Learning rate per parameter group over all optimizers, in order; a tensor on a device stays there."""
        return [
            _scalar(group["lr"]) for optimizer in self._optimizers for group in optimizer.param_groups if "lr" in group
        ]

    def _scale(self) -> Scale:
        """The loss scale of this step: noted once, because ``update()`` changes it at the end of the step."""
        if self._loss_scale is None:
            self._loss_scale = self._scale_now()
        return 1.0 if self._loss_scale is None else self._loss_scale

    def _scale_now(self) -> Scale | None:
        scaler = self.scaler
        if scaler is None or not scaler.is_enabled():
            return None
        scale = getattr(scaler, "_scale", None)  # private, but get_scale() makes the host wait for the device
        if isinstance(scale, Tensor) and scale.device.type != "cpu":
            return scale.clone()
        return scaler.get_scale()


def _scalar(value: Any) -> float | Tensor:
    if isinstance(value, Tensor):
        # Cloned: a scheduler fills the same tensor with the next step's rate before this one is read.
        return value.detach().clone() if value.device.type != "cpu" else value.item()
    return float(value)


def _closure(args: Any, kwargs: Any) -> Callable[..., Any] | None:
    """That of ``optimizer.step(closure)``, with forward and backward inside (L-BFGS, Lightning)."""
    return args[1] if len(args) > 1 else kwargs.get("closure")


def _with_closure(args: Any, kwargs: Any, closure: Callable[..., Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the step with another closure."""
    if len(args) > 1:
        return (args[0], closure, *args[2:]), kwargs
    return args, {**kwargs, "closure": closure}
