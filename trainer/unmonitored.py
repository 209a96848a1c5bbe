"""What stands in for the monitor when it is switched off: the loop reads the same, nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from monitor.hook.ranks import is_sharded
from monitor.hook.sharded import ShardedNorms, scale_pieces
from monitor.runfile.control import Request


class Unmonitored:
    """The methods of ``monitor.Monitor`` that the loop calls, each doing only what training itself needs."""

    def __init__(self, model: nn.Module, *, split_layers: bool = False) -> None:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._parameters = [parameter for _, parameter in named]
        in_pieces = split_layers or any(map(is_sharded, self._parameters))
        self._norms = ShardedNorms([name for name, _ in named]) if in_pieces else None

    def __enter__(self) -> Unmonitored:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        if self._norms is None:
            return torch.nn.utils.clip_grad_norm_(self._parameters, max_norm)
        rows = [row for row, parameter in enumerate(self._parameters) if parameter.grad is not None]
        grads = [grad for parameter in self._parameters if (grad := parameter.grad) is not None]
        total = self._norms.take(grads, rows).total
        scale_pieces(grads, torch.clamp(max_norm / (total + 1e-6), max=1.0))
        return total

    landscape_due = False

    def gradients_will_change(self) -> None: ...
    def step(self, **measured: Any) -> None: ...
    def log(self, values: Mapping[str, float]) -> None: ...
    def event(self, kind: str, **fields: Any) -> None: ...

    def sync(self) -> None: ...
    def record_dense(self, steps: int) -> str:
        return ""

    def requests(self) -> list[Request]:
        return []  # without a heartbeat nobody can know that the training is there to be asked

    def answer(self, request: Request, text: str, *, failed: bool = False, **fields: Any) -> None: ...

    def phase(self, name: str, *, recorded: bool = True) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self, outcome: str = "finished", reason: str = "", *, signal: int | None = None) -> None: ...
