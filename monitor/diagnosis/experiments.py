"""What to try on an incident: changes of the configuration, each a training of its own from before the onset.

The first is what the diagnosis recommends. The others are what practitioners try by hand: the batches left out, a lower
rate, a tighter clip, and the same steps again, which tells a fault of the machine from one that is in the training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitor.diagnosis.remedies import batches_of, skipped


@dataclass(frozen=True, slots=True)
class Experiment:
    """One change to try."""

    key: str
    """Short and stable: ``remedy``, ``skip-batches``, ``lower-lr``, ``tighter-clip``, ``again``."""
    text: str
    """What is changed, in words."""
    patch: Mapping[str, Any]
    """Dotted keys of the trainer's configuration; empty for the same steps again."""


def experiments(incident: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Experiment, ...]:
    """What can be tried on ``incident``, of the doctor's JSON, in a training of ``config``; the best known first.

    The first is what *Try this fix* tries: the recommended change; where none is known, the batches of the onset are
    left out, which mends what lay in them and what the machine did once: one batch where the alarm came at the onset.
    """
    onset, alarm = incident["onset_step"], incident["first_step"]
    patch = (incident.get("remedy") or {}).get("config_patch") or {}
    found = [Experiment("remedy", "as recommended", patch)] if patch else []
    left_out = skipped(onset, alarm)
    found.append(Experiment("skip-batches", f"without {batches_of(left_out)}", left_out))
    lr, limit = _positive(config, "optimizer", "lr"), _positive(config, "clip", "max_norm")
    if lr is not None:
        half = float(f"{lr / 2:.3g}")
        found.append(Experiment("lower-lr", f"half the learning rate, {half:g}", {"optimizer.lr": half}))
    tighter = 1.0 if limit is None else float(f"{limit / 4:.3g}")
    found.append(Experiment("tighter-clip", f"the gradient clipped at {tighter:g}", {"clip.max_norm": tighter}))
    found.append(Experiment("again", "the same steps again, nothing changed", {}))
    patches: list[Mapping[str, Any]] = []
    for one in found:
        if one.patch not in patches:
            patches.append(one.patch)
    return tuple(next(one for one in found if one.patch == patch) for patch in patches)


def _positive(config: Mapping[str, Any], section: str, name: str) -> float | None:
    part = config.get(section)
    value = part.get(name) if isinstance(part, Mapping) else None
    return float(value) if isinstance(value, int | float) and value > 0 else None
