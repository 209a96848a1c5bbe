"""SIGTERM in a process that has no handler of its own: the last steps are written, and it dies of it as it would have.

What a Python handler alone would do is delay the end of a process that hangs: it runs only when the main thread comes
back to Python. Here three things see to it that the signal stays the end:

    the C part of Python's handler   writes a byte into a pipe (``signal.set_wakeup_fd``) wherever the main thread is
    a thread that waits at the pipe  has everything written, for ``WRITE_S`` at most, puts the default disposition back
                                     and raises the signal again: the exit status is that of SIGTERM
    the disposition is for one time  a second SIGTERM ends the process at once (where libc has ``sysv_signal``: Linux
                                     with glibc), even one whose main thread hangs in C and never lets go of the
                                     interpreter, so that no thread of Python can run. There the first is lost.

Nothing is installed where SIGTERM has a handler or is ignored, where somebody else uses the wake-up descriptor
(asyncio), and outside the main thread. A handler that the loop installs later takes the place of ours, and one that
calls the handler that it replaced gets the same end. A forked child is as if nothing had been installed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

WRITE_S = 5.0
"""Most time for writing. Slurm and Kubernetes kill after 30 s, Docker after 10."""

_CALLED = 0
"""The byte by which our handler speaks; what C writes is the number of a signal."""

_writers: tuple[Callable[[], None], ...] = ()
_pipe: tuple[int, int] | None = None
"""Read and write end, once there has been a handler; they stay until the process ends, and so does the thread."""


def watch(write: Callable[[], None]) -> bool:
    """Have ``write`` called, in another thread, when SIGTERM comes; whether that could be arranged."""
    global _writers
    if not _writers and not _install():
        return False
    _writers = (*_writers, write)
    return True


def unwatch(write: Callable[[], None]) -> None:
    """No longer call ``write``; with the last one gone SIGTERM is as it was."""
    global _writers
    before, _writers = _writers, tuple(other for other in _writers if other != write)
    if before and not _writers:
        _uninstall()


def _install() -> bool:
    global _pipe
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return False
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return False
    if _pipe is None:
        _pipe = os.pipe()
        os.set_blocking(_pipe[1], False)
        threading.Thread(target=_wait, args=(_pipe[0],), name="gradiometer-sigterm", daemon=True).start()
    other = signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    if other != -1:
        signal.set_wakeup_fd(other)
        return False
    signal.signal(signal.SIGTERM, _handle)
    _make_it_one_time()
    return True


def _uninstall() -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # it cannot be done from here; the handler has nothing to write and ends the process at once
    if signal.getsignal(signal.SIGTERM) is _handle:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    other = signal.set_wakeup_fd(-1)
    if _pipe is None or other != _pipe[1]:
        signal.set_wakeup_fd(other)


def one_time() -> bool:
    """Whether this C library can install a handler that is gone when it has run once."""
    return hasattr(ctypes.CDLL(None), "sysv_signal")


def _installer(name: str) -> Callable[[int, int | None], int | None]:
    """C's function of that name, which takes a signal and the address of a handler and gives that of the one before.

    ``signal.signal`` may be called in the main thread alone; C has no such rule.
    """
    install = getattr(ctypes.CDLL(None), name)
    install.restype, install.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    return install


def _make_it_one_time() -> None:
    """Put the C handler that is installed in again such that it is gone when it has run once."""
    if one_time():
        install = _installer("sysv_signal")
        install(signal.SIGTERM, install(signal.SIGTERM, None))


def _handle(_number: int, _frame: FrameType | None) -> None:
    """In the main thread, when it is in Python: the thread at the pipe does the rest."""
    if _pipe is not None:
        os.write(_pipe[1], bytes([_CALLED]))
    else:
        _die()


def _wait(read_end: int) -> None:
    while True:
        for byte in os.read(read_end, 64):
            if byte == _CALLED or (byte == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is _handle):
                writing = threading.Thread(target=_write_all, daemon=True)
                writing.start()
                writing.join(WRITE_S)
                _die()


def _write_all() -> None:
    for write in _writers:
        write()


def _die() -> None:
    """End the process by SIGTERM."""
    _installer("signal")(signal.SIGTERM, None)  # SIG_DFL is the null pointer
    os.kill(os.getpid(), signal.SIGTERM)


def _forget_in_child() -> None:
    """A forked child (a DataLoader worker) must neither write into the parent's pipe nor outlive its SIGTERM."""
    global _pipe, _writers
    if _pipe is None:
        return
    _uninstall()
    for end in _pipe:
        os.close(end)
    _pipe, _writers = None, ()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
