"""Which probes a training is watched with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import nn

from monitor.hook.activations import Activations
from monitor.hook.adam import AdamFloor, AdamRms, leading_rows
from monitor.hook.checksum import Checksum
from monitor.hook.communication import communication
from monitor.hook.coverage import of_layers, of_modules
from monitor.hook.directions import Directions
from monitor.hook.early_signs import EarlySigns
from monitor.hook.gradient_values import GradientValues
from monitor.hook.hyperparameters import Hyperparameters
from monitor.hook.layers import layer_table
from monitor.hook.local_gradients import local_probe
from monitor.hook.modules import module_probes
from monitor.hook.noise_scale import NoiseScale
from monitor.hook.probe import Probe
from monitor.hook.ranks import ddp_of
from monitor.hook.unmoved import Gradientless, Unmoved
from monitor.hook.updates import Updates

Detail = Literal["norms", "standard", "full"]
FULL_EVERY = 5
"""Most steps between two measured ones with ``full``."""


def checked(detail: object) -> Detail:
    """``detail`` as given.

    Raises:
        ValueError: it is not one of the accepted words.
    """
    if isinstance(detail, str) and detail in get_args(Detail):
        return cast(Detail, detail)
    raise ValueError(
        f"detail is {detail!r:.60}; accepted are 'norms' (gradient norms only), 'standard', and 'full' "
        f"(everything at least every {FULL_EVERY} steps)"
    )


def default_probes(
    detail: Detail, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], world_size: int = 1
) -> list[Probe]:
    """The probes of one monitor, none with ``norms``. They are in the order in which they measure."""
    if detail == "norms":
        return []
    full = detail == "full"
    table = layer_table(model)
    unmoved = Unmoved(table)
    ddp = ddp_of(model)
    local = local_probe(model, table) if world_size > 1 else None
    leading = leading_rows(model, table)
    probes: list[Probe] = [
        GradientValues(table, optimizers, count_nonfinite=full),
        Gradientless(table, optimizers, model),
        Hyperparameters(),
        Directions(table, unmoved),
        unmoved,
        Updates(table),
        AdamRms(table, leading),
        AdamFloor(table),
        *module_probes(model, world_size),
        *([local] if local is not None else []),
        *([communication(ddp)] if ddp is not None else []),
        NoiseScale(table, model, local),
        *([Checksum(table)] if world_size > 1 else []),
        EarlySigns(),
    ]
    for probe in probes:
        if isinstance(probe, GradientValues | Directions | Updates | AdamRms):
            probe.coverage = of_layers(table, leading)
        elif isinstance(probe, Activations):
            probe.coverage = of_modules(model)
    if full:
        for probe in probes:
            probe.every = min(probe.every, FULL_EVERY)
    return probes
