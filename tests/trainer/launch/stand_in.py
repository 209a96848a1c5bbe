"""A small trainer that keeps the run directory's contract, so that the real launcher can be tried in milliseconds.

Usage: ``python stand_in.py BEHAVIOUR``, working directory = the run. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RUN = Path.cwd()
ATTEMPT = max(Path("attempts").iterdir())
STEP_S = 0.01


def write(path: Path, record: dict) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(record))
    temporary.replace(path)


def create_time() -> float:
    import psutil

    return psutil.Process().create_time()


def end(outcome: str, step: int) -> None:
    record = {"outcome": outcome, "step": step, "time": time.time(), "reason": f"{outcome} by the stand-in"}
    write(ATTEMPT / "exit.json", record | {"signal": None, "returncode": 0, "traceback": []})
    sys.exit(0)


def checkpoint(step: int) -> None:
    folder = RUN / "checkpoints" / f"{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.txt").write_text(str(step))
    files = {"weights.txt": {"bytes": len(str(step)), "sha256": hashlib.sha256(str(step).encode()).hexdigest()}}
    commit = {"step": step, "attempt": int(ATTEMPT.name), "world_size": 1, "files": files}
    write(folder / "COMMIT.json", commit)


def main(behaviour: str) -> None:
    stop = []
    if behaviour != "no-handler":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN if behaviour == "deaf" else lambda *_: stop.append(1))
    points = sorted((RUN / "checkpoints").glob("*/COMMIT.json"))
    first = json.loads(points[-1].read_text())["step"] if points else 0
    identity = {"pid": os.getpid(), "pid_create_time": create_time(), "host": os.uname().nodename}
    record = {"attempt": int(ATTEMPT.name), "parent": int(ATTEMPT.name) - 1 if points else None, "resume_step": first}
    record |= {"overrides": {}, "world_size": 1, "planned_steps": 100_000, "created": time.time(), "environment": {}}
    write(ATTEMPT / "attempt.json", record | identity | {"git": None, "engine": None})
    print("arguments", json.dumps(sys.argv[1:]), "first step", first, flush=True)
    if behaviour == "leaves-orphan":
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print("orphan", sleeper.pid, flush=True)
    for step in range(first + 1, 100_001):
        beat = {"step": step, "time": time.time(), "state": "training", "step_time_s": STEP_S, "planned_steps": 100_000}
        write(ATTEMPT / "rank-00000" / "heartbeat.json", beat | identity)
        if stop:
            checkpoint(step)
            end("stopped", step)
        if step >= first + 5:
            act(behaviour, step)
        time.sleep(STEP_S)


def act(behaviour: str, step: int) -> None:
    match behaviour:
        case "raises":
            raise ValueError("loss is a string")
        case "segfaults":
            import ctypes

            ctypes.string_at(0)
        case "silent":
            sys.exit(0)
        case "finishes" | "leaves-orphan":
            end("finished", step)


main(sys.argv[1])
