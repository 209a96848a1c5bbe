"""Watch a Lightning ``Trainer``.

    from monitor.integrations.lightning import GradiometerCallback

    Trainer(callbacks=[GradiometerCallback(run="runs")]).fit(module, data)

Values that the module logs are kept at the optimizer step at which they were logged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from monitor.guard import contained
from monitor.hook.attach import attach
from monitor.hook.handle import Monitor
from monitor.integrations.names import our_values

try:
    try:
        from lightning.pytorch import Callback, LightningModule, Trainer
    except ImportError:
        from pytorch_lightning import Callback, LightningModule, Trainer  # type: ignore[assignment]
except ImportError as error:
    raise ImportError(
        f"monitor.integrations.lightning needs the package lightning ({error}). "
        "Install it with: pip install 'gradiometer[lightning]'"
    ) from error


_LOSS = "train_loss"
"""Taken from what ``training_step`` returned, at every step, and not from what the module may log of it."""


class GradiometerCallback(Callback):
    """Attaches a monitor when ``fit`` begins and closes it when it ends.

    Args:
        run, name, task: as in ``monitor.attach``; the name is the module's class unless given.
        tokens: tokens (or samples) of one batch over all processes, for the throughput.
        options: further arguments of ``monitor.attach``.

    Attributes:
        monitor: the handle while training runs and afterwards; None before.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        name: str | None = None,
        task: str | None = None,
        tokens: Callable[[Any], float] | None = None,
        **options: Any,
    ) -> None:
        self._attach = {"run": run, "name": name, "task": task, **options}
        self._tokens_of = tokens
        self._loss: Tensor | None = None
        self._tokens = 0.0
        self._steps = 0
        self._evaluation = contextlib.ExitStack()
        self._of_training: set[str] = set()
        self._of_validation: set[str] = set()
        self.monitor: Monitor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the module and its optimizers."""
        planned = trainer.estimated_stepping_batches
        options = {"config": {"hparams": dict(pl_module.hparams)}, **self._attach}
        options["name"] = self._attach["name"] or type(pl_module).__name__
        self._steps = trainer.global_step
        self.monitor = attach(
            pl_module,
            list(trainer.optimizers),
            planned_steps=int(planned) if 0 < planned < float("inf") else None,
            start_step=trainer.global_step,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            **{"on_sigterm": False, **options},  # Lightning has its own handler, where it finds no other
        )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The forward pass comes next; it runs in ``training_step``, not in the module's own call."""
        if self.monitor is not None:
            self.monitor.forward_begins()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a step if the batch was the last micro-batch of one."""
        if self.monitor is None:
            return
        with contained("what training_step returned"):
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            if isinstance(loss, Tensor) and loss.numel() == 1:  # already divided by accumulate_grad_batches
                loss = loss.detach().reshape(())
                self._loss = loss if self._loss is None else self._loss + loss
            if self._tokens_of is not None:
                self._tokens += float(self._tokens_of(batch))
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        self.monitor.step(loss=self._loss, tokens=self._tokens or None)
        self._loss, self._tokens = None, 0.0
        logged = our_values(trainer.logged_metrics)  # the last validation's are still among them
        self.monitor.log({name: value for name, value in logged.items() if name not in self._of_validation | {_LOSS}})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Passes and time from here on are not the training's."""
        if self.monitor is not None:
            self._evaluation.enter_context(self.monitor.phase("eval"))
            self._of_training = set(our_values(trainer.callback_metrics)) - self._of_validation

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the validation has logged."""
        self._evaluation.close()
        if self.monitor is not None and not trainer.sanity_checking:
            values = our_values(trainer.callback_metrics)
            self._of_validation = set(values) - self._of_training
            self.monitor.log({name: values[name] for name in self._of_validation})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is being written."""
        if self.monitor is not None:
            self.monitor.sync()
            self.monitor.event("checkpoint")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the run."""
        self._evaluation.close()
        if self.monitor is not None:
            early = trainer.interrupted
            self.monitor.close("stopped" if early else "finished", "interrupted" if early else "")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the run with what ended it."""
        self._evaluation.close()
        if self.monitor is None:
            return
        if isinstance(exception, KeyboardInterrupt | SystemExit):
            self.monitor.close("stopped", type(exception).__name__, error=exception)
        else:
            self.monitor.close("crashed", f"{type(exception).__name__}: {exception}", error=exception)
