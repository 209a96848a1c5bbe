"""A small GPT that explodes near step 70, in seconds: plain SGD whose rate goes on rising past what the loss allows."""

from __future__ import annotations

from typing import Any

VALUES: dict[str, Any] = {
    "steps": 150,
    "batch_size": 16,
    "threads": 1,
    "task.seq_len": 16,
    "task.max_data_mib": 0.5,
    "model.n_layer": 2,
    "model.d_model": 32,
    "model.n_head": 2,
    "model.qk_norm": True,
    "optimizer.kind": "sgd",
    "optimizer.lr": 4.0,
    "optimizer.weight_decay": 0.0,
    "clip.max_norm": None,
    "schedule.kind": "constant",
    "schedule.warmup_steps": 200,
    "evaluation.every_steps": None,
    "evaluation.batches": 1,
    "evaluation.sample_bytes": None,
    "checkpoint.every_steps": 20,
    "checkpoint.keep_last": 20,
    "monitor.landscape_every": None,
    "monitor.budget": 0.5,
}
"""Of the trainer's configuration, on top of its defaults."""
