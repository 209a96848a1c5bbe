"""One format or logger other than ours, in a process of its own: ``python peer.py write|read FORMAT FOLDER ...``.

Needs numpy and the peer, nothing of Gradiometer, so that it runs in the peers' own environment. Prints one line of
JSON; what cannot be imported is a line that says so.
"""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Log = Callable[[int, list[float]], None]
Opened = tuple[Log, Callable[[], None]]
"""What writes one step, and what closes."""


def rows(width: int) -> list[list[float]]:
    """2 000 rows of plain floats, as a training loop has them; steps go round in them."""
    return np.random.default_rng(0).lognormal(size=(2000, width)).tolist()


# Files that anybody would write by hand ------------------------------------------------------------------------------


def raw(folder: Path, names: list[str]) -> Opened:
    """The limit: the step and its values as they are, appended. float32 for many, float64 for few, as ours."""
    file = (folder / "raw.bin").open("wb")
    dtype = np.dtype([("step", "<i8"), ("value", "<f4" if len(names) > 100 else "<f8", len(names))])
    row = np.zeros(1, dtype)

    def log(step: int, values: list[float]) -> None:
        row["step"], row["value"] = step, values
        file.write(row.tobytes())

    return log, file.close


def jsonl(folder: Path, names: list[str]) -> Opened:
    file = (folder / "log.jsonl").open("w")

    def log(step: int, values: list[float]) -> None:
        file.write(json.dumps({"step": step, **dict(zip(names, values, strict=True))}) + "\n")

    return log, file.close


def comma(folder: Path, names: list[str]) -> Opened:
    file = (folder / "log.csv").open("w", newline="")
    writer = csv.writer(file)
    writer.writerow(["step", *names])
    return lambda step, values: writer.writerow([step, *values]) and None, file.close


def sqlite(folder: Path, names: list[str]) -> Opened:
    """A column a scalar, write-ahead log, a commit every 64 steps."""
    base = sqlite3.connect(folder / "log.db")
    base.execute("pragma journal_mode=wal")
    columns = ", ".join(f'"{name}" real' for name in names)
    base.execute(f"create table log (step integer primary key, {columns})")
    insert = f"insert into log values ({','.join('?' * (len(names) + 1))})"

    def log(step: int, values: list[float]) -> None:
        base.execute(insert, (step, *values))
        if step % 64 == 0:
            base.commit()

    def close() -> None:
        base.commit()
        base.close()

    return log, close


# Loggers -------------------------------------------------------------------------------------------------------------


def tensorboard(folder: Path, names: list[str]) -> Opened:
    """The event that ``SummaryWriter.add_scalar`` makes, one a scalar."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))

    def log(step: int, values: list[float]) -> None:
        for name, value in zip(names, values, strict=True):
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    return log, writer.close


def wandb(folder: Path, names: list[str]) -> Opened:
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(folder)}
    import wandb

    settings = wandb.Settings(console="off", x_disable_stats=True)
    run = wandb.init(project="bench", dir=str(folder), settings=settings)
    return lambda step, values: run.log(dict(zip(names, values, strict=True)), step=step), run.finish


def mlflow(folder: Path, names: list[str]) -> Opened:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("bench")
    mlflow.start_run()
    return lambda step, values: mlflow.log_metrics(dict(zip(names, values, strict=True)), step=step), mlflow.end_run


def trackio(folder: Path, names: list[str]) -> Opened:
    os.environ["TRACKIO_DIR"] = str(folder)
    import trackio

    trackio.init(project="bench", name="run")
    return lambda step, values: trackio.log(dict(zip(names, values, strict=True)), step=step), trackio.finish


def aim(folder: Path, names: list[str]) -> Opened:
    from aim import Run

    run = Run(repo=str(folder), system_tracking_interval=None, log_system_params=False, capture_terminal_logs=False)

    def log(step: int, values: list[float]) -> None:
        for name, value in zip(names, values, strict=True):
            run.track(value, name=name, step=step)

    return log, run.close


PLAIN: dict[str, Callable[[Path, list[str]], Opened]] = {"raw": raw, "jsonl": jsonl, "csv": comma, "sqlite": sqlite}
LOGGERS: dict[str, Callable[[Path, list[str]], Opened]] = {
    "tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "trackio": trackio, "aim": aim,
}  # fmt: skip


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write(kind: str, folder: Path, width: int, steps: int, seconds: float) -> dict[str, float]:
    """Write ``steps`` steps, or as many as fit ``seconds``; the time includes closing, not opening."""
    names, data = [f"layer.{index}.weight" for index in range(width)], rows(width)
    log, close = (PLAIN | LOGGERS)[kind](folder, names)
    before = folder_bytes(folder) if kind in LOGGERS else 0  # an empty base of theirs may be half a megabyte
    began = time.perf_counter()
    done = 0
    while done < steps and (done % 10 or time.perf_counter() - began < seconds):
        done += 1
        log(done, data[done % 2000])
    close()
    took = time.perf_counter() - began
    return {"steps": done, "seconds": took, "bytes": folder_bytes(folder) - before}


def read(kind: str, folder: Path, name: str) -> dict[str, float]:
    """One series whole, as arrays of steps and values, from what :func:`write` left."""
    began = time.perf_counter()
    if kind == "raw":
        width = int(name.split(",")[1])
        dtype = np.dtype([("step", "<i8"), ("value", "<f8", width)])
        value = np.ascontiguousarray(np.memmap(folder / "raw.bin", dtype, "r")["value"][:, 3])
    elif kind == "csv":
        import pandas as pd

        began = time.perf_counter()
        value = pd.read_csv(folder / "log.csv", usecols=["step", name])[name].to_numpy()
    elif kind == "jsonl":
        with (folder / "log.jsonl").open() as file:
            value = np.array([json.loads(line)[name] for line in file])
    elif kind == "sqlite":
        base = sqlite3.connect(folder / "log.db")
        value = np.array(base.execute(f'select step, "{name}" from log').fetchall())[:, 1]
    elif kind == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        began = time.perf_counter()
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        value = np.array([event.value for event in events.Scalars(name)])
    else:
        raise SystemExit(f"{kind} is not read here")
    return {"steps": len(value), "seconds": time.perf_counter() - began, "sum": float(value.sum())}


if __name__ == "__main__":
    command, kind, folder, *given = sys.argv[1:]
    answer, sys.stdout = sys.stdout, sys.stderr  # loggers print
    try:
        if command == "write":
            result = write(kind, Path(folder), int(given[0]), int(given[1]), float(given[2]))
        else:
            result = read(kind, Path(folder), given[0])
    except ImportError as error:
        result = {"skipped": f"{kind}: {error}"}
    print(json.dumps(result), file=answer, flush=True)
    os._exit(0)  # a logger's threads need not be waited for: it has been closed
