"""Where the monitor's time in a training step goes: ``python -m tests.bench.parts SIZE DETAIL [STEPS] [THREADS]``.

Trains with the monitor and times its parts from the inside, each without what it calls of the others, in CPU time of
the calling thread and with the caches as a training leaves them: a loop over one part alone would show a fraction.
Beside it, in turns with it, one pass over as many bytes as the gradients have, and the barest way to their norms.
Taking the times is itself a microsecond a part. Prints one line of JSON: microseconds a step.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal
from unittest import mock

import torch

import monitor
from monitor.hook import gradients, norms, recorder
from monitor.hook.handle import Monitor
from monitor.hook.leftover import Leftover
from monitor.hook.loop import Loop
from monitor.hook.probe import _Charged
from monitor.hook.rows import Rows
from monitor.hook.step_norms import StepNorms
from monitor.runfile.writer import RankWriter
from tests.bench.watchers import Method as Watched
from tests.bench.watchers import Subject, foreach_norms, train

BESIDE = ("one pass over as many bytes as the gradients have", "finding them, _foreach_norm, one vector: not stored")
"""What the parts are held against."""
HOOKS = "hooks, clocks and guards: Python once a step"
ROW = "the step's row: made, queued, handed to the writer"
PARTS: tuple[tuple[Any, str, str], ...] = (
    (gradients, "_grads", "finding the gradients"),
    (norms, "_norm_each", "their norms (_foreach_norm)"),
    (gradients, "take_norms", "one vector of them, and the total"),
    (gradients.Gradients, "_versions_of", "whether somebody changed them (version counters)"),
    (Leftover, "step_ended", "whether they were zeroed"),
    (Leftover, "backward_begins", "whether they were zeroed"),
    (Leftover, "backward_ended", "whether they were zeroed"),
    (recorder, "_states", "random states for the flight recorder"),
    (StepNorms, "_decoded", ROW),
    (Rows, "end_step", ROW),
    (Rows, "step_begins", ROW),
    (RankWriter, "scalars", ROW),
    (RankWriter, "layers", ROW),
    *((Loop, name, HOOKS) for name in ("forward_begins", "backward_begins", "backward_ended", "end_step")),
    *((Loop, name, HOOKS) for name in ("_optimizer_begins", "_optimizer_ended")),
    (Monitor, "step", HOOKS),
)
"""Functions of the monitor, and what they do."""


class SelfTimes:
    """Nanoseconds of each label, without those of labels entered within it."""

    def __init__(self, now_ns: Callable[[], int] = time.thread_time_ns) -> None:
        self._now = now_ns
        self.spent: dict[str, int] = {}
        self._inside: list[str] = []
        self._since = 0

    def _charge(self) -> None:
        now = self._now()
        if self._inside:
            self.spent[self._inside[-1]] = self.spent.get(self._inside[-1], 0) + now - self._since
        self._since = now

    def enter(self, label: str) -> None:
        self._charge()
        self._inside.append(label)

    def leave(self) -> None:
        self._charge()
        self._inside.pop()

    def around(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        """``function``, its time charged to ``label``."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(label)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return timed


@contextlib.contextmanager
def timed(times: SelfTimes) -> Iterator[None]:
    """The monitor's parts and its probes are timed inside of the block."""
    entered, left = _Charged.__enter__, _Charged.__exit__

    def enter(self: _Charged) -> None:
        times.enter(f"probe: {self._probe.name}")
        entered(self)

    def leave(self: _Charged, *error: Any) -> bool:
        try:
            return left(self, *error)
        finally:
            times.leave()

    with contextlib.ExitStack() as stack:
        for owner, name, label in PARTS:
            stack.enter_context(mock.patch.object(owner, name, times.around(getattr(owner, name), label)))
        stack.enter_context(mock.patch.multiple(_Charged, __enter__=enter, __exit__=leave))
        yield


def profile(size: str, detail: Literal["norms", "standard"], steps: int) -> dict[str, float]:
    """Microseconds a step of each part, of the memory limit and of the bare norms."""
    subject, bare = Subject(size), Subject(size)
    flat = torch.cat([torch.zeros_like(parameter).view(-1) for parameter in bare.model.parameters()])
    found = dict.fromkeys(BESIDE, 0.0)
    looks = dict(zip(BESIDE, (lambda: torch.dot(flat, flat), lambda: foreach_norms(bare)), strict=True))

    def look(step: int, _loss: torch.Tensor) -> None:
        name = BESIDE[step % len(BESIDE)]
        began = time.thread_time_ns()
        looks[name]()
        found[name] += (time.thread_time_ns() - began) * 1e-3 * len(BESIDE) / steps

    times = SelfTimes()
    with timed(times), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        mon = monitor.attach(subject.model, subject.optimizer, run=folder, detail=detail)
        for probe in mon._probes.probes:
            probe.first_steps = 0  # as in ``watchers``: dense for a moment, which no training of any length notices
        watched = Watched(after_step=lambda step, loss: mon.step(loss=loss, tokens=subject.tokens.numel()))
        train(subject, watched, 1, 20)
        times.spent = {}
        for first in range(21, 21 + steps, 10):
            train(subject, watched, first, 10)
            with mon.phase("bare"):
                train(bare, Watched(after_backward=look), first, 10)
        mon.close()
    return {**{label: spent * 1e-3 / steps for label, spent in times.spent.items()}, **found}


def say(words: list[str]) -> None:
    size, detail = words[0], words[1]
    assert detail in ("norms", "standard")
    steps, threads = int(words[2]) if words[2:] else 100, int(words[3]) if words[3:] else 1
    torch.set_num_threads(threads)
    print(json.dumps(profile(size, "norms" if detail == "norms" else "standard", steps)), flush=True)


if __name__ == "__main__":
    say(sys.argv[1:])
