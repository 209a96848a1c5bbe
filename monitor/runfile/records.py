"""What a run consists of beside its numbers: attempts, events, landscape samples, checkpoints; and how it stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MOST_CELLS = 1 << 22
"""Of a plane's grid: points of a hostile file may all have other coordinates."""
ENDED = ("finished", "stopped", "crashed", "lost")
"""Words of a run that will not go on by itself."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One uninterrupted stretch of training, from its start or resume to its end."""

    number: int
    parent: int | None
    resume_step: int
    """Last step of the parent that still counts; this attempt's first step is the next one."""
    last_step: int | None
    planned_steps: int | None
    world_size: int
    overrides: dict[str, Any]
    exit: dict[str, Any] | None
    created: float | None
    host: str | None
    environment: dict[str, Any]
    git: dict[str, Any] | None
    changes: tuple[tuple[int, dict[str, Any]], ...] = ()
    """What was changed while it ran: the last step before the change, and configuration values by dotted name."""

    def overrides_at(self, step: int | None = None) -> dict[str, Any]:
        """``overrides`` with the changes that were in force when ``step`` had ended; None: at its end."""
        made = {**self.overrides}
        for after_step, values in self.changes:
            if step is None or after_step <= step:
                made |= values
        return made


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened once."""

    step: int | None
    time: float
    kind: str
    fields: dict[str, Any]
    """As written. The numbers in ``values`` (kinds log and eval) are floats, non-finite ones included."""
    attempt: int
    rank: int


@dataclass(frozen=True, slots=True)
class LandscapeSample:
    """The loss along one direction, or under random perturbations of one radius."""

    step: int
    time: float
    kind: str
    direction: str
    radius: float
    coords: np.ndarray
    """float64[n]."""
    loss: np.ndarray
    """float64[n], the loss at each of ``coords``."""
    baseline: float
    """Loss at the undisturbed weights."""
    attempt: int = 0
    coords_y: np.ndarray = field(default_factory=lambda: np.empty(0))
    """float64[n] in a plane, where ``coords`` is the first coordinate; empty elsewhere."""
    detail_json: str = ""
    """What else is told of it, as written."""
    name: str = ""
    """Of its file when it was made after the training, from a checkpoint; empty for one of the training itself."""

    @property
    def detail(self) -> dict[str, Any]:
        """What else is told of it; see FORMAT.md, "Landscape samples". Empty when that is no JSON object."""
        try:
            value = json.loads(self.detail_json)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def grid(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A plane as x float64[N], y float64[M], loss float64[M, N], and bool[M, N]: which points have been taken.

        Where none has been taken ``loss`` is NaN, as it may be where one has. Raises ValueError for what is no plane.
        """
        if len(self.coords_y) != len(self.coords):
            raise ValueError(f"a sample of kind {self.kind!r} has no second coordinate")
        x, column = np.unique(self.coords, return_inverse=True)
        y, row = np.unique(self.coords_y, return_inverse=True)
        if len(x) * len(y) > MOST_CELLS:
            raise ValueError(f"{len(self.coords)} points that lie on no grid")
        loss, known = np.full((len(y), len(x)), np.nan), np.zeros((len(y), len(x)), bool)
        loss[row, column], known[row, column] = self.loss, True
        return x, y, loss, known


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder under ``checkpoints/``."""

    step: int
    path: Path
    complete: bool
    """Its COMMIT.json is there; without it the checkpoint was cut short."""


@dataclass(frozen=True, slots=True)
class RunState:
    """How a run stands, computed from what lies in its directory and from the process table."""

    word: str
    """starting, running, paused, finished, stopped, crashed, stale (alive but without progress), lost (silent, cannot
    tell)."""
    reason: str
    """One sentence for the tooltip."""
    updated: float | None
    """Unix time of the last sign of life."""
    step: int | None
    """Last step the run has told of."""
    heartbeat: dict[str, Any] | None
    """The last heartbeat; in a list of runs only the keys that the state is computed from."""

    @property
    def ended(self) -> bool:
        """Nothing more is to be expected from the present attempt."""
        return self.word in ENDED


@dataclass(frozen=True, slots=True)
class AttemptRecords:
    """The small files of the latest attempt that its state is computed from."""

    attempt: Mapping[str, Any] | None
    heartbeat: dict[str, Any] | None
    exit: Mapping[str, Any] | None
    supervisor: Mapping[str, Any] | None
    supervisor_exit: Mapping[str, Any] | None
    created: float | None
    """When the run was made."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One row of the list of runs."""

    id: str
    name: str
    path: Path
    state: RunState
    created: float | None
    last_step: int | None
    planned_steps: int | None
    last_loss: float | None
    """Last recorded training loss, in nats; may be NaN or infinite."""
    best_loss: float | None
    """Smallest finite training loss."""
    duration_s: float | None
    """Wall time of all attempts, added up."""
    task: str | None
    device: str | None
    tags: tuple[str, ...]
    problem: str | None
    """Why the run cannot be shown in full; None when it can."""
    notes: str | None = None
    parent: str | None = None
    """Id of the run that this one was forked from."""
    attempts: int = 0
    """How many times it was started or resumed."""


@dataclass(frozen=True, slots=True)
class RunDocuments:
    """A run's small files as they were written, reduced to the keys that a list needs."""

    run: dict[str, Any]
    meta: dict[str, Any]
    attempts: tuple[AttemptRecords, ...]
    """By number."""
    config: dict[str, Any] | None
    """The whole configuration, for the search."""
    problem: str | None
    """What of the directory is not as it should be, though the run can be listed."""
