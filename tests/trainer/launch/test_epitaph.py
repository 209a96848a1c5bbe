"""What the supervisor reads out of the log of a dead trainer, against logs that real processes wrote."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.launch.epitaph import MAX_LINES, is_torchrun_stop, reason_of, tail, traceback_head


def _log_of(program: str, folder: Path) -> tuple[list[str], int]:
    log = folder / "log.txt"
    with log.open("wb") as file:
        ended = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", program], stdout=file, stderr=file, check=False
        )
    return tail(log), ended.returncode


def test_exception_is_the_reason_and_its_traceback_is_kept(tmp_path: Path) -> None:
    lines, returncode = _log_of("print('step 1'); 1 / 0", tmp_path)
    head = traceback_head(lines)
    assert head[0] == "Traceback (most recent call last):"
    assert head[-1] == "ZeroDivisionError: division by zero"
    assert reason_of(returncode, head) == "ZeroDivisionError: division by zero"


def test_last_link_of_a_chain_is_the_reason(tmp_path: Path) -> None:
    program = "try:\n    1 / 0\nexcept Exception as e:\n    raise RuntimeError('no more data\\nsecond line') from e"
    lines, _ = _log_of(program, tmp_path)
    assert traceback_head(lines)[-1] == "RuntimeError: no more data"


def test_prefix_of_torchrun_is_taken_off() -> None:
    lines = [
        "[rank1]: Traceback (most recent call last):",
        '[rank1]:   File "x.py", line 3',
        "[rank1]: ValueError: bad",
    ]
    assert traceback_head(lines)[-1] == "ValueError: bad"


def test_segmentation_fault_leaves_the_python_stack(tmp_path: Path) -> None:
    lines, returncode = _log_of("import ctypes; ctypes.string_at(0)", tmp_path)
    assert traceback_head(lines, fatal=True)[0].startswith("Fatal Python error: Segmentation fault")
    assert reason_of(returncode, []).startswith("killed by SIGSEGV")


def test_earlier_caught_traceback_does_not_explain_a_signal(tmp_path: Path) -> None:
    caught = "try:\n    1/0\nexcept Exception:\n    traceback.print_exc()\n"
    program = f"import traceback, os\n{caught}os.kill(os.getpid(), 9)"
    lines, returncode = _log_of(program, tmp_path)
    assert traceback_head(lines, fatal=True) == []
    assert reason_of(returncode, []).startswith("killed by SIGKILL: the system's out-of-memory killer")


def test_long_traceback_keeps_both_ends() -> None:
    frames = [f"  frame {number}" for number in range(500)]
    head = traceback_head(["Traceback (most recent call last):", *frames, "RecursionError: too deep"])
    assert len(head) == MAX_LINES
    assert head[0].startswith("Traceback") and head[-1] == "RecursionError: too deep"
    assert "  ... 463 lines ..." in head


def test_only_the_end_of_a_large_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"x" * 3_000_000 + b"\n\xff\xfe not text\nValueError\n")
    lines = tail(log)
    assert lines[-1] == "ValueError" and len(lines) == 2


def test_missing_log_has_no_lines(tmp_path: Path) -> None:
    assert tail(tmp_path / "log.txt") == []


@pytest.mark.parametrize(
    ("returncode", "expected"),
    [
        (0, "ended with return code 0 without recording that it had finished"),
        (3, "ended with return code 3; the log's last lines may say why"),
        (-signal.SIGUSR1, "killed by SIGUSR1"),
        (-63, "killed by signal 63"),
    ],
)
def test_reason_without_a_traceback(returncode: int, expected: str) -> None:
    assert reason_of(returncode, []) == expected


def test_torchrun_stopped_by_a_signal_is_not_a_failure() -> None:
    line = "torch.distributed.elastic.multiprocessing.api.SignalException: Process 12 got signal: 15"
    assert is_torchrun_stop(["Traceback (most recent call last):", line])
    assert not is_torchrun_stop(["Traceback (most recent call last):", "ValueError: SIGTERM"])
