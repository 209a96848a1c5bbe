"""What an optimizer is told beside the learning rate: weight decay, betas, momentum, epsilon; when that jumps, and when
it has forgotten what it remembered.

A jump of one of them changes the training as a jump of the learning rate does, and no gradient or loss shows it for
long: a decay whose sign was turned, a momentum that a schedule set to 0. An event ``optimizer_change`` says when. The
settings of the first step are in the event ``optimizer`` of that step.
"""

from __future__ import annotations

from typing import Any

import torch

from monitor.hook.probe import Probe

FACTOR = 2.0
"""Of one step; a scheduled decay or a cycled momentum takes many steps for that. Our judgement."""
MOST_EVENTS = 50
"""Of one attempt."""
MOST_GROUPS = 16
"""Groups that the event of the first step lists."""
_WITHIN_ONE = ("beta1", "beta2", "momentum", "alpha", "rho")
"""Their distance from 1 is what counts: 0.99 averages over ten times as many steps as 0.9."""


class Hyperparameters(Probe):
    """Events ``optimizer`` (the settings of the first step, by group) and ``optimizer_change`` (a jump of one, or of
    ``state``, the number of tensors that it remembers something of, to 0)."""

    name = "the optimizer's settings"
    every = 1
    every_step = True

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[int, list[tuple[Any, ...]]] = {}
        self._remembered: dict[int, int] = {}
        self._events = 0

    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._look_at_state(optimizer)
        now = [
            tuple(group.get(name) for name in ("weight_decay", "betas", "eps", "momentum", "alpha", "rho"))
            for group in optimizer.param_groups
        ]
        before = self._last.get(id(optimizer))
        if now == before:  # the common case costs a comparison of a few tuples
            return
        self._last[id(optimizer)] = now
        if before is None:
            groups = [_settings(group) for group in now[:MOST_GROUPS]]
            self.watch.tell("optimizer", step=self.watch.step, name=type(optimizer).__name__, groups=groups)
            return
        for number, (old, new) in enumerate(zip(before, now, strict=False)):
            was, is_now = _settings(old), _settings(new)
            for name in was.keys() & is_now.keys():
                if _jumps(name, was[name], is_now[name]) and self._events < MOST_EVENTS:
                    self._events += 1
                    self.watch.tell(
                        "optimizer_change", step=self.watch.step, group=number, name=name, before=was[name],
                        after=is_now[name],
                    )  # fmt: skip

    def _look_at_state(self, optimizer: torch.optim.Optimizer) -> None:
        held, before = len(optimizer.state), self._remembered.get(id(optimizer), 0)
        if held:
            self._remembered[id(optimizer)] = held
        elif before and self._events < MOST_EVENTS:
            self._events += 1
            self.watch.tell("optimizer_change", step=self.watch.step, name="state", before=before, after=0)


def _settings(values: tuple[Any, ...]) -> dict[str, float]:
    """Those that are plain numbers: one on a device is not waited for."""
    decay, betas, eps, momentum, alpha, rho = values
    beta1, beta2 = betas if isinstance(betas, tuple | list) and len(betas) == 2 else (None, None)
    named = {
        "weight_decay": decay, "beta1": beta1, "beta2": beta2, "eps": eps, "momentum": momentum, "alpha": alpha,
        "rho": rho,
    }  # fmt: skip
    return {name: float(value) for name, value in named.items() if isinstance(value, int | float)}


def _jumps(name: str, before: float, after: float) -> bool:
    """Another sign, to or from nothing, or more than ``FACTOR`` at once."""
    if name in _WITHIN_ONE:
        before, after = 1.0 - before, 1.0 - after
    if before == after:
        return False
    if before * after <= 0:
        return True
    return not 1 / FACTOR <= after / before <= FACTOR
