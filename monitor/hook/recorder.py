"""The flight recorder: random states of the last steps, kept in memory and written when something goes wrong.

Loss, rates, scale, batch ids and per-layer norms of every step are in the run already (the last steps in full, see
``RankWriter.keep_dense``). What is missing for repeating a step with the weights of a checkpoint are the random states
it began with: those that dropout, augmentation and sampling draw from.
"""

from __future__ import annotations

import base64
import random
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from monitor.errors import RunError
from monitor.runfile.reader import Run

STEPS = 16
"""Steps that are kept: some 10 kB each in memory, half of it in the run."""
MOST_WRITTEN = 8
"""Windows of one attempt, its end aside. A training that is in trouble all the time must not fill the disk with random
states."""


class FlightRecorder:
    """Takes the states when a step begins; ``freeze`` writes them.

    Args:
        write: called with the kind and the fields of an event.
    """

    def __init__(self, write: Callable[..., Any]) -> None:
        self._write = write
        self._kept: deque[tuple[int, dict[str, Any]]] = deque(maxlen=STEPS)
        self._written = 0
        self._last_frozen = -1

    def step_begins(self, step: int) -> None:
        """Keep the states as they are at the first forward of ``step``."""
        self._kept.append((step, _states()))

    def freeze(self, reason: str, *, at_end: bool = False) -> None:
        """Write the states of the last steps that have not been written yet, as an event of kind ``flight``.

        Args:
            at_end: the training ends with this trouble; written however many windows there have been.
        """
        kept = [(step, states) for step, states in tuple(self._kept) if step > self._last_frozen]
        if not kept or (self._written >= MOST_WRITTEN and not at_end):
            return
        self._written += 1
        self._last_frozen = kept[-1][0]
        self._write("flight", reason=reason, random=[{"step": step, **_packed(states)} for step, states in kept])


def restore_random_states(run: Run, step: int, rank: int = 0) -> tuple[str, ...]:
    """Set the random states to what they were when ``step`` began on ``rank``, and return the names of the generators.

    Raises:
        RunError: the run has no states of this step; the message says of which it has.
    """
    found: dict[int, Mapping[str, Any]] = {}
    for event in run.events("flight"):
        entries = event.fields.get("random")
        if event.rank == rank and isinstance(entries, list):
            found.update((entry["step"], entry) for entry in entries if isinstance(entry, dict) and "step" in entry)
    if step not in found:
        known = f"of steps {', '.join(map(str, sorted(found)))}" if found else "of no step"
        raise RunError(f"{run.path} has no random states of step {step}; it has them {known}.")
    try:
        return _restore(found[step])
    except (KeyError, TypeError, ValueError, RuntimeError, zlib.error) as error:
        raise RunError(f"{run.path}: the random states of step {step} are damaged ({error}).") from error


def _states() -> dict[str, Any]:
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()  # kept on the host: no synchronisation
    return states


def _packed(states: Mapping[str, Any]) -> dict[str, Any]:
    _, words, gauss = states["python"]
    packed = {
        "torch": _text(states["torch"].numpy()),
        "python": {"words": _text(np.array(words, np.uint32)), "gauss": gauss},
    }
    of_numpy = states["numpy"]
    if of_numpy["bit_generator"] == "MT19937":  # another one is the user's own doing
        packed["numpy"] = {
            "keys": _text(of_numpy["state"]["key"]), "position": of_numpy["state"]["pos"],
            "has_gauss": of_numpy["has_gauss"], "cached": of_numpy["gauss"],
        }  # fmt: skip
    if "cuda" in states:
        packed["cuda"] = _text(states["cuda"].numpy())
    return packed


def _restore(entry: Mapping[str, Any]) -> tuple[str, ...]:
    python, numpy = entry["python"], entry.get("numpy")
    words = tuple(_array(python["words"], np.uint32).tolist())
    torch.set_rng_state(torch.from_numpy(_array(entry["torch"], np.uint8)))
    random.setstate((random.Random.VERSION, words, python["gauss"]))
    restored = ["torch", "python"]
    if numpy is not None:
        keys = _array(numpy["keys"], np.uint32)
        np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
        restored.append("numpy")
    if "cuda" in entry and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(_array(entry["cuda"], np.uint8)))
        restored.append("cuda")
    return tuple(restored)


def _text(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 1)).decode()


def _array(text: str, dtype: type) -> np.ndarray:
    raw = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), 1 << 16)
    return np.frombuffer(raw, dtype).copy()
