"""Number formats: fp32, bf16 autocast, or fp16 autocast with a gradient scaler. Weights stay float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch.amp import GradScaler, autocast

from trainer.config import PrecisionConfig

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Precision:
    """The formats in force on one device."""

    kind: str
    device_type: str
    scaler: GradScaler
    """Passes everything through unchanged unless the kind is fp16, so that the loop reads the same for all."""

    def autocast(self) -> AbstractContextManager[object]:
        """The context for forward and loss; backward runs outside it, in the formats that forward chose."""
        if self.kind == "fp32":
            return nullcontext()
        return autocast(self.device_type, dtype=AUTOCAST_DTYPES[self.kind])


def build_precision(config: PrecisionConfig, device: torch.device) -> Precision:
    """The formats for this process; how exact float32 products are holds for everything that torch computes in it.

    GradScaler works on CPU too (checked with torch 2.13: overflow is found, the step skipped, the scale halved).
    """
    torch.set_float32_matmul_precision(config.matmul)
    scaler = GradScaler(
        device.type, init_scale=config.init_scale, growth_interval=config.growth_interval, enabled=config.kind == "fp16"
    )
    return Precision(config.kind, device.type, scaler)
