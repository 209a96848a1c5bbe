"""What a run consists of beside its numbers: attempts, events, landscape samples, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


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


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder under ``checkpoints/``."""

    step: int
    path: Path
    complete: bool
    """Its COMMIT.json is there; without it the checkpoint was cut short."""
