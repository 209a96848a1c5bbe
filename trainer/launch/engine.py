"""What a place that runs trainings has to offer: submit, poll, stop, and where the logs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # the supervisor imports this module, and pydantic would cost it 0.4 s
    from trainer.config import LaunchConfig


class JobState(StrEnum):
    """Where a job is. What the run itself says (finished, stopped, crashed) is in its exit record, not here."""

    PENDING = "pending"
    """Submitted; no trainer process yet."""
    RUNNING = "running"
    STOPPING = "stopping"
    """Asked to stop; the trainer is saving its checkpoint."""
    REQUEUED = "requeued"
    """It has run before and waits to go on from its last checkpoint."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    """No process is left and nobody recorded how it ended, or it runs where we cannot look."""


ACTIVE = frozenset({JobState.PENDING, JobState.RUNNING, JobState.STOPPING, JobState.REQUEUED})


class Handle(NamedTuple):
    """Names one attempt to the engine that holds it; what else is needed to find the job lies in the attempt folder."""

    run_dir: Path
    """Absolute."""
    attempt: int


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One attempt to be run. The attempt folder exists and holds ``launch.json`` and ``config.json``."""

    run_dir: Path
    """Absolute."""
    attempt: int
    arguments: tuple[str, ...]
    """What follows ``python -m trainer``."""
    world_size: int = 1
    grace_s: float = 30.0
    """Seconds between SIGTERM and SIGKILL."""
    max_restarts: int = 0
    """How often all processes are started again when one of them has died."""
    launch: LaunchConfig | None = None
    """What the configuration says to the engine; None for its defaults."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the trainer's environment and written nowhere."""
    command: tuple[str, ...] | None = None
    """Run this instead of the trainer (tests)."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What the page shows about the processes of one attempt."""

    state: JobState
    reason: str
    """One sentence for the tooltip."""
    attempt: int | None
    pids: tuple[int, ...] = ()
    """Live processes of the attempt that we know by pid and creation time, the supervisor first."""
    supervised: bool = False
    log: Path | None = None
    """stdout and stderr of the trainer; the file may not exist yet."""

    @property
    def running(self) -> bool:
        return self.state in ACTIVE


@dataclass(frozen=True, slots=True)
class Launched:
    """A training that has been handed to an engine."""

    run_id: str
    run_dir: Path
    attempt: int
    command: tuple[str, ...]
    """The trainer's command line as it was started."""


@dataclass(frozen=True, slots=True)
class StopResult:
    """What a request to stop came to. It returns before the training has ended: ``status`` tells when."""

    signalled: bool
    """False when nothing was running."""
    message: str
    pids: tuple[int, ...] = ()
    """The processes that got SIGTERM."""


class Engine(Protocol):
    """A place that runs jobs. What it needs to find a job again it keeps in the attempt folder."""

    name: str

    def unavailable(self) -> str | None:
        """Why nothing can be launched there from here, in one sentence; None when it can."""
        ...

    def submit(self, spec: JobSpec) -> tuple[str, ...]:
        """Hand the job over, return at once, give back the trainer's command line.

        Raises:
            RunError: it could not be handed over; the attempt's exit record says so too.
        """
        ...

    def poll(self, handles: Sequence[Handle]) -> list[JobStatus]:
        """How each of them stands, in their order, for one question to whoever holds them."""
        ...

    def stop(self, handle: Handle, grace_s: float | None) -> StopResult:
        """Ask for a checkpoint and a clean end; ``grace_s`` None leaves the time given at the start in force."""
        ...

    def logs(self, handle: Handle, rank: int = 0) -> Path:
        """Where that rank prints to; the file may not exist yet, or be rank 0's for all of them."""
        ...
