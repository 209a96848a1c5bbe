"""Keeps what the monitor costs below the share of the step that it was given.

The monitor's time is measured like every other part of the step. When it was above its budget over a window of steps,
the probe that cost most in that window is made half as frequent. Where no cadence is left that would help, the one that
costs most measures half of its layers. When there has been room for a while, the last change is taken back. Each change
is an event, so that whoever reads the run knows why the points of a curve lie further apart from there on, or why
layers have no value.

Gradient norms are left alone, in every step and of every layer: they are the pass that clipping needs anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from monitor.hook.probe import Probe

WINDOW_STEPS = 100
"""Steps that are judged together: the slowest cadences come about once in it. Our judgement."""
SETTLE_STEPS = 20
"""Steps at the start that are left out: allocators, compilers and caches warm up in them."""
MOST_SLOWED = 8
"""A probe is not made rarer than this many times its own cadence: beyond, it says too little to be worth anything."""
ROOM = 0.8
"""Of the budget: a change is taken back when the monitor would cost less than this with it."""
ROOM_WINDOWS = 5
"""Windows in a row with that much room. Both our judgement."""

_Kind = Literal["cadence", "coverage"]


class Budget:
    """Compares the monitor's share of the time with its budget, window by window.

    Args:
        budget: share of the step, for example 0.02.
        tell: called with the kind and the fields of an event.
    """

    def __init__(self, budget: float, tell: Callable[..., Any]) -> None:
        self.budget = budget
        self._tell = tell
        self._left_out = SETTLE_STEPS
        self._own: dict[Probe, int] = {}
        self._price: dict[Probe, int] = {}
        """Nanoseconds of each probe's last measured step."""
        self._changes: list[tuple[_Kind, Probe]] = []
        """What can be taken back, the last at the end."""
        self._taken_back: set[tuple[_Kind, Probe]] = set()
        """What has been, and if it has to be done again, stays: no cadence swings to and fro."""
        self._windows_with_room = 0
        self._said = False
        self._begin()

    def _begin(self) -> None:
        self._steps = 0
        self._monitor_s = self._step_s = 0.0
        self._spent: dict[Probe, int] = {}

    def end_step(self, monitor_s: float, step_s: float, measured: Sequence[Probe], asked_for: bool) -> None:
        """Count one step.

        Args:
            monitor_s, step_s: the monitor's time in it, and the whole.
            measured: the probes that measured it.
            asked_for: its price was accepted, and is not counted: every probe measured it because of an early sign, or
                the loop had the landscape sampled.
        """
        if self._left_out:
            self._left_out -= 1
            return
        if asked_for:
            return
        self._steps += 1
        self._monitor_s += monitor_s
        self._step_s += step_s
        for probe in measured:
            self._spent[probe] = self._spent.get(probe, 0) + probe.spent_ns
            self._price[probe] = probe.spent_ns
        if self._steps >= WINDOW_STEPS:
            self._judge()
            self._begin()

    def _judge(self) -> None:
        share = self._monitor_s / self._step_s if self._step_s > 0 else 0.0
        if share > self.budget:
            self._windows_with_room = 0
            self._lower(share)
        elif self._changes:
            self._windows_with_room = self._windows_with_room + 1 if self._has_room(share) else 0
            if self._windows_with_room == ROOM_WINDOWS:
                self._windows_with_room = 0
                self._take_back(share)

    def _lower(self, share: float) -> None:
        # A probe that costs less than a tenth of what is too much would be changed in vain.
        least = 1e8 * (self._monitor_s - self.budget * self._step_s)
        costly = sorted((probe for probe in self._spent if self._spent[probe] >= least), key=self._spent.__getitem__)
        kinds: tuple[_Kind, ...] = ("cadence", "coverage")
        for kind in kinds:
            for probe in reversed(costly):
                if self._can_be_lowered(kind, probe):
                    if (kind, probe) not in self._taken_back:
                        self._changes.append((kind, probe))
                    self._change(kind, probe, share, back=False)
                    return
        if not self._said:
            self._said = True
            self._tell(
                "warning",
                text=f"the monitor costs {share:.1%} of the step, above its budget of {self.budget:.1%}, and no "
                "probe is left whose cadence or layers would change that. Give attach a larger budget, or "
                "detail='norms'.",
            )

    def _can_be_lowered(self, kind: _Kind, probe: Probe) -> bool:
        if probe.every_step or probe.alike:
            return False
        if kind == "coverage":
            return probe.coverage.can_shrink
        return probe.every < MOST_SLOWED * self._own.setdefault(probe, probe.every)

    def _has_room(self, share: float) -> bool:
        """Whether the last change can be taken back: then its probe costs as much again."""
        _, probe = self._changes[-1]
        again = self._price[probe] / probe.every * self._steps / (1e9 * self._step_s) if self._step_s > 0 else 0.0
        return share + again < ROOM * self.budget

    def _take_back(self, share: float) -> None:
        kind, probe = self._changes.pop()
        self._taken_back.add((kind, probe))
        self._change(kind, probe, share, back=True)

    def _change(self, kind: _Kind, probe: Probe, share: float, *, back: bool) -> None:
        fields: dict[str, Any] = {}
        if kind == "cadence":
            before, probe.every = probe.every, probe.every // 2 if back else 2 * probe.every
            after = probe.every
        else:
            coverage = probe.coverage
            before = coverage.count
            if back:
                coverage.more()
            else:
                coverage.fewer()
            after = coverage.count
            fields = {
                "of": coverage.total,
                "text": f"{probe.name}: of {after} of {coverage.total} instead of {before}, the monitor cost "
                f"{share:.1%} of the step",
            }
        self._tell(
            kind, what=probe.name, before=before, after=after, **fields,
            monitor_share=round(share, 5), budget=self.budget,
        )  # fmt: skip
