"""What is measured beside the gradient norms: one probe a quantity, each with its own cadence and its own cost.

A step is measured by a probe or not; that is settled when the step begins, so that a probe's forward hooks and its look
at the weights before and after the optimizer belong to one step. Two cadences: cruise, every ``every`` steps, and
armed, every step for a while after an early sign of trouble.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monitor.guard import contained
from monitor.hook.coverage import Coverage
from monitor.hook.over_ranks import OverRanks
from monitor.hook.timing import StepClock

ARMED_STEPS = 64
"""Steps that are measured densely after an early sign. Our judgement: a spike is over or a divergence plain by then."""

Stat = np.ndarray | tuple[np.ndarray, np.ndarray]
"""float32[L], or with bool[L]: where there is a value."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What arrived on the host, by name."""

    scalars: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, Stat] = field(default_factory=dict)
    """Statistics of the model's L parameter tensors, in the order of the layer table."""
    modules: Mapping[str, Stat] = field(default_factory=dict)
    """Statistics of the watched modules' outputs, in the order in which they were named."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Small tensors of one step on their way to the host, and what to make of their values there."""

    tensors: Sequence[Tensor]
    decode: Callable[[list[np.ndarray]], Decoded]
    """Called with one array per tensor, steps in order, not before the values have arrived."""


class Probe:
    """One quantity. Subclasses override the moments that they need; each is called in measured steps only.

    Nothing in here may wait for the device or change a bit of the training; an error ends the probe, not the loop.
    """

    name = "a probe"
    """What is measured, for messages: ``weight and update norms``."""
    every = 10
    """Steps from one measured step to the next while all is well."""
    first_steps = 0
    """So many steps at the start are all measured."""
    every_step = False
    """Worth nothing with gaps, so that it is not slowed down to save time."""
    moments: frozenset[str] = frozenset()
    """Names of the moments that the class overrides: a step asks nobody else."""
    alike = False
    """Ranks are held against each other at the same steps, so that no rank slows it down on its own."""
    over_ranks = False
    """Whether it adds up over ranks what each has of a sharded model (``Probes.over_ranks``)."""

    watch: Probes
    """All probes of the loop; set when it is attached."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.moments = frozenset(name for name in _MOMENTS if getattr(cls, name) is not getattr(Probe, name))

    def __init__(self) -> None:
        self.measuring = False
        """From the first forward of a measured step to its end."""
        self.spent_ns = 0
        """Host time of the step in progress."""
        self.coverage = Coverage()
        """What it measures of what is measured layer by layer; changes between two steps only."""

    def due(self, step: int, since_start: int) -> bool:
        """Whether to measure ``step``, the ``since_start``-th of this attempt (from 1), in the cruise cadence."""
        return since_start <= self.first_steps or step % self.every == 0

    def reduces(self, step: int, since_start: int) -> bool:
        """Whether a step that is measured in the cruise cadence ends with a reduction over ranks because of it: the
        same on every rank."""
        return self.due(step, since_start)

    def begin(self) -> None:
        """A measured step begins: its first forward comes next."""

    def forward_begins(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The model is about to run in training, once per micro-step; with what it is given.

        Where the loop runs the forward pass without calling the model, there is nothing given.
        """

    def evaluation_begins(self) -> None:
        """A forward pass inside ``mon.phase("eval")`` is about to begin; called whether a step is measured or not."""

    def backward_ended(self) -> None:
        """Once per micro-step; gradients accumulated so far, still multiplied by the loss scale if there is one."""

    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients are as the optimizer is about to use them: unscaled (a fused optimizer aside) and clipped."""

    def after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """The step has been taken; with a GradScaler that found an overflow this is not called."""

    def end_step(self) -> Reading | None:
        """What was measured in the step that ends; None for nothing."""
        return None

    def row_complete(self, step: int, row: Decoded) -> Mapping[str, float]:
        """Every value of ``step`` is known; called for every step in order, measured by this probe or not, after its
        own reading has been decoded. Maybe steps later, in another thread, or after ``remove``.

        Returns:
            Scalars that follow from the row and belong to it.
        """
        return {}

    def remove(self) -> None:
        """Take every hook out of the model. Called once."""


_MOMENTS = (
    "begin", "forward_begins", "evaluation_begins", "backward_ended", "before_optimizer", "after_optimizer",
    "row_complete",
)  # fmt: skip


class Probes:
    """All probes of one loop.

    Args:
        clock: the step's clock; what a hook of a probe costs inside forward is the monitor's time.
    """

    def __init__(self, probes: Sequence[Probe], clock: StepClock, start_step: int = 0) -> None:
        self.probes = list(probes)
        self._clock = clock
        self._start_step = start_step
        self._step = start_step
        self._armed_until = -1
        self._active: list[Probe] = []
        self._depth: dict[int, int] = {}
        """How many of an optimizer's steps are running: torch calls its hooks for each ``step`` of a class hierarchy
        that calls its parent's, and a probe wants the outermost."""
        self.in_forward: Callable[[], bool] = lambda: False
        """Whether a module that runs now runs in the training's own forward pass: not in an evaluation, a landscape
        sample, or activation checkpointing's second pass. Set by the loop."""
        self.in_backward: Callable[[], bool] = lambda: False
        """Whether a backward pass that runs now is the training's own. Set by the loop."""
        self.on_arm: Callable[[int], None] = lambda _steps: None
        """Told for how many steps the probes are armed: what was measured just before is worth keeping, too."""
        self.loss_scale: Callable[[], float | Tensor] = lambda: 1.0
        """What the gradients at the end of this step's backward are multiplied by. Set by the loop."""
        self.warn: Callable[..., None] = lambda text, **fields: None
        """Tell the run's readers once: ``warn(text, step=..., about="...", layers=[...])``. Set by the monitor."""
        self.tell: Callable[..., None] = lambda kind, **fields: None
        """Record an event. Set by the monitor."""
        self.over_ranks: OverRanks | None = None
        """Where the pieces of a sharded model are added up; None where there is none, and all is measured here."""
        self._together: tuple[Probe, ...] = ()
        """The probes that do so, dropped ones too."""
        self._reduces = False
        """Whether the step in progress ends with a reduction."""
        self._readers = [probe for probe in probes if Probe.row_complete.__name__ in probe.moments]
        for probe in self.probes:
            probe.watch = self

    @property
    def step(self) -> int:
        """The step in progress."""
        return self._step

    @property
    def since_start(self) -> int:
        """Which step of this attempt it is, from 1."""
        return self._step - self._start_step

    @property
    def elapsed_ns(self) -> int:
        """Host time since the step before ended."""
        return self._clock.elapsed_ns()

    @property
    def armed(self) -> bool:
        """Whether the step in progress is measured densely."""
        return self._step <= self._armed_until

    @property
    def active(self) -> Sequence[Probe]:
        """The probes that measure the step in progress."""
        return tuple(self._active)

    @property
    def cadence(self) -> list[tuple[str, int, int, int]]:
        """What says in which steps something is added up over ranks."""
        mine = [probe for probe in self.probes if probe.over_ranks]
        return [(probe.name, probe.every, probe.first_steps, self._start_step) for probe in mine]

    def add_up(self, ranks: OverRanks) -> None:
        """From here on the model's pieces are added up over the ranks, which have the same ``cadence``."""
        self.over_ranks = ranks
        self._together = tuple(probe for probe in self.probes if probe.over_ranks)
        for probe in self._together:
            probe.alike = True
        ranks.watch(lambda: self.armed)

    def dense(self, probe: Probe) -> bool:
        """Whether ``probe`` measures the step in progress because of an early sign, its own rank's or any rank's."""
        ranks = self.over_ranks
        return self.armed if ranks is None or not probe.over_ranks else ranks.armed

    def arm(self, steps: int = ARMED_STEPS) -> None:
        """Measure every one of the next ``steps`` steps with every probe."""
        self._armed_until = max(self._armed_until, self._step + steps)
        with contained("dense windows"):
            self.on_arm(steps)

    def begin(self, step: int) -> None:
        """``step`` begins."""
        self._step = step
        self._depth = {}
        since_start = step - self._start_step
        if self.over_ranks is None:
            armed = step <= self._armed_until
            self._active = [probe for probe in self.probes if armed or probe.due(step, since_start)]
        else:
            self.over_ranks.step_begins()
            self._reduces = self.over_ranks.armed or any(probe.reduces(step, since_start) for probe in self._together)
            if self._reduces:
                self.over_ranks.begin()
            self._active = [probe for probe in self.probes if self.dense(probe) or probe.due(step, since_start)]
        for probe in self._active:
            probe.measuring, probe.spent_ns = True, 0
        self._each(Probe.begin.__name__)

    def forward_begins(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward pass of the training begins."""
        self._each(Probe.forward_begins.__name__, args, kwargs)

    def evaluation_begins(self) -> None:
        """A forward pass of an evaluation begins."""
        for probe in tuple(self.probes):
            if Probe.evaluation_begins.__name__ in probe.moments:
                with _Charged(self, probe):
                    probe.evaluation_begins()

    def backward_ended(self) -> None:
        """A backward pass has ended."""
        self._each(Probe.backward_ended.__name__)

    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """``optimizer`` is about to step."""
        depth = self._depth.get(id(optimizer), 0)
        self._depth[id(optimizer)] = depth + 1
        if depth == 0:
            self._each(Probe.before_optimizer.__name__, optimizer)

    def after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """``optimizer`` has stepped."""
        depth = self._depth.get(id(optimizer), 1) - 1
        self._depth[id(optimizer)] = max(depth, 0)
        if depth <= 0:
            self._each(Probe.after_optimizer.__name__, optimizer)

    def end_step(self) -> list[Reading]:
        """The readings of the step that ends."""
        readings: list[Reading] = []
        for probe in self._active:
            with _Charged(self, probe):
                reading = probe.end_step()
                if reading is not None:
                    readings.append(reading)
            probe.measuring = False
        self._active = []
        if self._reduces and self.over_ranks is not None:
            self._reduces = False
            self.over_ranks.reduce()
        return readings

    def row_complete(self, step: int, row: Decoded) -> dict[str, float]:
        """Every value of ``step`` is known; gives back what the probes make of them."""
        derived: dict[str, float] = {}
        for probe in self._readers:
            with contained(probe.name):
                derived.update(probe.row_complete(step, row))
        return derived

    def remove(self) -> None:
        """Take every hook of every probe out."""
        for probe in self.probes:
            with contained(probe.name):
                probe.remove()
            probe.measuring = False
        self.probes, self._active = [], []

    def charged(self, probe: Probe) -> AbstractContextManager[None]:
        """Around what a probe's own hook does inside the model: its time is the monitor's, its error ends the probe."""
        return _Charged(self, probe, self._clock)

    def _each(self, moment: str, *arguments: object) -> None:
        for probe in tuple(self._active):
            if moment in probe.moments:
                with _Charged(self, probe):
                    getattr(probe, moment)(*arguments)

    def drop(self, probe: Probe) -> None:
        """An error once is an error every time: the probe is taken out, and the warning has said so."""
        probe.measuring = False
        self.probes = [other for other in self.probes if other is not probe]
        self._active = [other for other in self._active if other is not probe]
        self._readers = [other for other in self._readers if other is not probe]
        with contained(probe.name):
            probe.remove()


class _Charged:
    """One probe at work: an error ends the probe and not the loop, and the time is counted as the probe's.

    A class and not a generator, as ``contained`` is: it is entered several times in every step.
    """

    __slots__ = ("_before", "_began", "_clock", "_guard", "_probe", "_probes")

    def __init__(self, probes: Probes, probe: Probe, clock: StepClock | None = None) -> None:
        self._probes = probes
        self._probe = probe
        self._clock = clock
        self._guard = contained(probe.name)

    def __enter__(self) -> None:
        self._before = None if self._clock is None else self._clock.switch("monitor")
        self._began = time.perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            swallowed = error is not None and self._guard.__exit__(kind, error, trace)
            if swallowed:
                self._probes.drop(self._probe)
            return swallowed
        finally:
            self._probe.spent_ns += time.perf_counter_ns() - self._began
            if self._clock is not None and self._before is not None:
                self._clock.switch(self._before)
