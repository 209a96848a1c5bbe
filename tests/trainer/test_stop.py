"""Being asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from trainer import stop as stop_module
from trainer.stop import SIGNALS, StopFlag, reason


@pytest.fixture
def flag() -> Iterator[StopFlag]:
    before = [signal.getsignal(number) for number in SIGNALS]
    flag = StopFlag()
    flag.install()
    yield flag
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_sets_the_flag_with_its_name(flag: StopFlag, number: signal.Signals) -> None:
    assert flag.number == 0
    os.kill(os.getpid(), number)
    assert reason(flag.number) == f"asked to stop by {number.name}"


def test_repeated_signals_change_nothing(flag: StopFlag) -> None:
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    assert reason(flag.number) == "asked to stop by SIGUSR1"


def test_a_person_who_insists_gets_out(flag: StopFlag, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_module, "INSIST_AFTER_S", 0.0)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_worker_is_told_when_its_parent_dies() -> None:
    worker = textwrap.dedent("""
        import signal, sys
        from trainer.stop import end_with_parent
        signal.signal(signal.SIGTERM, lambda *_: (print("told", flush=True), sys.exit(0)))
        end_with_parent()
        print("ready", flush=True)
        signal.pause()
    """)
    parent = textwrap.dedent(f"""
        import os, subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", {worker!r}], start_new_session=True)
        sys.stdin.readline()
        os.kill(os.getpid(), 9)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("die\n")
        process.stdin.flush()
        assert process.stdout.read() == "told\n"  # ends when the worker, who holds the pipe, has ended
