"""Trainings broken on purpose, and healthy ones: what the doctor must say of each.

A case is data. ``python -m tests.faults --cases package.module`` takes ``FAULTS`` and ``CONTROLS`` from any module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SMALL = {
    "steps": 400,
    "batch_size": 8,
    "task.seq_len": 64,
    "model.n_layer": 2,
    "model.d_model": 64,
    "model.n_head": 2,
    "task.max_data_mib": 4.0,
    "evaluation.every_steps": 100,
    "evaluation.batches": 2,
    "checkpoint.every_steps": None,
    "monitor.landscape_every": None,
    "threads": 1,
}
"""A GPT small enough that a case takes seconds on one core."""


@dataclass(frozen=True, slots=True)
class Case:
    """One training and the truth about it. A control has no fault and accepts nothing."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    """Dotted values on top of ``SMALL``."""
    fault: dict[str, Any] | None = None
    """A ``fault`` section of trainer/config.py; its ``step`` is drawn from the seed."""
    accept: frozenset[str] = frozenset()
    """Ids of findings that are right."""
    layers: frozenset[str] = frozenset()
    """Parameter names that are right as the first layer; empty when the fault has no place."""
    window: int = 20
    """Steps after the onset within which an alarm is in time: 20 for an abrupt fault, 100 for a drift."""


def _accept(*ids: str) -> frozenset[str]:
    return frozenset(ids)


SPIKE = _accept("loss-spike", "gradient-explosion")
MLP_IN = "blocks.1.mlp.up.weight"

FAULTS: tuple[Case, ...] = (
    Case("lr-x30", fault={"kind": "lr_factor", "factor": 30.0, "steps": None},
         accept=_accept("gradient-explosion", "loss-spike", "slow-divergence"), window=100),
    Case("lr-x300-one-step", fault={"kind": "lr_factor", "factor": 300.0, "steps": 1},
         accept=_accept("gradient-explosion", "loss-spike")),
    Case("gradient-x50-one-layer", fault={"kind": "grad_factor", "factor": 50.0, "steps": 1, "layer": MLP_IN},
         accept=_accept("gradient-explosion"), layers=frozenset({MLP_IN})),
    Case("nan-activation", fault={"kind": "nan_activation", "layer": "blocks.1"}, accept=_accept("non-finite")),
    Case("repeated-token", fault={"kind": "repeated_token", "steps": 1}, accept=SPIKE),
    Case("random-bytes", fault={"kind": "random_bytes", "steps": 1}, accept=SPIKE),
    Case("shuffled-labels", fault={"kind": "shuffled_labels", "steps": None},
         accept=_accept("loss-spike", "slow-divergence"), window=100),
)  # fmt: skip

CONTROLS: tuple[Case, ...] = (
    Case("cosine"),
    Case("warmup-hump", config={"optimizer.lr": 4e-3, "schedule.warmup_steps": 100}),
    Case("tiny-noisy-batch", config={"batch_size": 2}),
    Case("accumulation", config={"grad_accum_steps": 4}),
    Case("constant-lr", config={"schedule.kind": "constant"}),
    Case("warmup-stable-decay", config={"schedule.kind": "wsd"}),
    Case("sgd", config={"optimizer.kind": "sgd", "optimizer.lr": 0.1}),
    Case("no-clipping", config={"clip.max_norm": None}),
    Case("bf16", config={"precision.kind": "bf16"}),
    Case("fp16-backing-off", config={"precision.kind": "fp16", "precision.growth_interval": 50}),
)
