"""The state of a run whose job is with a cluster: only the engine knows that it waits in a queue, first or again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from monitor.errors import RunError
from monitor.runfile.format import attempt_dir
from monitor.runfile.reader import Run
from monitor.runfile.records import RunState
from monitor.runfile.store import attempt_numbers, optional_json

if TYPE_CHECKING:
    from trainer.launch import JobStatus

SETTLED = frozenset({"running", "paused", "finished"})
"""Where the run's own files say all there is to say."""
WAITING = frozenset({"pending", "requeued"})
ASKED_EVERY_S = 5.0
"""Least time between two questions about the listed runs; a queue moves slowly and serves many. Our judgement."""
MOST_SHARE = 0.2
"""Of the time that may pass with asking. Our judgement."""


def state_of(run: Run) -> RunState:
    """The run's state; ``pending`` or ``requeued``, with the engine's reason, while its job waits for a cluster."""
    state = run.state
    if state.word in SETTLED or not _is_with_a_cluster(run.path):
        return state
    now = _told([run.path]).get(run.path)
    return state if now is None else told_by(state, now)


def told_by(state: RunState, now: JobStatus) -> RunState:
    """What the run's files say, corrected by what its engine does."""
    if state.word in SETTLED:
        return state
    if now.state in WAITING:
        return replace(state, word=str(now.state), reason=now.reason)
    if now.running and state.word in ("stopped", "crashed"):  # its next attempt is about to begin
        return replace(state, word="starting", reason=now.reason)
    return replace(state, reason=now.reason) if now.running else state


class EngineStates:
    """The same for many runs. The engines are asked in a thread, about all of them at once: a cluster may take seconds
    to answer, or never do."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._asking = False
        self._due = float("-inf")
        self._known: dict[Path, JobStatus] = {}
        self._clusters: dict[Path, tuple[int, bool]] = {}  # asker's own: mtime of the attempts, whether with a cluster

    def corrected(self, states: Mapping[Path, RunState]) -> dict[Path, RunState]:
        """``states`` with what the engines said when they were asked last, and without waiting; asks anew when due."""
        unsettled = [path for path, state in states.items() if state.word not in SETTLED]
        with self._lock:
            known = self._known
            if unsettled and not self._asking and self._clock() >= self._due:
                self._asking = True
                threading.Thread(target=self._ask, args=(unsettled,), name="engine-states", daemon=True).start()
        return {path: told_by(state, known[path]) if path in known else state for path, state in states.items()}

    def _ask(self, paths: list[Path]) -> None:
        began, told = self._clock(), self._known
        try:
            told = _told([path for path in paths if self._is_with_a_cluster(path)])
        finally:
            with self._lock:
                took = self._clock() - began
                self._known, self._asking = told, False
                self._due = began + max(ASKED_EVERY_S, took / MOST_SHARE)

    def _is_with_a_cluster(self, path: Path) -> bool:
        """Remembered while no attempt is added: a folder holds thousands of runs that ended long ago."""
        try:
            changed = (path / "attempts").stat().st_mtime_ns
        except OSError:
            return False
        before = self._clusters.get(path)
        if before is None or before[0] != changed:
            before = self._clusters[path] = changed, _is_with_a_cluster(path)
        return before[1]


def _told(paths: list[Path]) -> dict[Path, JobStatus]:
    """What the engines say of these runs; of those of an engine that is not known here, nothing."""
    if not paths:
        return {}
    from trainer import launch

    try:
        return dict(zip(paths, launch.statuses(paths), strict=True))
    except RunError:
        return {} if len(paths) == 1 else {path: now for one in paths for path, now in _told([one]).items()}


def _is_with_a_cluster(path: Path) -> bool:
    numbers = attempt_numbers(path)
    if not numbers:
        return False
    launched = optional_json(attempt_dir(path, numbers[-1]) / "launch.json") or {}
    return launched.get("engine", "local") != "local"
