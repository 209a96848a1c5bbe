"""The sections of a run's page by name. The server imports this while the first browser starts: it takes a while."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.facts import Facts
from app.views import attention, checkpoints, config, incidents, landscape, layers, log, ranks, story, system

SHOW: dict[str, Callable[[Path, Facts], None]] = {
    "Story": story.show,
    "Incidents": incidents.show,
    "Layers": layers.show,
    "Attention": attention.show,
    "Landscape": landscape.show,
    "System": system.show,
    "Ranks": ranks.show,
    "Config": config.show,
    "Log": log.show,
    "Checkpoints": checkpoints.show,
}
