"""A task of the user's own: ``package.module:build``, a function from the configuration to a ``Task``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from monitor.errors import ConfigError
from trainer.config import TrainConfig
from trainer.tasks.base import Task

NEEDED = ("name", "train_size", "val_size")
"""Attributes without a default."""


def build_own(config: TrainConfig) -> Task:
    """What the function that ``task.kind`` names makes of ``config``.

    Raises:
        ConfigError: there is no such module or function, or what it gives back is no task. An exception within the
            user's module or function passes through: its traceback is theirs to read.
    """
    kind = config.task.kind
    task = _function(kind)(config)
    if not isinstance(task, Task):
        raise ConfigError(
            f"task.kind = {kind}: the function gave back a {type(task).__name__}; it must give back an object of a "
            "subclass of trainer.tasks.Task."
        )
    for name in NEEDED:
        if not hasattr(task, name):
            raise ConfigError(
                f"task.kind = {kind}: {type(task).__name__} has no attribute {name}. "
                f"A task needs {', '.join(NEEDED)}; see trainer.tasks.Task."
            )
    for name in ("train_size", "val_size"):
        size = getattr(task, name)
        if not isinstance(size, int) or size < 1:
            raise ConfigError(
                f"task.kind = {kind}: {type(task).__name__}.{name} is {size!r}; it must be a whole number, 1 or more."
            )
    return task


def _function(kind: str) -> Callable[[TrainConfig], object]:
    where, _, name = kind.partition(":")
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # the module is there; what is missing is something that it imports
        raise ConfigError(
            f"task.kind = {kind}: there is no module {error.name}. Looked in {', '.join(filter(None, sys.path[:4]))}, "
            "...: start from the folder that holds it, put that folder into PYTHONPATH, or install the package."
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ConfigError(
            f"task.kind = {kind}: module {where} ({module.__file__}) has no function {name}. "
            f"It has: {', '.join(names[:20]) or 'none'}."
        )
    return function
