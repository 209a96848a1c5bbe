"""Notices gradients that were not zeroed: those of the step before are still there when backward adds to them.

A step that forgot ``optimizer.zero_grad()`` trains on the sum of all gradients so far, and nothing fails. Each write
raises a tensor's version counter, so a gradient that backward finds as the optimizer left it, and adds to, was never
zeroed. A few tensors are looked at; what was zeroed behind the counter's back (``p.grad.data.zero_()``) holds zeros.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from monitor.hook.layers import LayerTable
from monitor.hook.passes import PLAIN
from monitor.hook.transfer import HostRead

SAMPLED = 8
"""Tensors looked at. Our judgement."""
MOST_LOOKS = 3
"""After so many suspects that held zeros the loop is known to zero in its own way."""
_TEXT = (
    "gradients were not zeroed: when backward began, those of the step before were still there, and it added to them. "
    "Call optimizer.zero_grad() once per optimizer step, before backward"
)


class Leftover:
    """Looks at one loop's gradients at the end of a step and around the first backward of the next.

    Args:
        tell: called once, with a sentence.
    """

    def __init__(
        self, table: LayerTable, optimizers: Sequence[torch.optim.Optimizer], tell: Callable[[str], None]
    ) -> None:
        owned = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        mine = [p for p in table.parameters if id(p) in owned and type(p) in PLAIN and p.requires_grad]
        self._parameters = mine[:: max(1, len(mine) // SAMPLED)][:SAMPLED]
        self._tell = tell
        self._kept: list[tuple[Tensor, weakref.ref[Tensor], int]] = []
        self._suspect = False
        self._looks = MOST_LOOKS
        self._filled: HostRead | None = None
        """How many entries of each suspected gradient are not zero, on their way to the host."""

    def step_ended(self, stepped: bool) -> None:
        """The step is over, and in it the optimizer took one."""
        self._kept, self._suspect = [], False
        for parameter in self._parameters if stepped else ():
            grad = parameter.grad
            if grad is not None and type(grad) in PLAIN:
                self._kept.append((parameter, weakref.ref(grad), grad._version))

    def backward_begins(self) -> None:
        """The first backward of a step whose forward pass has been seen."""
        if self._kept:
            self._suspect = all(p.grad is ref() and p.grad is not None and p.grad._version == version
                                for p, ref, version in self._kept)  # fmt: skip
            if self._suspect and self._filled is None:
                grads = [p.grad for p, _, _ in self._kept if p.grad is not None]
                self._filled = HostRead([torch.count_nonzero(grad) for grad in grads])

    def backward_ended(self) -> None:
        """Where backward has added to what was left, it is told: once a device has said that this was not zero."""
        kept, self._kept = self._kept, []
        suspect, self._suspect = self._suspect, False
        if not suspect or self._filled is None or not self._filled.ready():
            return
        added = all(p.grad is ref() and p.grad is not None and p.grad._version != version for p, ref, version in kept)
        if not any(count.item() for count in self._filled.arrays()):
            self._looks -= 1  # zeroed without a trace
            self._filled = None
            if not self._looks:
                self._parameters = []
        elif added:
            self._parameters = []
            self._tell(_TEXT)
