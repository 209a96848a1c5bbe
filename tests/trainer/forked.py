"""Whole ``python -m trainer`` commands without their seconds of importing torch: each in a child forked from here.

::

    python -m tests.trainer.forked again    standard input {"cases": [[ranks, name, [word, ...]], ...], "from_step": 20}
    python -m tests.trainer.forked kills    standard input {"words": [...], "kills": 8, "seed": 0}

Runs are made in ``runs``; what the commands print goes to ``log``; standard output is JSON. No operation of torch runs
in this process, so that its children begin without threads.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trainer.dryrun  # with everything that a command imports late
from trainer.__main__ import main
from trainer.commit import FOLDER, newest_complete

PATIENCE_S = 120.0
"""A bound on waiting, not an expectation: the machine may be busy."""
WORST_DELAY_S = 0.15
"""A kill comes this long after a checkpoint at the latest: some two to ten steps, each with a save."""
assert trainer.dryrun


def fork(words: Sequence[str], log: Path, **environment: str) -> int:
    """Begin ``python -m trainer WORDS`` in a child; gives back its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environment)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(ranks: int, words: Sequence[str], log: Path) -> list[int]:
    """Run a command on that many processes, as torchrun would; gives back their exit codes."""
    if ranks == 1:
        pids = [fork(words, log)]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
        pids = [fork(words, log, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(ranks)]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def again(ranks: int, name: str, words: Sequence[str], from_step: int, runs: Path, log: Path) -> list[int]:
    """Train to the end, put the last checkpoint aside as ``name``, and train on from ``from_step``; the exit codes."""
    codes = command(ranks, [*words, "--runs", str(runs), "--name", name], log)
    (checkpoints,) = runs.glob(f"*-{name}-*/checkpoints")
    first, last = sorted(committed(checkpoints))
    assert int(first) == from_step
    (checkpoints / last).rename(runs.parent / name)
    return codes + command(ranks, ["--resume", str(checkpoints.parent)], log)


def kills(words: Sequence[str], count: int, seed: int, runs: Path, log: Path) -> dict[str, Any]:
    """Train, kill -9 at a random moment, resume, and so on; each time the newest checkpoint must be whole.

    Then train as many steps without a kill, as ``straight``.

    Returns:
        The two runs, how many kills left a half-written checkpoint behind, and the last step.
    """
    draw = random.Random(seed)
    checkpoints: Path | None = None
    cut_short = newest = 0
    for kill in range(count):
        background = f"checkpoint.background={'true' if kill % 2 else 'false'}"
        more = ["--resume", str(checkpoints.parent)] if checkpoints else [*words, "--runs", str(runs)]
        pid = fork([*more, "--set", background], log)
        deadline = time.monotonic() + PATIENCE_S
        seen = newest
        while seen <= newest:
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), f"ended by itself:\n{log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"no checkpoint beyond {newest}:\n{log.read_text()[-3000:]}"
            time.sleep(0.002)
            checkpoints = next(runs.glob("*/checkpoints"), None)
            seen = max(map(int, committed(checkpoints)), default=0) if checkpoints else 0
        time.sleep(draw.uniform(0, WORST_DELAY_S))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert checkpoints is not None
        cut_short += any(path.name.startswith(".tmp-") for path in checkpoints.iterdir())
        found = newest_complete(checkpoints, print_to(log))
        assert found is not None and found.step >= seen, f"{found} after {seen} was seen whole"
        newest = found.step
    assert checkpoints is not None
    steps = ["--steps", str(newest + 2)]
    assert command(1, ["--resume", str(checkpoints.parent), *steps], log) == [0], log.read_text()[-3000:]
    straight = runs.parent / "straight"
    assert command(1, [*words, *steps, "--runs", str(straight)], log) == [0], log.read_text()[-3000:]
    (never_killed,) = straight.iterdir()
    runs_made = {"killed": str(checkpoints.parent), "straight": str(never_killed)}
    return {**runs_made, "cut_short": cut_short, "step": newest + 2}


def committed(checkpoints: Path) -> list[str]:
    return [path.name for path in checkpoints.iterdir() if FOLDER.fullmatch(path.name)]


def print_to(log: Path) -> Callable[[str], None]:
    def say(message: str) -> None:
        with log.open("a") as file:
            file.write(message + "\n")

    return say


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    runs, log = Path("runs"), Path("log")
    answer: Any
    if sys.argv[1] == "again":
        answer = [again(*case, asked["from_step"], runs, log) for case in asked["cases"]]
    else:
        answer = kills(asked["words"], asked["kills"], asked["seed"], runs, log)
    json.dump(answer, sys.stdout)
