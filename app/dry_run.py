"""What a configuration would take, from a few real steps in a process of its own: the page stays without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from monitor.errors import RunError

if TYPE_CHECKING:
    from trainer.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
MOST_KEPT = 32
TIMEOUT_S = 300.0
"""A model that takes longer for six steps is not tried out from a form."""
MOST_OUTPUT = 1 << 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a dry run has come."""

    running: bool
    rows: tuple[tuple[str, str], ...] = ()
    """What it takes, and how much."""
    problem: str | None = None


class DryRuns:
    """The latest dry runs by configuration; one at a time."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Outcome] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, config: TrainConfig) -> Outcome | None:
        """What is known of ``config``; None when it was never tried."""
        with self._lock:
            return self._known.get(_key(config))

    def begin(self, config: TrainConfig) -> None:
        """Try ``config`` out; returns at once.

        Raises:
            RunError: another one is being tried.
        """
        key = _key(config)
        with self._lock:
            if any(outcome.running for outcome in self._known.values()):
                raise RunError("A dry run is going on; it takes some seconds. Ask again when it is done.")
            self._known[key] = Outcome(running=True)
            self._known.move_to_end(key)
            while len(self._known) > MOST_KEPT:
                self._known.popitem(last=False)
        threading.Thread(target=self._try, args=(key,), name="dry-run", daemon=True).start()

    def _try(self, key: str) -> None:
        outcome = tried(key)
        with self._lock:
            self._known[key] = outcome


def tried(record: str) -> Outcome:
    """Run the trainer's own dry run of the configuration in ``record``, which is its JSON."""
    from trainer.launch.local import CONFIG_VARIABLE, child_environment

    command = [sys.executable, "-P", "-m", "trainer", "--dry-run", "--json"]
    environment = child_environment({CONFIG_VARIABLE: record})
    try:
        done = subprocess.run(
            command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(False, problem=f"Six steps took longer than {TIMEOUT_S:.0f} s; it was given up.")
    except OSError as error:
        return Outcome(False, problem=f"The dry run could not be started: {error}")
    if done.returncode == 0:
        try:
            rows = json.loads(done.stdout[-MOST_OUTPUT:].decode().strip().splitlines()[-1])["rows"]
            return Outcome(False, tuple((str(name), str(value)) for name, value in rows))
        except (ValueError, LookupError, TypeError):
            return Outcome(False, problem="The dry run gave no answer that can be read.")
    said = done.stderr[-MOST_OUTPUT:].decode("utf-8", "replace").strip().splitlines() or ["no reason"]
    if done.returncode < 0:
        return Outcome(
            False, problem=f"The dry run was killed by signal {-done.returncode}; is there too little memory?"
        )
    return Outcome(False, problem=said[-1].removeprefix("error: "))


def _key(config: TrainConfig) -> str:
    return config.model_dump_json()


DRY_RUNS = DryRuns()
