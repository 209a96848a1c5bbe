"""The sections of a run's page by name. The server imports this while the first browser starts: it takes a while."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.facts import Facts
from app.views import attention, checkpoints, config, incidents, landscape, layers, log, ranks, story, system
from monitor.runfile.reader import Run

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


def sections_of(run: Run) -> list[str]:
    """Those that have something to show of ``run``, or say what is missing; more may come while it is live."""
    absent = set() if run.events("attention_map") else {"Attention"}
    absent |= set() if run.layer_stats or run.module_stats else {"Layers"}
    absent |= set() if ranks.has_several(run) else {"Ranks"}
    return [section for section in SHOW if section not in absent]
