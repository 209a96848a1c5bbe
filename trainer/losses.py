"""The loss of predicting a token, summed over tokens so that accumulation over micro-batches and ranks can be exact."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""Targets with this value carry no loss and are not counted as tokens: ``cross_entropy``'s own default."""


def token_loss(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
    """Cross-entropy in nats, summed over the targets that are not ``IGNORED``: a float32 scalar, 0 when all are.

    Computed in float32 whatever autocast chose for the logits.

    Args:
        logits: float[..., V].
        targets: int64[...], classes below V.
        label_smoothing: the share of each target's probability that is spread evenly over all V classes. Szegedy et al.
            2016, https://arxiv.org/abs/1512.00567, section 7.
        z_loss: the weight of (log Z)², Z the softmax's denominator, which keeps logits from drifting away together.
            Chowdhery et al. 2022 (PaLM), https://arxiv.org/abs/2204.02311, section 5, with 1e-4.
    """
    logits, targets = logits.float().flatten(0, -2), targets.flatten()
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing)
    if z_loss:
        counted = targets != IGNORED
        loss = loss + z_loss * (torch.logsumexp(logits, dim=-1).square() * counted).sum()
    return loss
