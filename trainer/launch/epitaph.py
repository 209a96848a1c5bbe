"""What a dead trainer left: how it ended, in words, and the head of its traceback. Standard library only."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path

TAIL_BYTES = 64 << 10
"""How much of the log's end is searched for a traceback."""
MAX_LINES = 40
"""Longest traceback kept; of a longer one the first and the last lines (our judgement)."""

_TRACEBACK = "Traceback (most recent call last):"
_FATAL = "Fatal Python error:"
# torchrun prefixes its workers' lines with [rank0]: when they are its own messages
_PREFIX = re.compile(r"^\[(?:rank|default)\d+\]:\s?")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:$|:\s?)")

HINTS = {
    signal.SIGKILL: "the system's out-of-memory killer ends processes this way",
    signal.SIGSEGV: "a fault in native code",
    signal.SIGABRT: "native code gave up; the log says why",
    signal.SIGBUS: "memory behind a mapping is gone, often a full /dev/shm or disk",
}


def tail(log: Path, size: int = TAIL_BYTES) -> list[str]:
    """The last lines of the log, without a torn first one; none when it cannot be read."""
    try:
        with log.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(max(0, length - size))
            content = file.read(size)
    except OSError:
        return []
    lines = content.decode("utf-8", errors="replace").splitlines()
    return lines[1:] if length > size else lines


def traceback_head(lines: Sequence[str], *, fatal: bool = False) -> list[str]:
    """The last traceback in the log, or with ``fatal`` the stack that faulthandler left; empty when there is none.

    A chained exception ("The above exception was the direct cause ...") is its last link: what the trainer died of.
    """
    plain = [_PREFIX.sub("", line) for line in lines]
    starts = [index for index, line in enumerate(plain) if line.startswith(_FATAL if fatal else _TRACEBACK)]
    if not starts:
        return []
    block: list[str] = []
    for line in plain[starts[-1] :]:
        block.append(line.rstrip())
        if len(block) > 1 and not fatal and _EXCEPTION.match(line):
            break
    while block and not block[-1]:
        block.pop()
    return _shortened(block)


def _shortened(block: list[str]) -> list[str]:
    if len(block) <= MAX_LINES:
        return block
    head, end = MAX_LINES // 4, MAX_LINES - MAX_LINES // 4 - 1
    return [*block[:head], f"  ... {len(block) - head - end} lines ...", *block[-end:]]


def is_torchrun_stop(traceback: Sequence[str]) -> bool:
    """Whether this is how torchrun ends after SIGTERM even when all its workers left cleanly."""
    return bool(traceback) and "SignalException" in traceback[-1]


def signal_name(number: int) -> str:
    """``SIGSEGV`` for 11; ``signal 63`` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def reason_of(returncode: int, traceback: Sequence[str], lines: Sequence[str] = ()) -> str:
    """One line on why the trainer ended without saying so itself.

    Args:
        returncode: negative for a signal.
        traceback: its traceback, if it left one.
        lines: the end of its log; a mistake that one message explains is there as ``error: ...``.
    """
    if returncode < 0:
        hint = HINTS.get(-returncode)  # type: ignore[call-overload]
        return f"killed by {signal_name(-returncode)}" + (f": {hint}" if hint else "")
    if returncode > 0 and traceback:
        return traceback[-1]
    refused = [line for line in lines if line.startswith("error: ")]
    if returncode > 0 and refused:
        return refused[-1].removeprefix("error: ")
    if returncode == 0:
        return "ended with return code 0 without recording that it had finished"
    return f"ended with return code {returncode}; the log's last lines may say why"
