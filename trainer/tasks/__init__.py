"""What can be trained. A task joins a model, its data and its loss; the loop knows nothing else about them.

A task of your own is an object with the members of ``Task``; ``TASKS`` maps the word in ``task.kind`` to the function
that builds it from the configuration. The loop uses it like this::

    task = build_task(config)
    model = task.build_model().to(device)
    indices = EpochSampler(task.train_size, seed).take(32)   # which examples: the loop's business, resumed bit for bit
    batch = task.train_batch(indices).to(device)             # their content: the task's business
    loss_sum = task.loss(model, batch)                       # summed, not averaged, so that accumulation can be exact
    (loss_sum / batch.tokens).backward()
"""

from __future__ import annotations

from collections.abc import Callable

from trainer.config import TrainConfig
from trainer.losses import IGNORED
from trainer.tasks.base import Batch, EpochSampler, Task
from trainer.tasks.charmlp import build_charmlp
from trainer.tasks.gpt import build_gpt

__all__ = ["IGNORED", "Batch", "EpochSampler", "Task", "TASKS", "build_task"]

TASKS: dict[str, Callable[[TrainConfig], Task]] = {"gpt": build_gpt, "charmlp": build_charmlp}


def build_task(config: TrainConfig) -> Task:
    """The task that ``task.kind`` names.

    Raises:
        ConfigError: its data cannot be read.
    """
    return TASKS[config.task.kind](config)
