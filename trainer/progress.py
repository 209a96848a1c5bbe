"""Progress for people: one live line on a terminal, a plain line every few seconds elsewhere. Without torch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, SupportsFloat

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LIVE_EVERY_S = 0.25
"""Seconds between updates of the live line. Each reads the loss from the device, which waits for it: not every step."""

SMOOTHING = 0.2
"""Weight of the newest pace in the one that the time left is computed from (our judgement)."""


def tell(text: str) -> None:
    """Print a line. A reader that has gone (a closed pipe or terminal) ends the printing, never the training."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of the process


class Display(Protocol):
    """What the loop tells people."""

    def say(self, text: str) -> None: ...
    def step(self, step: int, tokens: int, lr: float, loss: SupportsFloat, grad_norm: SupportsFloat | None) -> None: ...
    def close(self) -> None: ...


class Silent:
    """Ranks other than the first say nothing."""

    def say(self, text: str) -> None: ...
    def step(self, step: int, tokens: int, lr: float, loss: SupportsFloat, grad_norm: SupportsFloat | None) -> None: ...
    def close(self) -> None: ...


class _Pace:
    """When to show again, how fast it went since the last time, and how long the rest takes at the recent pace."""

    def __init__(self, every_s: float, clock: Callable[[], float]) -> None:
        self._every_s = every_s
        self._clock = clock
        self._shown_at = clock()
        self._shown_step: int | None = None
        self._tokens = 0
        self._step_s: float | None = None

    def due(self, step: int, tokens: int, *, last: bool) -> tuple[float, float] | None:
        """(seconds per step, smoothed; tokens per second since it was last shown) when it is time to show again."""
        now = self._clock()
        if self._shown_step is None:
            self._shown_step = step - 1
        self._tokens += tokens
        elapsed = now - self._shown_at
        if elapsed < self._every_s and not last:
            return None
        step_s = elapsed / max(1, step - self._shown_step)
        # smoothed, so that the time left does not flicker with every evaluation
        self._step_s = step_s if self._step_s is None else self._step_s + SMOOTHING * (step_s - self._step_s)
        rates = self._step_s, self._tokens / max(elapsed, 1e-9)
        self._shown_at, self._shown_step, self._tokens = now, step, 0
        return rates


class PlainLines:
    """A line every ``every_s`` seconds, for logs."""

    def __init__(self, steps: int, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps = steps
        self._pace = _Pace(every_s, clock)

    def say(self, text: str) -> None:
        tell(text)

    def step(self, step: int, tokens: int, lr: float, loss: SupportsFloat, grad_norm: SupportsFloat | None) -> None:
        rates = self._pace.due(step, tokens, last=step == self._steps)
        if rates:
            left = duration((self._steps - step) * rates[0])
            self.say(f"step {step}/{self._steps}  {_numbers(lr, loss, grad_norm, rates[1])}  {left} left")

    def close(self) -> None:
        pass


class LiveLine:
    """A line that rewrites itself, with a bar."""

    def __init__(
        self, steps: int, start_step: int, console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._steps = steps
        self._pace = _Pace(LIVE_EVERY_S, clock)
        self._progress = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("", total=steps, completed=start_step, numbers="first step ...")
        self._progress.start()

    def say(self, text: str) -> None:
        with suppress(OSError):  # the terminal was closed: the signal that says so stops the training by itself
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, step: int, tokens: int, lr: float, loss: SupportsFloat, grad_norm: SupportsFloat | None) -> None:
        rates = self._pace.due(step, tokens, last=step == self._steps)
        if rates:
            left = duration((self._steps - step) * rates[0])
            self._progress.update(
                self._task, completed=step, numbers=f"{_numbers(lr, loss, grad_norm, rates[1])}  {left} left"
            )

    def close(self) -> None:
        with suppress(OSError):
            self._progress.stop()


def build_display(steps: int, start_step: int, every_s: float) -> Display:
    """A live line when standard output is a terminal, plain lines otherwise."""
    console = Console(file=sys.stdout)
    return LiveLine(steps, start_step, console) if console.is_terminal else PlainLines(steps, every_s)


def _numbers(lr: float, loss: SupportsFloat, grad_norm: SupportsFloat | None, tokens_per_s: float) -> str:
    norm = "" if grad_norm is None else f"  grad norm {float(grad_norm):.3g}"
    return f"loss {float(loss):.4f}  lr {lr:.2e}{norm}  {tokens_per_s:,.0f} tokens/s"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
