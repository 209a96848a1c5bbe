"""Going back in a training and trying what would mend it, for the command line and the page. Without Streamlit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from app.incident import config_diff
from app.text import plain
from monitor.runfile.reader import Run, open_run


def rewound(
    path: str | os.PathLike[str], step: int, changes: Sequence[str], skip_batches: int = 0, *, as_child: bool
) -> str:
    """Rewind the run at ``path`` to the checkpoint of ``step``, or fork a child there; what was started, in words.

    Raises:
        RunError, ConfigError: it was refused.
    """
    from trainer import launch

    overrides = [*changes, *launch.skipping(step, skip_batches)]
    if as_child:
        launched = launch.fork(path, step, overrides)
        child = open_run(launched.run_dir)
        head = f"{child.id} started as a child of {Path(path).name} after step {step}"
        return told(head, changes_of(child), open_run(path))
    launched = launch.resume(path, overrides, at_step=step)
    head = f"{launched.run_id} goes on after step {step} as attempt {launched.attempt}"
    return "\n".join([head, *(f"+ {override}" for override in overrides)])


def changes_of(child: Run) -> dict[str, object]:
    """What a forked run's configuration says differently from its parent's, by dotted name."""
    changes = (child.parent or {}).get("changes")
    return changes if isinstance(changes, dict) else {}


def told(head: str, changes: dict[str, object], parent: Run) -> str:
    """``head`` with the changes beneath it as a diff against the parent's configuration."""
    return plain(head) + (f"\n{config_diff(parent.config or {}, changes)}" if changes else ", nothing changed")
