"""What a caller may hand in as a number: Python and NumPy numbers, and tensors with one element."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from monitor.guard import contained
from monitor.signals import TIME_PARTS

MEASURED = frozenset(
    {
        "grad_norm_preclip", "grad_norm_postclip", "clip_coef", "clip_max_norm", "lr", "loss_scale", "skipped_steps",
        "tokens_per_s", "step_time_s", "grad_abs_max", "grad_cosine", "update_cosine", "weight_norm", "update_norm",
        "update_to_weight_ratio", "input_mean", "input_std", "input_absmax", "input_unique_share", "input_hash",
        "log_z_mean", "log_classes", "output_softmax_share", "output_batch_softmax_share", "output_mean",
        "output_spread", "output_min", "output_max", "gradient_noise_scale", "parameter_checksum",
        "forward_device_s", "backward_device_s", "optimizer_device_s", *TIME_PARTS,
    }
)  # fmt: skip
"""Names that only the monitor writes. The others of the catalogue, such as ``val_loss``, are the loop's to give."""

_LARGEST_ID = 1 << 53
"""Integers up to here are exact in a float64 column."""


def as_value(name: str, given: Any) -> float | Tensor:
    """A float, or a detached tensor with one element that is still on its device.

    Raises:
        TypeError, ValueError: what was given and what is accepted.
    """
    if isinstance(given, Tensor):
        if given.numel() != 1:
            raise ValueError(f"{name} is a tensor of shape {tuple(given.shape)}; a tensor with one element is accepted")
        # A value on the CPU is read now (no wait); on a device it is kept and read when it has arrived.
        return float(given.item()) if given.get_device() < 0 else given.detach().reshape(())
    if isinstance(given, np.ndarray | np.generic) and given.size == 1 and given.dtype.kind in "biuf":
        return float(given.item())
    if isinstance(given, numbers.Real):
        return float(given)
    raise TypeError(
        f"{name} is {given!r:.60} ({type(given).__name__}); a number or a tensor with one element is accepted"
    )


def split_values(given: Any, what: str) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The host's and the device's values of a mapping; a bad entry is warned of once and left out, None is absent."""
    host: dict[str, float] = {}
    device: dict[str, Tensor] = {}
    if not isinstance(given, Mapping):
        with contained(what):
            raise TypeError(f"{given!r:.60} ({type(given).__name__}); a mapping of names to numbers is accepted")
        return host, device
    for name, value in given.items():
        if value is None:
            continue
        with contained(f"{what} of {name!r:.60}"):
            if not isinstance(name, str) or not name:
                raise TypeError(f"the name is {type(name).__name__}; a string is accepted")
            if name in MEASURED or name.startswith("lr/"):
                raise ValueError(f"{name} is measured by the monitor; give your own value another name")
            number = as_value(name, value)
            if isinstance(number, Tensor):
                device[name] = number
            else:
                host[name] = number
    return host, device


def batch_number(batch_id: Any) -> float:
    """The integer given, or a 52-bit hash of the string given: exact as a float64.

    Raises:
        TypeError: neither.
    """
    if isinstance(batch_id, str):
        digest = hashlib.blake2b(batch_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return float(int.from_bytes(digest, "big") >> 12)
    if isinstance(batch_id, numbers.Integral) and abs(int(batch_id)) <= _LARGEST_ID:
        return float(int(batch_id))
    raise TypeError(f"batch_id is {batch_id!r:.60}; an integer up to 2**53 or a string is accepted")
