"""The same run for our page and for others': ``page_data.py ours|tensorboard|trackio FOLDER STEPS WIDTH [layers]``.

Peers' files are written in their own layout, byte by byte or by SQL: their own loggers take an hour for it. One step
of many, ``spike_at(steps)``, has a loss of ``SPIKE``.

``live FOLDER RUNS METRICS MOVING`` writes runs that go on: ``MOVING`` of the metrics get a new step every two seconds,
until there is a file ``still`` beside ``FOLDER``.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

SPIKE = 97.25
START = 1_790_000_000.0
USUAL = (
    "train_loss", "grad_norm_preclip", "grad_norm_postclip", "lr", "update_to_weight_ratio", "tokens_per_s",
    "step_time_s", "val_loss",
)  # fmt: skip


def names_of(width: int) -> list[str]:
    return [*USUAL, *(f"signal_{number}" for number in range(width))][:width]


def spike_at(steps: int) -> int:
    return steps * 617 // 1000


def values(steps: int, width: int) -> np.ndarray:
    """float32[steps, width]: falling curves with noise."""
    rng = np.random.default_rng(0)
    step = np.arange(1, steps + 1, dtype=np.float32)[:, None]
    table = (1.5 + 4 * np.exp(-step * 6 / steps)) * np.exp(rng.normal(0, 0.05, (steps, width))).astype(np.float32)
    table[spike_at(steps) - 1, 0] = SPIKE
    return table


def ours(folder: Path, steps: int, width: int, layers: bool) -> None:
    from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit

    run = create_run(folder, name="long", run_id="long", now=lambda: START)
    begin_attempt(run, planned_steps=steps, environment={"device": "cpu"})
    writer, names, table = RankWriter(run, 0, queue_rows=1_000_000), names_of(width), values(steps, width)
    if layers:
        writer.define_layers([f"blocks.{number}.weight" for number in range(width)], [(8, 8)] * width)
    for step in range(1, steps + 1):
        row = table[step - 1]
        if layers:
            writer.layers(step, START + step, {"grad_norm_preclip": row})
            writer.scalars(step, START + step, {"train_loss": float(row[0])})
        else:
            writer.scalars(step, START + step, dict(zip(names, row.tolist(), strict=True)))
        if step % 20_000 == 0:
            writer.flush(120)
    writer.heartbeat(step=steps, state="idle", step_time_s=0.05, planned_steps=steps)
    writer.close()
    write_exit(run, 0, outcome="finished", step=steps, reason="all steps done")


# ---- TensorBoard --------------------------------------------------------------------------------------------------


def crc_table() -> np.ndarray:
    """CRC-32C, one byte at a time."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    return table


def masked_crc(rows: np.ndarray) -> np.ndarray:
    """uint32[n] of uint8[n, m]: what a TFRecord keeps beside its data."""
    table, crc = crc_table(), np.full(len(rows), 0xFFFFFFFF, np.uint32)
    for column in rows.T:
        crc = table[(crc ^ column) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    return ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)


def events(steps: np.ndarray, names: list[str], table: np.ndarray) -> bytes:
    """TFRecords, one Event a step with a simple_value a name; every record is as long as the others."""
    inner = b"".join(
        b"\x0a" + bytes([len(one)]) + one for name in names for tag in [name.encode()]
        for one in [b"\x0a" + bytes([len(tag)]) + tag + b"\x15" + b"\0\0\0\0"]
    )  # fmt: skip
    summary = b"\x2a" + _varint(len(inner)) + inner
    record = np.frombuffer(b"\x09" + b"\0" * 8 + b"\x10" + b"\0" * 5 + summary, np.uint8)
    rows = np.tile(record, (len(steps), 1))
    rows[:, 1:9] = (START + steps).astype("<f8").view(np.uint8).reshape(-1, 8)
    for byte in range(5):  # a varint of five bytes, also where fewer would do
        rows[:, 10 + byte] = (steps >> (7 * byte)) & 0x7F | (0x80 if byte < 4 else 0)
    at = len(record) - len(inner)
    for column, name in enumerate(names):
        at += 2 + 2 + len(name) + 1
        rows[:, at : at + 4] = table[:, column].astype("<f4")[:, None].view(np.uint8).reshape(-1, 4)
        at += 4
    head = np.frombuffer(struct.pack("<Q", len(record)), np.uint8)[None]
    length = np.concatenate([head, masked_crc(head)[:, None].astype("<u4").view(np.uint8)], axis=1)
    tail = masked_crc(rows)[:, None].astype("<u4").view(np.uint8)
    return np.concatenate([np.repeat(length, len(rows), axis=0), rows, tail], axis=1).tobytes()


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def tensorboard(folder: Path, steps: int, width: int) -> None:
    folder.mkdir(parents=True)
    table, names = values(steps, width), names_of(width)
    with (folder / "events.out.tfevents.1790000000.bench").open("wb") as file:
        version = b"\x09" + struct.pack("<d", START) + b"\x1a\x0dbrain.Event:2"
        head = np.frombuffer(struct.pack("<Q", len(version)), np.uint8)[None]
        body = np.frombuffer(version, np.uint8)[None]
        for part in (head, masked_crc(head).astype("<u4"), body, masked_crc(body).astype("<u4")):
            file.write(part.tobytes())
        for first in range(0, steps, 50_000):
            part = np.arange(first, min(first + 50_000, steps))
            file.write(events(part + 1, names, table[part]))


def trackio(folder: Path, steps: int, width: int) -> None:
    os.environ["TRACKIO_DIR"] = str(folder)
    import trackio as logger

    table, names = values(steps, width), names_of(width)
    logger.init(project="bench", name="long", auto_log_gpu=False)
    logger.log(dict(zip(names, table[0].tolist(), strict=True)), step=1)
    logger.finish()
    with sqlite3.connect(folder / "bench.db") as base:
        run, stamp = base.execute("SELECT run_id, timestamp FROM metrics").fetchone()
        rows = (
            (run, stamp, "long", step, json.dumps(dict(zip(names, table[step - 1].tolist(), strict=True))).encode())
            for step in range(2, steps + 1)
        )
        base.executemany(
            "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?, ?)", rows
        )
    base.close()


# ---- runs that go on ----------------------------------------------------------------------------------------------


def live(folder: Path, runs: int, metrics: int, moving: int) -> None:
    """Ends when its input is closed. Every run has 5 000 steps; then one more every two seconds."""
    from monitor.runfile.writer import RankWriter, begin_attempt, create_run

    names, writers = names_of(metrics), []
    for number in range(runs):
        run = create_run(folder, name=f"live {number}", run_id=f"live-{number}")
        begin_attempt(run, planned_steps=100_000)
        writers.append(RankWriter(run, 0))
    table = values(5_000, metrics)
    for step in range(1, 5_001):
        for number, writer in enumerate(writers):
            row: dict[str, Any] = dict(zip(names, (table[step - 1] + number).tolist(), strict=True))
            writer.scalars(step, time.time(), row)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    step = 5_000
    while not ended.is_set():
        moving = 0 if (folder.parent / "still").exists() else moving
        if moving:
            step += 1
        for writer in writers:
            if moving:
                row = table[4_000 + step % 1_000, :moving]
                writer.scalars(step, time.time(), dict(zip(names[:moving], row.tolist(), strict=True)))
            writer.heartbeat(step=step, state="training", step_time_s=2.0, planned_steps=100_000)
            writer.flush(30)
        (folder.parent / "ready").touch()
        ended.wait(2.0)
    for writer in writers:
        writer.close()


def main() -> None:
    kind, folder, *sizes = sys.argv[1:]
    if kind == "ours":
        ours(Path(folder), int(sizes[0]), int(sizes[1]), sizes[2:] == ["layers"])
    elif kind == "live":
        live(Path(folder), int(sizes[0]), int(sizes[1]), int(sizes[2]))
    else:
        {"tensorboard": tensorboard, "trackio": trackio}[kind](Path(folder), int(sizes[0]), int(sizes[1]))


if __name__ == "__main__":
    main()
