"""The state of a run whose job is with a cluster: only the engine knows that it waits in a queue, first or again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from monitor.errors import RunError
from monitor.runfile.format import attempt_dir
from monitor.runfile.records import RunState
from monitor.runfile.store import RunSummary, attempt_numbers, optional_json

if TYPE_CHECKING:
    from trainer.launch import JobStatus

SETTLED = frozenset({"running", "paused", "finished"})
"""Where the run's own files say all there is to say."""
WAITING = frozenset({"pending", "requeued"})
ASKED_EVERY_S = 5.0
"""Least time between two questions about the listed runs; a queue moves slowly and serves many. Our judgement."""
MOST_SHARE = 0.2
"""Of the time that may pass with asking. Our judgement."""


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
    """The states of runs, ``pending`` or ``requeued`` with the engine's reason while a job waits for its cluster.

    The engines are asked in a thread, about all runs at once: a cluster may take seconds to answer, or never do.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answered = threading.Condition()
        self._asking = False
        self._due = float("-inf")
        self._known: dict[Path, JobStatus | None] = {}
        """Last answer about each run; None where there is none to be had."""
        self._clusters: dict[Path, tuple[int, bool]] = {}  # asker's own: mtime of the attempts, whether with a cluster

    def corrected(self, states: Mapping[Path, RunState], wait: float = 0.0) -> dict[Path, RunState]:
        """``states`` with what the engines said when they were asked last; asks anew when due.

        Args:
            wait: seconds to wait at most for the first answer about a run.
        """
        unsettled = [path for path, state in states.items() if state.word not in SETTLED]
        with self._answered:
            fresh = any(path not in self._known for path in unsettled)
            if unsettled and not self._asking and (fresh or self._clock() >= self._due):
                self._asking = True
                threading.Thread(target=self._ask, args=(unsettled,), name="engine-states", daemon=True).start()
            if wait and fresh:
                self._answered.wait_for(lambda: all(path in self._known for path in unsettled), timeout=wait)
            known = self._known
        return {
            path: state if (now := known.get(path)) is None else told_by(state, now) for path, state in states.items()
        }

    def rows(self, summaries: Sequence[RunSummary], wait: float = 0.0) -> list[RunSummary]:
        """The same for rows of a list; one that cannot be read stays as it is."""
        states = self.corrected({one.path: one.state for one in summaries if one.problem is None}, wait)
        told = [states.get(one.path, one.state) for one in summaries]
        return [
            one if one.state is state else replace(one, state=state) for one, state in zip(summaries, told, strict=True)
        ]

    def forget(self, path: Path) -> None:
        """Ask anew about a run that something was just done to."""
        with self._answered:
            self._known = {one: now for one, now in self._known.items() if one != path}

    def _ask(self, paths: list[Path]) -> None:
        began, told = self._clock(), {path: self._known.get(path) for path in paths}
        try:
            answers = _told([path for path in paths if self._is_with_a_cluster(path)])
            told = {path: answers.get(path) for path in paths}
        finally:
            with self._answered:
                took = self._clock() - began
                self._known, self._asking = {**self._known, **told}, False
                self._due = began + max(ASKED_EVERY_S, took / MOST_SHARE)
                self._answered.notify_all()

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


ENGINE_STATES = EngineStates()
"""Shared by the list and the pages of runs."""
