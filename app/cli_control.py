"""``gradiometer control``: ask a running training for something, or see what was asked and what became of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from app.text import plain
from monitor.errors import RunError
from monitor.runfile.control import DENSE_STEPS, KINDS, Asked, ask, asked
from monitor.runfile.store import attempt_numbers

WORDS = {"lr": "set_lr", "clip": "set_clip", "dense": "record_dense"}
"""Shorter words for kinds of requests that take a value."""
WAIT_S = 15.0
LOOK_S = 0.1
UNANSWERED, REFUSED = 3, 4
"""Exit statuses: no answer in time; refused or failed."""


def values_of(kind: str, value: str | None) -> dict[str, Any]:
    """The typed value as the request has it: ``1e-4``, ``x0.5``, ``none``, ``64``.

    Raises:
        RunError: it is not of these.
    """
    if kind not in WORDS.values():
        if value is not None:
            raise RunError(f"{kind} takes no value, found {value!r}.")
        return {}
    if kind == "record_dense":
        if value is not None and not value.isdecimal():
            raise RunError(f"dense {value!r}: a number of steps is accepted, such as {DENSE_STEPS}.")
        return {"steps": DENSE_STEPS if value is None else int(value)}
    if value is None:
        raise RunError("a value is missing: lr 1e-4, lr x0.5 (times the rate as it is), clip 0.5, or clip none.")
    if kind == "set_clip" and value == "none":
        return {"value": None}
    factor = kind == "set_lr" and value.startswith("x")
    try:
        return {"factor" if factor else "value": float(value.removeprefix("x") if factor else value)}
    except ValueError:
        raise RunError(f"{value!r} is no number; accepted: 1e-4, x0.5 for lr, none for clip.") from None


def request(path: Path, word: str, value: str | None, wait_s: float) -> Asked:
    """Ask for what ``word`` means and wait up to ``wait_s`` for the answer; it is returned as it is by then.

    Raises:
        RunError: an unknown word, a bad value, or nothing that could be asked.
    """
    kind = WORDS.get(word, word)
    accepted = [word for word in (*KINDS, *WORDS) if word not in WORDS.values()]
    if kind not in KINDS or word in WORDS.values():
        raise RunError(f"{word!r} is not known; accepted: {', '.join(accepted)}.")
    made = ask(path, kind, via="command line", **values_of(kind, value))
    deadline = time.monotonic() + wait_s
    while True:
        found = next((one for one in asked(path, made.attempt) if one.id == made.id), Asked(made.id, made, None))
        if found.state in ("done", "failed", "refused") or time.monotonic() >= deadline:
            return found
        time.sleep(LOOK_S)


def listed(path: Path) -> list[Asked]:
    """The requests to the newest attempt.

    Raises:
        RunError: no run directory.
    """
    if not (path / "run.json").is_file():
        raise RunError(f"{path} is not a run directory: it has no run.json.")
    numbers = attempt_numbers(path)
    return asked(path, numbers[-1]) if numbers else []


def line(one: Asked) -> str:
    """``000003 pause (page on host, process 7): done after step 812: paused``."""
    receipt = one.receipt or {}
    what = f"{one.request.text} ({one.request.by})" if one.request else "no request"
    words = f"{one.id} {what}: {one.state}"
    if one.receipt is not None:
        words += f" after step {receipt.get('step')}" + (f": {receipt['text']}" if receipt.get("text") else "")
    return plain(words, 1200)


def as_json(found: list[Asked]) -> str:
    """One object a request: ``id``, ``state``, ``do``, values, ``by``, ``receipt``."""
    rows = []
    for one in found:
        made: dict[str, Any] = {}
        if one.request is not None:
            made = {"do": one.request.do, **one.request.values, "created": one.request.created, "by": one.request.by}
        rows.append({"id": one.id, "state": one.state, **made, "receipt": one.receipt})
    return json.dumps(rows, indent=2, allow_nan=False)


def status_of(one: Asked) -> int:
    """The exit status for a request as it stands."""
    return {"done": 0, "failed": REFUSED, "refused": REFUSED}.get(one.state, UNANSWERED)
