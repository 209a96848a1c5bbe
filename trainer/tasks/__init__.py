"""What can be trained. A task joins a model, its data and its loss; the loop knows nothing else about them.

``TASKS`` maps the word in ``task.kind`` to the function that builds the task from the configuration. A task of your own
is a subclass of ``Task`` and such a function, named ``package.module:build``. The loop uses it like this::

    task = build_task(config)
    model = build_model(task, config).to(device)
    indices = EpochSampler(task.train_size, seed).take(32)   # which examples: the loop's business, resumed bit for bit
    batch = task.train_batch(indices).to(device)             # their content: the task's business
    loss_sum = task.loss(model, batch)                       # summed, not averaged, so that accumulation can be exact
    (loss_sum / batch.tokens).backward()
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from trainer.config import TrainConfig
from trainer.losses import IGNORED
from trainer.tasks.adapters import adapt
from trainer.tasks.base import Batch, EpochSampler, Task
from trainer.tasks.charmlp import build_charmlp
from trainer.tasks.digits import build_digits
from trainer.tasks.gpt import build_gpt
from trainer.tasks.own import build_own
from trainer.tasks.weights import load_weights

__all__ = ["IGNORED", "Batch", "EpochSampler", "Task", "TASKS", "build_model", "build_task"]

TASKS: dict[str, Callable[[TrainConfig], Task]] = {
    "gpt": build_gpt,
    "charmlp": build_charmlp,
    "mlp": build_digits,
    "cnn": build_digits,
}


def build_task(config: TrainConfig) -> Task:
    """The task that ``task.kind`` names.

    Raises:
        ConfigError: its data cannot be read, a library is missing, or a task of the user's own cannot be had.
    """
    return TASKS.get(config.task.kind, build_own)(config)


def build_model(task: Task, config: TrainConfig, *, resumed: bool = False) -> nn.Module:
    """The task's model, with the first weights (unless ``resumed``) and the adapter that ``config`` asks for.

    Raises:
        ConfigError: the weights cannot be read or do not fit, or the adapter does not.
    """
    model = task.build_model()
    if config.model.weights is not None and not resumed:
        load_weights(model, config.model.weights)
    adapt(model, config.adapter)
    return model
