"""Keeps what the monitor costs below the share of the step that it was given.

The monitor's time is measured like every other part of the step. When it was above its budget over a window of steps,
the probe that cost most in that window is made half as frequent; the change is an event, so that whoever reads the run
knows why the points of a curve lie further apart from there on. Gradient norms are not slowed down: they are the pass
that clipping needs anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monitor.hook.probe import Probe

WINDOW_STEPS = 100
"""Steps that are judged together: the slowest cadences come about once in it. Our judgement."""
SETTLE_STEPS = 20
"""Steps at the start that are left out: allocators, compilers and caches warm up in them."""
MOST_SLOWED = 8
"""A probe is not made rarer than this many times its own cadence: beyond, it says too little to be worth anything."""


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
        if self._steps >= WINDOW_STEPS:
            self._judge()
            self._begin()

    def _judge(self) -> None:
        share = self._monitor_s / self._step_s if self._step_s > 0 else 0.0
        if share <= self.budget:
            return
        slower = [
            probe
            for probe in self._spent
            if not (probe.every_step or probe.alike)
            and probe.every < MOST_SLOWED * self._own.setdefault(probe, probe.every)
        ]
        costly = max(slower, key=lambda probe: self._spent[probe], default=None)
        # A probe that costs less than a tenth of what is too much would be slowed down in vain.
        if costly is None or self._spent[costly] < 1e8 * (self._monitor_s - self.budget * self._step_s):
            if not self._said:
                self._said = True
                self._tell(
                    "warning",
                    text=f"the monitor costs {share:.1%} of the step, above its budget of {self.budget:.1%}, and no "
                    "probe is left whose cadence would change that. Give attach a larger budget, or detail='norms'.",
                )
            return
        before, costly.every = costly.every, 2 * costly.every
        self._tell(
            "cadence", what=costly.name, before=before, after=costly.every,
            monitor_share=round(share, 5), budget=self.budget,
        )  # fmt: skip
