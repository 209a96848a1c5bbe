"""What libraries call the quantities that have a name of their own here."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import torch

OURS = {
    "loss": "train_loss",
    "train/loss": "train_loss",
    "training_loss": "train_loss",
    "eval_loss": "val_loss",
    "eval/loss": "val_loss",
    "val/loss": "val_loss",
    "valid_loss": "val_loss",
    "validation_loss": "val_loss",
}
"""Anything else keeps the name that it was given."""


def our_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and tensors with one element, under our names; texts, tables and pictures are left out."""
    return {OURS.get(name, name): value for name, value in given.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, numbers.Real)
