"""Gradient clipping: by the norm of the whole gradient, entry by entry, or tensor by tensor against its own past."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import ClipConfig


class Clipping:
    """Clips as ``config`` says. What adaptive clipping has learnt is its state; nothing of it leaves the device.

    Adaptive is AdaGC: a tensor's gradient may be ``growth`` times as long as the running mean of its own clipped norms.
    Until ``warmup_steps`` the whole gradient is clipped by ``max_norm``, and the mean starts at the smallest norm seen.
    A tensor whose gradient has been 0 so far (the second factor of LoRA at the start) has no mean yet and is not
    clipped; a norm that is not finite leaves the mean as it is.

    Source: Wang et al. 2025 (AdaGC), https://arxiv.org/abs/2502.11034, algorithm 1.
    """

    def __init__(self, config: ClipConfig, model: nn.Module) -> None:
        self._config = config
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._steps = 0
        device = self._parameters[0].device if self._parameters else None
        self._usual = torch.full((len(self._parameters),), torch.inf, device=device)
        """float32[P]: the running mean of each tensor's clipped norm; infinite before its first gradient."""

    def clip(self, mon: Any, *, off: bool = False) -> Tensor | None:
        """Clip the gradients, unscaled; gives back their norm before, where it was taken anyway.

        Args:
            mon: the monitor or its stand-in: its ``clip_grad_norm_`` clips and measures in one pass; torch's call for
                clipping by value it recognises.
            off: measure what would be measured, with limits that nothing reaches.
        """
        config = self._config
        if config.kind == "value":
            torch.nn.utils.clip_grad_value_(self._parameters, math.inf if off else config.max_value)
            return None
        if config.kind == "adaptive" and self._steps >= config.warmup_steps:
            mon.gradients_will_change()
            return self._clip_each(math.inf if off else config.growth)
        norm = None if config.max_norm is None else mon.clip_grad_norm_(math.inf if off else config.max_norm)
        if config.kind == "adaptive":
            self._steps += 1
            norms = self._norms()
            self._usual = torch.where(norms > 0, torch.fmin(self._usual, norms), self._usual)
        return norm

    @torch.no_grad()
    def _clip_each(self, growth: float) -> Tensor:
        norms, usual, beta = self._norms(), self._usual, self._config.beta
        limits = growth * usual
        factors = (limits / norms).clamp(max=1.0).unbind()
        for parameter, factor in zip(self._parameters, factors, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        clipped = torch.minimum(norms, limits)
        mean = torch.where(usual.isinf(), clipped, beta * usual + (1 - beta) * clipped)
        self._usual = torch.where((norms > 0) & norms.isfinite(), mean, usual)
        return torch.linalg.vector_norm(norms)

    def _norms(self) -> Tensor:
        """float32[P]: the norm of each parameter's gradient, 0 where there is none."""
        nothing = self._usual.new_zeros(())
        grads = [nothing if parameter.grad is None else parameter.grad for parameter in self._parameters]
        return torch.stack(torch._foreach_norm(grads)).float()

    def change(self, config: ClipConfig) -> None:
        """Go on with other limits of the same kind."""
        self._config = config

    @property
    def learns(self) -> bool:
        """Whether there is anything to remember."""
        return self._config.kind == "adaptive"

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "usual": self._usual}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ``ValueError`` when the state is that of another number of tensors."""
        if state["usual"].shape != self._usual.shape:
            raise ValueError(f"clipping knows {len(state['usual'])} tensors and the model has {len(self._usual)}")
        self._steps, self._usual = state["steps"], state["usual"].to(self._usual.device)
