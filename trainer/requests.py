"""What people ask of a training while it runs, and what the training does about it.

    checkpoint     saved after the step, kept like any other (checkpoint.keep_last)
    stop           a checkpoint, and the end of the attempt
    pause          after the step, on every rank, until ``continue``; a signal and ``stop`` still end it
    set_lr         ``factor`` multiplies optimizer.lr; ``value`` is the rate of the next step, and optimizer.lr becomes
                   what the schedule then makes it from. Either way the schedule goes on multiplying
    set_clip       the limit of the configured clip.kind: max_norm, max_value or growth
    record_dense   the next steps measured in full

A change is one of the configuration: checked by it, kept in the attempt's changes.json before it takes effect, and in
force again after a resume. Rank 0 alone reads requests; that there are some goes to all ranks with the flag that asks
to stop, and what they are once there are some.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from monitor.errors import ConfigError
from monitor.runfile.control import DENSE_STEPS, Request, record_change
from trainer.config import TrainConfig, with_values
from trainer.parallel import Parallel
from trainer.place import Place
from trainer.schedules import lr_multiplier

LEAST_MULTIPLIER = 1e-3
"""Where the schedule is below it, a rate given as a value would come to a peak a thousand times as high."""
REST_S = 0.25
"""Between two looks of a paused training."""
LIMITS = {"norm": "clip.max_norm", "value": "clip.max_value", "adaptive": "clip.growth"}


class Requests:
    """The requests to one attempt that are not answered yet. On ranks but the first nothing is ever asked."""

    def __init__(self, place: Place, parallel: Parallel, mon: Any, say: Callable[[str], None]) -> None:
        self._place, self._parallel, self._mon, self._say = place, parallel, mon, say
        self._arrived: list[Request] = []
        self._saving: dict[int, list[Request]] = {}
        """Those that wait for the checkpoint of a step."""
        self._told: tuple[int, str | None] = (-1, None)
        """Step of the last checkpoint of which it is known what became of it, and the problem with it."""
        self._stopping: Request | None = None
        self._pause = ExitStack()
        self._paused_by: Request | None = None

    @property
    def pending(self) -> bool:
        """Whether somebody has asked for something."""
        self._arrived += self._mon.requests()
        return bool(self._arrived)

    def take(self) -> list[Request]:
        """What was asked for, the same on every rank; collective."""
        taken, self._arrived = self._arrived, []
        return self._parallel.shared(taken)

    def answer(self, request: Request, text: str, *, failed: bool = False, **fields: Any) -> None:
        """Say what came of it, in the run and in the log."""
        self._mon.answer(request, text, failed=failed, **fields)
        self._say(f"request {request.id}, {request.text} ({request.by}): {text}")

    # Checkpoint and stop

    def wait_for_checkpoint(self, request: Request, step: int) -> None:
        """It is answered when the checkpoint of ``step`` is on disk."""
        self._saving.setdefault(step, []).append(request)
        if self._told[0] == step:
            self.saved(*self._told)

    def saved(self, step: int, problem: str | None) -> None:
        """The checkpoint of ``step`` is on disk, or there is none because of ``problem``."""
        self._told = step, problem
        for request in self._saving.pop(step, []):
            text = f"checkpoints/{step:08d}" if problem is None else f"it could not be written: {problem}"
            self.answer(request, text, failed=problem is not None)

    def stop(self, request: Request) -> str:
        """Training ends with this step; why, in words. Answered by ``close``."""
        self._stopping = request
        return f"asked to stop ({request.by})"

    def close(self, said: str | None) -> None:
        """The attempt is over and its checkpoints are on disk; ``said`` is how it ended, None for an error."""
        self._pause.close()
        if self._stopping is not None and said is not None:
            self.answer(self._stopping, said)
            self._stopping = None

    # Pause

    @property
    def paused(self) -> bool:
        return self._paused_by is not None

    def pause(self, request: Request) -> None:
        """No step until ``go_on``; the heartbeat says so."""
        if self._paused_by is not None:
            self.answer(request, f"it is paused already, by request {self._paused_by.id}", failed=True)
            return
        self._paused_by = request
        self._pause.enter_context(self._mon.phase("paused"))
        self.answer(request, "paused; stop and signals are still obeyed")

    def go_on(self, request: Request) -> None:
        """The end of a pause."""
        if self._paused_by is None:
            self.answer(request, "it is not paused", failed=True)
            return
        self._paused_by = None
        self._pause.close()
        self.answer(request, "going on")

    def rest(self) -> None:
        """Some of a pause."""
        time.sleep(REST_S)

    # Changes

    def changed(self, request: Request, config: TrainConfig, step: int) -> TrainConfig:
        """``config`` as it is from the step after ``step`` on; itself when the change is refused. Collective."""
        try:
            values, text = change(request, config, step)
            changed = with_values(config, values)
        except ConfigError as error:
            self.answer(request, str(error), failed=True)
            return config
        problem = self._parallel.shared(self._keep(request, step, values) if self._parallel.is_first else None)
        if problem is not None:
            self.answer(request, f"not changed, because a resume would not know of it: {problem}", failed=True)
            return config
        self.answer(request, text, patch=values)
        return changed

    def _keep(self, request: Request, step: int, values: dict[str, Any]) -> str | None:
        try:
            record_change(self._place.run_dir, self._place.attempt, step, values, request.id)
        except OSError as error:
            return str(error)
        return None

    def record_dense(self, request: Request) -> None:
        """The next steps in full, on this rank."""
        self.answer(request, self._mon.record_dense(int(request.values["steps"] or DENSE_STEPS)))


def change(request: Request, config: TrainConfig, step: int) -> tuple[dict[str, Any], str]:
    """What a request for another rate or limit changes in ``config`` after ``step``, by dotted name; and in words.

    Raises:
        ConfigError: it makes no sense with this configuration.
    """
    if request.do == "set_clip":
        name, limit = LIMITS[config.clip.kind], request.values["value"]
        if limit is None and config.clip.kind != "norm":
            raise ConfigError(f"clip.kind = {config.clip.kind} has no limit of none; give a number above 0.")
        before = {"norm": config.clip.max_norm, "value": config.clip.max_value, "adaptive": config.clip.growth}
        was = _number(before[config.clip.kind])
        return {name: limit}, f"{name} = {_number(limit)} instead of {was} from step {step + 1} on"
    multiplier = lr_multiplier(config.schedule, step + 1, config.steps)
    before_lr = config.optimizer.lr
    value, factor = request.values.get("value"), request.values.get("factor")
    if value is None:
        assert factor is not None  # one of the two, says the request's schema
        lr = before_lr * factor
    elif multiplier < LEAST_MULTIPLIER:
        raise ConfigError(
            f"the schedule gives step {step + 1} {multiplier:.2g} of optimizer.lr = {before_lr:g}, too little to set a "
            "rate from. Give a factor instead, such as 0.5."
        )
    else:
        lr = value / multiplier
    text = (
        f"learning rate {lr * multiplier:.4g} instead of {before_lr * multiplier:.4g} from step {step + 1} on: "
        f"optimizer.lr = {lr:.6g}, which the schedule goes on multiplying"
    )
    return {"optimizer.lr": lr}, text


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
