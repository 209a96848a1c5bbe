"""Loops that wait for SIGTERM; started by ``test_sigterm.py`` with the kind of loop and the folder of runs.

Without arguments it reads these from its input, a line for a loop, and forks for each: torch is imported once.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

import monitor
from monitor.hook import sigterm
from tests.monitor.hook.problems import MLP

LIMIT_S = 60
"""A loop that ends only because of this is one that SIGTERM did not end."""


def main(kind: str, folder: Path) -> None:
    if kind == "own handler":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    if kind == "ignored":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mon = monitor.attach(model, optimizer, run=folder, detail="norms", on_sigterm=kind != "opted out")
    if kind == "later handler":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(8))
    if kind == "chained":
        before = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *given: before(*given))
    if kind == "full of threads":
        for _ in range(3):
            threading.Thread(target=lambda: [sum(range(1000)) for _ in iter(int, 1)], daemon=True).start()
    for number in range(1, 6):
        MLP.loss(model, *MLP.batch(number)).backward()
        optimizer.step()
        optimizer.zero_grad()
        mon.step()
    if kind == "closed":
        mon.close()
    if kind == "forked child":
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            mon.close(reason=f"child ended by {os.WTERMSIG(status)}")
            return
        print(os.getpid(), flush=True)
        time.sleep(60)
    if kind == "disk that hangs":
        sigterm.WRITE_S = 2.0
        mon._writer.flush = lambda: time.sleep(60)
    if kind == "held in C":  # sum() never lets go of the interpreter nor looks for signals; it says so itself
        sum(itertools.chain(map(os.write, [1], [b"ready\n"]), itertools.repeat(0)))
    print("ready", flush=True)
    if kind == "hangs in C":
        ctypes.CDLL(None).pause()  # returns only after a signal handler
        ctypes.CDLL(None).sleep(60)
        ctypes.CDLL(None).sleep(60)
    elif kind == "sleeps":
        time.sleep(60)
    else:
        while True:
            MLP.loss(model, *MLP.batch(6)).backward()
            optimizer.step()
            time.sleep(0.001)


def serve() -> None:
    """Fork a loop for each line ``kind|folder``; tell its pid, and how it ended."""
    assert monitor.attach  # imports what it needs, pyarrow and all, once
    for line in sys.stdin:
        kind, folder = line.rstrip("\n").split("|")
        child = os.fork()
        if not child:
            signal.alarm(LIMIT_S)  # its default ends a process that nothing else ends
            try:
                main(kind, Path(folder))
            except SystemExit as end:
                os._exit(int(end.code or 0))
            os._exit(0)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1], Path(sys.argv[2]))
    else:
        serve()
