"""The state of a run whose job is with a cluster: only the engine knows that it waits in a queue, first or again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from monitor.errors import RunError
from monitor.runfile.format import attempt_dir
from monitor.runfile.reader import Run
from monitor.runfile.records import RunState
from monitor.runfile.store import optional_json

SETTLED = frozenset({"running", "paused", "finished"})
"""Where the run's own files say all there is to say."""
WAITING = frozenset({"pending", "requeued"})


def state_of(run: Run) -> RunState:
    """The run's state; ``pending`` or ``requeued``, with the engine's reason, while its job waits for a cluster."""
    state = run.state
    if state.word in SETTLED or not _is_with_a_cluster(run.path):
        return state
    from trainer import launch

    try:
        now = launch.status(run.path)
    except RunError:  # of an engine that is not known here
        return state
    if now.state in WAITING:
        return replace(state, word=str(now.state), reason=now.reason)
    if now.running and state.word in ("stopped", "crashed"):  # its next attempt is about to begin
        return replace(state, word="starting", reason=now.reason)
    return replace(state, reason=now.reason) if now.running else state


def _is_with_a_cluster(path: Path) -> bool:
    numbers = [int(one.name) for one in (path / "attempts").glob("[0-9]*") if one.name.isdecimal()]
    if not numbers:
        return False
    launched = optional_json(attempt_dir(path, max(numbers)) / "launch.json") or {}
    return launched.get("engine", "local") != "local"
