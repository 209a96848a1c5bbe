"""A tracker for Accelerate, and a monitor for its loops.

    from monitor.integrations.accelerate import GradiometerTracker

    tracker = GradiometerTracker(run="runs", name="my-loop")
    accelerator = Accelerator(log_with=tracker)
    accelerator.init_trackers("my-project", config={"lr": 1e-3})
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    mon = tracker.watch(accelerator, model, optimizer)  # gradient norms, timing, memory; optional
    for batch in loader:
        with accelerator.accumulate(model):
            ...
        if accelerator.sync_gradients:
            mon.step(loss=loss)
            accelerator.log({"accuracy": accuracy})
    accelerator.end_training()

Without ``watch`` the tracker records what ``accelerator.log`` is given, as any other tracker does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monitor.guard import contained
from monitor.hook.attach import attach
from monitor.hook.background import FLUSH_S
from monitor.hook.handle import Monitor
from monitor.integrations.names import our_values
from monitor.runfile import format as fmt
from monitor.runfile.begin import begin_attempt, create_run, write_exit
from monitor.runfile.writer import RankWriter

try:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker
except ImportError as error:
    raise ImportError(
        f"monitor.integrations.accelerate needs the package accelerate ({error}). "
        "Install it with: pip install 'gradiometer[accelerate]'"
    ) from error


class GradiometerTracker(GeneralTracker):
    """Give an instance to ``Accelerator(log_with=...)``.

    Args:
        run, name, task: as in ``monitor.attach``.

    Attributes:
        monitor: the handle after :meth:`watch`; None without.
    """

    name = "gradiometer"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, run: Any = None, *, name: str | None = None, task: str | None = None) -> None:
        super().__init__()
        self._new_run: dict[str, Any] = {"name": name, "task": task, "config": None}
        self._folder = run
        self._run_dir: Path | None = None
        self._writer: RankWriter | None = None
        self._last_step = 0
        self.monitor: Monitor | None = None

    @property
    def tracker(self) -> Monitor | None:
        """The monitor, where ``accelerator.get_tracker("gradiometer", unwrap=True)`` looks for it."""
        return self.monitor

    @property
    def run_dir(self) -> Path | None:
        """The run directory, once there is one."""
        return self.monitor.run_dir if self.monitor is not None else self._run_dir

    def watch(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        **options: Any,
    ) -> Monitor:
        """Attach a monitor to what ``accelerator.prepare`` returned; on every process, after ``init_trackers``.

        Args:
            options: further arguments of ``monitor.attach``.

        Returns:
            The monitor; call its ``step`` wherever ``accelerator.sync_gradients`` is true.
        """
        given = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        inner = [getattr(one, "optimizer", one) for one in given]  # the wrapper steps the one inside
        self.monitor = attach(model, inner, run=self._folder, scaler=accelerator.scaler, **{**self._new_run, **options})
        return self.monitor

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Keep the configuration for the run's record."""
        self._new_run["config"] = dict(values)

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        """Record numbers at ``step``; by default the monitor's step, and without a monitor the next one."""
        with contained("accelerator.log"):
            ours = our_values(values)
            if self.monitor is not None:
                self.monitor.log(ours)
                return
            writer = self._writer = self._writer or self._begin()
            step = self._last_step + 1 if step is None else int(step)
            numbers = {name: float(value) for name, value in ours.items()}
            if step > self._last_step:
                self._last_step = step
                writer.scalars(step, time.time(), numbers)
            else:  # a second log of one step
                writer.event("log", step, values=numbers)

    def finish(self) -> None:
        """Close the run."""
        if self.monitor is not None:
            self.monitor.close()
        elif self._writer is not None and self._run_dir is not None:
            self._writer.close()
            write_exit(self._run_dir, 0, outcome="finished", step=self._last_step, reason="")

    def _begin(self) -> RankWriter:
        self._run_dir = create_run(fmt.runs_folder(self._folder), **self._new_run)
        return RankWriter(self._run_dir, begin_attempt(self._run_dir), seconds_per_batch=FLUSH_S)
