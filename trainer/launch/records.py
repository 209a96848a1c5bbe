"""The supervisor's three small files in the attempt folder. Standard library only, see ``supervise.py``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def replace_json(path: Path, record: dict[str, Any]) -> None:
    """Write ``path`` whole: a reader sees the old content or the new, never a half."""
    temporary = _temporary(path, record)
    temporary.replace(path)


def create_json(path: Path, record: dict[str, Any]) -> bool:
    """Create ``path`` whole; False when it exists already, which is left alone."""
    temporary = _temporary(path, record)
    try:
        os.link(temporary, path)  # unlike rename, link refuses an existing target
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def exit_record(
    outcome: str,
    reason: str,
    *,
    time: float,
    step: int | None,
    signal: int | None = None,
    returncode: int | None = None,
    traceback: Sequence[str] = (),
) -> dict[str, Any]:
    """``exit.json`` as ``monitor.runfile.writer.write_exit`` writes it (a test compares them)."""
    return {
        "outcome": outcome,
        "step": step,
        "time": time,
        "reason": reason,
        "signal": signal,
        "returncode": returncode,
        "traceback": list(traceback),
    }


def last_step(attempt_dir: Path) -> int | None:
    """The step of rank 0's last heartbeat; None when there is none."""
    try:
        step = json.loads((attempt_dir / "rank-00000" / "heartbeat.json").read_bytes()[: 1 << 20])["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _temporary(path: Path, record: dict[str, Any]) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    return temporary
