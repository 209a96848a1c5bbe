"""Reads what a monitor wrote with pyarrow and json alone: none of our reader is trusted here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa


def _rows(run_dir: Path, stream: str, attempt: int, rank: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    folder = run_dir / "attempts" / f"{attempt:04d}" / f"rank-{rank:05d}"
    for path in sorted(folder.glob(f"{stream}-*.arrows")):
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as stream_reader:
            for batch in stream_reader:
                rows.extend(batch.to_pylist())
    return rows


def scalars(run_dir: Path, attempt: int = 0, rank: int = 0) -> dict[int, dict[str, float]]:
    """Step to its present values."""
    return {
        row["step"]: {name: value for name, value in row.items() if value is not None and name != "step"}
        for row in _rows(run_dir, "scalars", attempt, rank)
    }


def layers(
    run_dir: Path, attempt: int = 0, rank: int = 0, stat: str = "grad_norm_preclip"
) -> dict[int, list[float | None]]:
    """Step to one statistic per layer, where it was taken; None inside for a layer without one."""
    rows = _rows(run_dir, "layers", attempt, rank)
    return {row["step"]: row[stat] for row in rows if row.get(stat) is not None}


def layer_names(run_dir: Path, attempt: int = 0, rank: int = 0) -> list[str]:
    folder = run_dir / "attempts" / f"{attempt:04d}" / f"rank-{rank:05d}"
    with pa.OSFile(str(folder / "layers-000000.arrows")) as source, pa.ipc.open_stream(source) as reader:
        record = json.loads(reader.schema.metadata[b"gradiometer"])
    return [layer["name"] for layer in record["layers"]]


def system(run_dir: Path) -> list[dict[str, Any]]:
    return _rows(run_dir, "system", 0, 0)


def landscape(run_dir: Path) -> list[dict[str, Any]]:
    return _rows(run_dir, "landscape", 0, 0)


def events(run_dir: Path, kind: str | None = None, attempt: int = 0, rank: int = 0) -> list[dict[str, Any]]:
    folder = run_dir / "attempts" / f"{attempt:04d}" / f"rank-{rank:05d}"
    lines = [line for path in sorted(folder.glob("events-*.jsonl")) for line in path.read_text().splitlines()]
    parsed = [json.loads(line) for line in lines]
    return [event for event in parsed if kind is None or event["kind"] == kind]


def series(run_dir: Path, name: str) -> np.ndarray:
    """Present values of one scalar in order of steps."""
    return np.array([row[name] for _, row in sorted(scalars(run_dir).items()) if name in row])
