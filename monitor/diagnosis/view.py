"""What a rule sees of a run: signals by name, layers, events, cut off at a step when a live view is replayed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from monitor.diagnosis.primitives.continued import Continued
from monitor.signals import LayerMatrix, Signal, unit_of

if TYPE_CHECKING:
    from monitor.runfile.reader import Run

T = TypeVar("T")
Kept = dict[Hashable, Continued[Any]]
"""What views of one run hand on from one to the next, by detector; one thread at a time."""
Series = Sequence[float] | np.ndarray | tuple[np.ndarray, np.ndarray]


class EventLike(Protocol):
    """What the rules use of an event; ``monitor.runfile.reader.Event`` has it."""

    @property
    def step(self) -> int | None: ...
    @property
    def kind(self) -> str: ...
    @property
    def fields(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Mark:
    """An event given by hand, for data that does not come from a run directory."""

    kind: str
    step: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about the run beside its measurements."""

    id: str | None = None
    name: str | None = None
    path: str | None = None
    state: str | None = None
    config: Mapping[str, Any] | None = None
    """The resolved configuration, when the run recorded one."""
    planned_steps: int | None = None


class Signals:
    """A read-only view of one run for the rules, optionally cut off after ``last`` (the live view at that step).

    ``signals["train_loss"]`` is an empty Signal when nothing of that name was recorded; ``in`` asks whether there is
    at least one measurement. Derived values that several rules need are kept by ``remember``.
    """

    def __init__(
        self,
        series: Callable[[str], Signal],
        names: Iterable[str],
        *,
        layers: Callable[[str], LayerMatrix | None] = lambda stat: None,
        modules: Callable[[str], LayerMatrix | None] = lambda stat: None,
        system: Callable[[str], Signal] | None = None,
        ranks: Mapping[int, Callable[[], Signals]] | None = None,
        events: Sequence[EventLike] = (),
        facts: Facts | None = None,
        last: int | None = None,
        kept: Kept | None = None,
    ) -> None:
        self._series = series
        self._layers = layers
        self._modules = modules
        self._system = system or _empty
        self._ranks = dict(ranks or {})
        self._events = tuple(events)
        self._memory: dict[Hashable, Any] = {}
        self._names = tuple(names)
        self._kept = kept
        self.facts = facts or Facts()
        self.last = last

    @classmethod
    def from_run(cls, run: Run, *, rank: int = 0, kept: Kept | None = None) -> Signals:
        """The current line of attempts of ``run`` as rank ``rank`` recorded it.

        ``kept`` is filled with what a later view of the same run, read on, need not do again.
        """

        # Of a thinned run the worst of the steps that each row stands for, so that nothing left out is missed.
        def layers(stat: str) -> LayerMatrix | None:
            return run.peaks(stat, rank=rank) if stat in run.layer_stats else None

        def modules(stat: str) -> LayerMatrix | None:
            return run.peaks(stat, stream="modules", rank=rank) if stat in run.module_stats else None

        facts = Facts(run.id, run.name, str(run.path), run.state.word, run.config, run.planned_steps)
        known = run.ranks(run.attempts[-1].number) if rank == 0 and run.attempts else {}
        others = {number: partial(cls.from_run, run, rank=number) for number in sorted(known)} if len(known) > 1 else {}
        return cls(
            lambda name: run.series(name, rank=rank),
            run.names,
            layers=layers,
            modules=modules,
            system=lambda name: _machine(run, name, rank),
            ranks=others,
            events=run.events(),
            facts=facts,
            kept=kept,
        )

    @classmethod
    def from_arrays(
        cls,
        series: Mapping[str, Series],
        *,
        layers: Mapping[str, LayerMatrix | tuple[Sequence[str], np.ndarray]] | None = None,
        modules: Mapping[str, LayerMatrix | tuple[Sequence[str], np.ndarray]] | None = None,
        system: Mapping[str, Series] | None = None,
        ranks: Sequence[Signals] = (),
        events: Sequence[EventLike] = (),
        facts: Facts | None = None,
    ) -> Signals:
        """A view of plain arrays: values at steps 1, 2, 3, ..., or a pair ``(steps, values)``.

        ``layers`` and ``modules`` map a statistic to ``(names, float[T, L])`` at steps 1..T, every layer present, or to
        a LayerMatrix. ``system`` is the machine's, as ``series``. ``ranks`` holds the view of every rank, the first
        included, where there are several.
        """
        signals = {name: _signal(name, data) for name, data in series.items()}
        matrices = {stat: _matrix(stat, data) for stat, data in (layers or {}).items()}
        machine = {name: _signal(name, data) for name, data in (system or {}).items()}
        of_modules = {stat: _matrix(stat, data) for stat, data in (modules or {}).items()}
        return cls(
            lambda name: signals.get(name) or _empty(name),
            signals,
            layers=matrices.get,
            modules=of_modules.get,
            system=lambda name: machine.get(name) or _empty(name),
            ranks={number: partial(_same, view) for number, view in enumerate(ranks)},
            events=events,
            facts=facts,
        )

    def __getitem__(self, name: str) -> Signal:
        return self.remember(("series", name), lambda: self._series(name).between(None, self.last))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._names and len(self[name]) > 0

    @property
    def names(self) -> tuple[str, ...]:
        """The scalars with at least one measurement; one that comes first after the view's last step is not known."""
        return self.remember("names", lambda: tuple(name for name in self._names if name in self))

    def layers(self, stat: str) -> LayerMatrix | None:
        """Statistic ``stat`` of every layer, or None when it was not recorded.

        Of a thinned run each row is the worst of the steps from its ``since`` on.
        """
        return self.remember(("layers", stat), lambda: _cut(self._layers(stat), self.last))

    def modules(self, stat: str) -> LayerMatrix | None:
        """Statistic ``stat`` of every watched module's output, as :meth:`layers`."""
        return self.remember(("modules", stat), lambda: _cut(self._modules(stat), self.last))

    def system(self, name: str) -> Signal:
        """A measure of the machine in the last attempt, each sample at the last step completed before it; steps repeat
        where several samples fall into one. Empty when it was not recorded."""
        return self.remember(("system", name), lambda: self._system(name).between(None, self.last))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that recorded the last attempt; empty where there was one process only."""
        return tuple(self._ranks)

    def of_rank(self, rank: int) -> Signals:
        """What rank ``rank`` recorded; the view itself is rank 0's.

        Raises:
            KeyError: there is no such rank.
        """
        return self.remember(("rank", rank), lambda: self._ranks[rank]().until(self.last))

    def events(self, *kinds: str) -> list[EventLike]:
        """The events of the given kinds (all of them without an argument), in order, up to the view's last step."""
        seen = (event for event in self._events if not kinds or event.kind in kinds)
        return [event for event in seen if self.last is None or event.step is None or event.step <= self.last]

    def until(self, step: int | None) -> Signals:
        """The same run as it looked when ``step`` was its last step; None keeps everything."""
        if step is None:
            return self
        last = step if self.last is None else min(step, self.last)
        return Signals(
            self._series,
            self.names,
            layers=self._layers,
            modules=self._modules,
            system=self._system,
            ranks=self._ranks,
            events=self._events,
            facts=self.facts,
            last=last,
            kept=self._kept,
        )

    @property
    def last_step(self) -> int:
        """The last step of any scalar signal, 0 for an empty run."""
        return self.remember("last_step", lambda: max((int(self[n].step[-1]) for n in self.names), default=0))

    def continued(self, key: Hashable) -> Continued[Any]:
        """What a detector made of this run when it was shorter, and a new one where views keep nothing."""
        return Continued() if self._kept is None else self._kept.setdefault(key, Continued())

    def remember(self, key: Hashable, compute: Callable[[], T]) -> T:
        """``compute()``, once per view and key."""
        if key not in self._memory:
            self._memory[key] = compute()
        return self._memory[key]


def _machine(run: Run, name: str, rank: int) -> Signal:
    """Samples are taken by the clock; the steps' own times say which step was the last one done."""
    if not run.attempts:
        return _empty(name)
    attempt = run.attempts[-1].number
    samples, times = run.system(attempt=attempt, rank=rank), run.times(attempt=attempt)
    if name not in samples or len(times) == 0:
        return _empty(name)
    samples = samples[["time", name]].dropna()
    row = np.searchsorted(times.value, samples["time"].to_numpy(float), side="right") - 1
    keep = row >= 0
    return Signal(name, times.step[row[keep]], samples[name].to_numpy(float)[keep], unit_of(name))


def _same(view: Signals) -> Signals:
    return view


def _empty(name: str) -> Signal:
    return Signal(name, np.zeros(0, np.int64), np.zeros(0), unit_of(name))


def _signal(name: str, data: Series) -> Signal:
    if isinstance(data, tuple):
        step, value = np.asarray(data[0], np.int64), np.asarray(data[1], np.float64)
    else:
        value = np.asarray(data, np.float64)
        step = np.arange(1, len(value) + 1, dtype=np.int64)
    return Signal(name, step, value, unit_of(name))


def _matrix(stat: str, data: LayerMatrix | tuple[Sequence[str], np.ndarray]) -> LayerMatrix:
    if isinstance(data, LayerMatrix):
        return data
    names, value = data
    value = np.asarray(value, np.float32)
    step = np.arange(1, len(value) + 1, dtype=np.int64)
    return LayerMatrix(stat, step, tuple(names), value, np.ones(value.shape, bool))


def _cut(matrix: LayerMatrix | None, last: int | None) -> LayerMatrix | None:
    if matrix is None or len(matrix.step) == 0 or not matrix.names:
        return None
    if last is None:
        return matrix
    stop = int(np.searchsorted(matrix.step, last, side="right"))
    if stop == 0:
        return None
    return replace(
        matrix,
        step=matrix.step[:stop],
        value=matrix.value[:stop],
        present=matrix.present[:stop],
        since=None if matrix.since is None else matrix.since[:stop],
        nonfinite=None if matrix.nonfinite is None else matrix.nonfinite[:stop],
    )
