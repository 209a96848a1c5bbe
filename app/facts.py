"""What the header of a run says: state, progress, latest values, as plain values computed from a ``Run``."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from app import text
from app.engine_state import ENGINE_STATES
from monitor.runfile.reader import Run
from monitor.runfile.store import RunState
from monitor.runfile.zoom import LongSignal, drawn, zoomed
from monitor.signals import Signal

ENGINE_WAIT_S = 1.0
"""For the first word of a cluster on a run; after that the page says what the files say. Our judgement."""
LIVE_WORDS = frozenset({"starting", "running", "paused", "pending", "requeued"})
RECENT_STEPS = 50
"""Steps that the speed shown and the time left are taken from (our judgement)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The state of a run at one moment."""

    state: RunState
    live: bool
    step: int | None
    planned_steps: int | None
    seconds_left: float | None
    loss: float | None
    best_loss: float | None
    val_loss: float | None
    grad_norm: float | None
    """Before clipping, at the last step."""
    clip_limit: float | None
    tokens_per_s: float | None
    """Median of the recent steps."""
    step_time_s: float | None
    """Median of the recent steps."""
    mfu: float | None
    """Median of the recent steps."""
    monitor_share: float | None
    """Share of the step time that measuring costs."""
    device: str | None
    has_gpu: bool
    nonfinite: tuple[tuple[str, int], ...]
    """Signals with NaN or infinite values, and how many."""
    attempts: int
    has_checkpoint: bool
    warnings: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def share(self) -> float | None:
        """Part of the planned steps that is done, in [0, 1]; None when unplanned or not begun."""
        if self.step is None or not self.planned_steps:
            return None
        return min(1.0, self.step / self.planned_steps)


def facts_of(run: Run) -> Facts:
    """What is known about ``run`` now; of a compacted run as little is read as of a short one."""
    state = ENGINE_STATES.corrected({run.path: run.state}, wait=ENGINE_WAIT_S)[run.path]
    live = state.word in LIVE_WORDS
    heartbeat = state.heartbeat or {}
    loss = drawn(run, "train_loss")
    step_time = _median(drawn(run, "step_time_s"))
    step, planned = run.last_step, run.planned_steps
    left = (planned - step) * step_time if live and planned and step is not None and step_time else None
    device = device_of(run)
    share = heartbeat.get("monitor_share")
    return Facts(
        state=state,
        live=live,
        step=step,
        planned_steps=planned,
        seconds_left=left,
        loss=_last(loss),
        best_loss=_least(loss),
        val_loss=_last(drawn(run, "val_loss")),
        grad_norm=_last(drawn(run, "grad_norm_preclip")),
        clip_limit=_last(drawn(run, "clip_max_norm")),
        tokens_per_s=_median(drawn(run, "tokens_per_s")),
        step_time_s=step_time,
        mfu=_median(drawn(run, "mfu")),
        monitor_share=float(share) if isinstance(share, int | float) else _monitor_share(run),
        device=device,
        has_gpu=bool(device and "cuda" in device.lower()),
        nonfinite=tuple(_nonfinite(run)),
        attempts=len(run.attempts),
        has_checkpoint=any(point.complete for point in run.checkpoints()),
        warnings=_warnings(run, heartbeat),
        problems=tuple(run.problems),
    )


def attempt_rows(run: Run) -> list[dict[str, str]]:
    """A row for every attempt: where it began and ended, why, and what was changed for it."""
    return [
        {
            "attempt": str(attempt.number),
            "from step": text.count(attempt.resume_step),
            "to step": text.count(attempt.last_step),
            "ended": text.plain((attempt.exit or {}).get("outcome", "–")),
            "why": text.plain((attempt.exit or {}).get("reason", "")),
            "processes": text.count(attempt.world_size),
            "host": text.plain(attempt.host or "–"),
            "overrides": text.plain(json.dumps(attempt.overrides)) if attempt.overrides else "",
        }
        for attempt in run.attempts
    ]


def device_of(run: Run) -> str | None:
    """What the newest attempt trained on, as its environment tells it."""
    for attempt in reversed(run.attempts):
        environment = attempt.environment or {}
        for name in ("device_name", "device", "gpu"):
            if isinstance(environment.get(name), str):
                return str(environment[name])
    configured = (run.config or {}).get("device")
    return str(configured) if isinstance(configured, str) else None


def _warnings(run: Run, heartbeat: dict[str, Any]) -> tuple[str, ...]:
    """What the recorder warns of, and what the monitor has found out about the training, each once."""
    said = [str(text) for text in heartbeat.get("warnings") or ()]
    for event in run.events("warning"):
        if isinstance(event.fields.get("about"), str) and isinstance(event.fields.get("text"), str):
            said.append(event.fields["text"])
    return tuple(dict.fromkeys(said))


def _last(signal: Signal | LongSignal) -> float | None:
    if isinstance(signal, LongSignal):
        return signal.at(len(signal) - 1)
    return float(signal.value[-1]) if len(signal) else None


def _least(signal: Signal | LongSignal) -> float | None:
    """The smallest finite value."""
    value = zoomed(signal, None, None, 1).value
    return float(value.min()) if len(value) else None


def _median(signal: Signal | LongSignal) -> float | None:
    """Of the finite ones among the recent steps."""
    recent = signal.tail(RECENT_STEPS).value
    recent = recent[np.isfinite(recent)]
    return float(np.median(recent)) if len(recent) else None


def _monitor_share(run: Run) -> float | None:
    cost, whole = _median(drawn(run, "monitor_s")), _median(drawn(run, "step_time_s"))
    return cost / whole if cost is not None and whole and math.isfinite(whole) else None


def _nonfinite(run: Run) -> list[tuple[str, int]]:
    counts = [(name, sum(zoomed(drawn(run, name), None, None, 1).nonfinite)) for name in run.names]
    return [(name, count) for name, count in counts if count]
