"""Watch a Hugging Face ``Trainer``.

    from monitor.integrations.transformers import GradiometerCallback

    Trainer(model, args, train_dataset=data, callbacks=[GradiometerCallback(run="runs")]).train()

The step's loss is what the model returned, put together from the micro-batches as the Trainer does; a loss that the
model does not return (label smoothing, ``compute_loss_func``) comes from the Trainer's log instead, at its cadence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from monitor.guard import contained
from monitor.hook.attach import attach
from monitor.hook.handle import Monitor
from monitor.integrations.names import our_values

try:
    from transformers import PretrainedConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        f"monitor.integrations.transformers needs the package transformers ({error}). "
        "Install it with: pip install 'gradiometer[transformers]'"
    ) from error


class GradiometerCallback(TrainerCallback):
    """Attaches a monitor when training begins and closes it when it ends.

    Args:
        run, name, task: as in ``monitor.attach``; the name is ``args.run_name`` unless given.
        options: further arguments of ``monitor.attach``.

    Attributes:
        monitor: the handle while training runs and afterwards; None before.
    """

    def __init__(self, run: Any = None, *, name: str | None = None, task: str | None = None, **options: Any) -> None:
        self._attach = {"run": run, "name": name, "task": task, **options}
        self._watched: ModelOutputs | None = None
        self._evaluation = contextlib.ExitStack()
        self._evaluating = False
        self.monitor: Monitor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Attach to the model and the optimizer that the Trainer has made."""
        model, optimizer = given["model"], given["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper steps the one inside
        name = self._attach["name"] or args.run_name
        options = {"config": _config(args, model), **self._attach, "name": name}
        self.monitor = attach(
            model, optimizer, planned_steps=state.max_steps or None, start_step=state.global_step, **options
        )
        self._watched = ModelOutputs(model, args)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """An optimizer step has been taken."""
        if self.monitor is not None and self._watched is not None:
            loss, tokens = self._watched.take()
            self.monitor.step(loss=loss, tokens=tokens)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: Mapping[str, Any] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        """Keep what the Trainer logs, but for what is measured here at every step."""
        if self.monitor is None or not logs or "train_runtime" in logs:  # the last log sums the whole training up
            return
        measured = {"learning_rate", "grad_norm", "epoch", "step"}
        values = our_values({name: value for name, value in logs.items() if name not in measured})
        if self._watched is not None and self._watched.has_loss:
            values.pop("train_loss", None)  # the Trainer's is a mean since its last log
        self.monitor.log(values)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """An evaluation is under way; its passes and its time are not the training's."""
        if self.monitor is not None and not self._evaluating:
            self._evaluating = True
            self._evaluation.enter_context(self.monitor.phase("eval"))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The evaluation is over; its figures have come through the log."""
        self._evaluating = False
        self._evaluation.close()

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **_: Any
    ) -> None:
        """A prediction is over."""
        self.on_evaluate(args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The Trainer has written a checkpoint."""
        if self.monitor is not None:
            self.monitor.sync()
            self.monitor.event("checkpoint", path=f"{args.output_dir}/checkpoint-{state.global_step}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the run; one that ended before ``max_steps`` was stopped by a callback."""
        self._evaluation.close()
        if self._watched is not None:
            self._watched.remove()
            self._watched = None
        if self.monitor is not None:
            early = state.global_step < state.max_steps
            self.monitor.close("stopped" if early else "finished", "the Trainer was told to stop" if early else "")


class ModelOutputs:
    """The loss and the tokens of the step in progress, seen at the model's own forward passes."""

    def __init__(self, model: nn.Module, args: TrainingArguments) -> None:
        self.has_loss = False
        """Whether the model has returned its own loss."""
        self._processes = args.world_size
        self._micro_steps = args.gradient_accumulation_steps
        self._averages_tokens = args.average_tokens_across_devices
        self._loss: Tensor | None = None
        self._seen = 0
        self._whole = False
        self._tokens = 0
        self._handle = model.register_forward_hook(self._after_forward, with_kwargs=True)

    def take(self) -> tuple[Tensor | None, int | None]:
        """Loss of the step that ends, and its tokens over all processes; None for what is not known."""
        loss, tokens = self._loss, self._tokens * self._processes
        if loss is not None and not self._whole:
            loss = loss / self._seen
        self._loss, self._seen, self._tokens, self._whole = None, 0, 0, False
        return loss, tokens or None

    def remove(self) -> None:
        """Take the hook out of the model."""
        self._handle.remove()

    def _after_forward(self, model: nn.Module, args: Any, given: Mapping[str, Any], output: Any) -> None:
        if not model.training:
            return
        with contained("the outputs of the model"):
            inputs = given.get("input_ids")
            if isinstance(inputs, Tensor):
                self._tokens += inputs.numel()
            loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                return
            self.has_loss, self._seen = True, self._seen + 1
            # Given the items of the whole step, the model returns its micro-batch's share of the step's mean.
            self._whole = given.get("num_items_in_batch") is not None
            loss = loss.detach().reshape(())
            if self._whole and self._averages_tokens:
                loss = loss * self._processes
            self._loss = loss if self._loss is None else self._loss + loss


def _config(args: TrainingArguments, model: nn.Module) -> dict[str, Any]:
    config = {"training_args": args.to_sanitized_dict()}
    of_model = getattr(model, "config", None)
    if isinstance(of_model, PretrainedConfig):
        config["model"] = of_model.to_dict()
    return config
