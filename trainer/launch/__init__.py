"""Start, follow, stop and resume training processes. The page and the command line go through here; torch stays out.

    launched = start(config, "runs", name="first")     # returns at once, the training survives the caller
    status(launched.run_dir).state                     # pending, running, stopping, succeeded, failed, cancelled, lost
    stop(launched.run_dir)                             # checkpoint, then a clean end; SIGKILL after the grace time
    resume(launched.run_dir, overrides=["steps=2000"]) # a new attempt from the last complete checkpoint
    resume(launched.run_dir, at_step=200)              # ... or from that of step 200: a rewind
    fork(launched.run_dir, 200, ["optimizer.lr=1e-4"]) # a run of its own from there

Where the processes run is an ``Engine`` (``engine.py``), chosen by ``config.launch.engine``: ``local.py`` is this
machine, ``slurm.py`` and ``ray.py`` are clusters. Everything an engine knows about a job lies in the attempt folder, so
any process that reaches the folder and the engine can follow or stop what another one started.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.launch.engine import JobState, JobStatus, Launched, StopResult

if TYPE_CHECKING:
    from trainer.launch.launcher import (
        command,
        engines,
        fork,
        healthy_before,
        is_running,
        log_path,
        resume,
        resume_command,
        skipping,
        start,
        status,
        statuses,
        stop,
    )

__all__ = [
    "JobState",
    "JobStatus",
    "Launched",
    "StopResult",
    "command",
    "engines",
    "fork",
    "healthy_before",
    "is_running",
    "log_path",
    "resume",
    "resume_command",
    "skipping",
    "start",
    "status",
    "statuses",
    "stop",
]


def __getattr__(name: str) -> object:
    # The supervisor is a module of this package and imports it first: pydantic and pyarrow, which only the launcher
    # needs, would cost it 0.4 s and 80 MB in every training run.
    if name in __all__:
        from trainer.launch import launcher

        return getattr(launcher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
