"""Being asked to stop: signals become a flag that the loop reads between steps. Installed first, so without torch."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""SIGHUP is the terminal being closed; under nohup it is ignored already, and stays so."""
INSIST_AFTER_S = 1.5
"""A second Ctrl-C later than this is a person who insists; sooner, it is the same key press forwarded by torchrun."""


class StopFlag:
    """Whether, and by which signal, this process was asked to stop. Repeated signals change nothing."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._asked_at = 0.0

    def install(self) -> None:
        """Turn the signals that ask a program to end into the flag from now on."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._ask)

    @property
    def number(self) -> int:
        """The signal's number, 0 while none has come."""
        return 0 if self.signal is None else int(self.signal)

    def request(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask from within the process."""
        if self.signal is None:
            self.signal = number
            self._asked_at = time.monotonic()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.request(signal.Signals(number))
            # write(2) itself: print may be re-entered by the signal while the main thread is inside it.
            with suppress(OSError):  # the terminal may be gone
                os.write(2, b"\nstopping after this step, with a checkpoint\n")
        elif number == signal.SIGINT and time.monotonic() - self._asked_at > INSIST_AFTER_S:
            raise KeyboardInterrupt


def reason(number: int) -> str:
    """Why training stops, for the exit record."""
    return f"asked to stop by {signal.Signals(number).name}"


def end_with_parent() -> None:
    """Receive SIGTERM when the parent dies: a torchrun worker whose agent was killed would otherwise train on for ever.

    Workers sit in sessions of their own, so that killing the agent's process group does not reach them. Linux only.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    PR_SET_PDEATHSIG = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:  # it died before the call took effect
        os.kill(os.getpid(), signal.SIGTERM)
