"""What stands in for the monitor when it is switched off: the loop reads the same, nothing is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


class Unmonitored:
    """The methods of ``monitor.Monitor`` that the loop calls, each doing only what training itself needs."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def __enter__(self) -> Unmonitored:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(self._parameters, max_norm)

    def gradients_will_change(self) -> None: ...
    def step(self, **measured: Any) -> None: ...
    def log(self, values: Mapping[str, float]) -> None: ...
    def event(self, kind: str, **fields: Any) -> None: ...
    def landscape_sample(self, loss_fn: Callable[[], torch.Tensor]) -> None: ...

    def sync(self) -> None: ...

    def phase(self, name: str, *, recorded: bool = True) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self, outcome: str = "finished", reason: str = "", *, signal: int | None = None) -> None: ...
