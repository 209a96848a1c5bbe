"""The probes of what flows through a model: inputs, activations, attention, logits, and where a NaN began."""

from __future__ import annotations

from torch import nn

from monitor.hook.activations import Activations
from monitor.hook.attention import Attention
from monitor.hook.inputs import Inputs, Modes
from monitor.hook.layers import module_names
from monitor.hook.logits import OutputLogits
from monitor.hook.nonfinite import NonFinite
from monitor.hook.output_values import OutputValues
from monitor.hook.probe import Probe


def module_probes(model: nn.Module, world_size: int = 1) -> list[Probe]:
    """All of them, for a model that is about to be attached. Each must be removed, or given to a monitor that does."""
    probes: list[Probe] = [
        Inputs(count_samples=world_size == 1),
        Modes(model),
        OutputLogits(model),
        OutputValues(model),
        NonFinite(model),
    ]
    if module_names(model):  # a model that is one torch module alone has no table of modules
        probes += [Activations(model), Attention(model)]
    return probes
